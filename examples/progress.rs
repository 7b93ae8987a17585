//! Many tasks, of which as many run as there may be processes, and a bar that shows how far they are.

use std::{
    io::{self, Write},
    time::Duration,
};

use tokio::task::JoinSet;
use tokio_run_in_process::{block_on, run_in_process};

const TASKS: usize = 40;

async fn work(n: u64) -> u64 {
    tokio::time::sleep(Duration::from_millis(50 + n * 7 % 60)).await;
    n
}

fn draw(done: usize) {
    let bar = "#".repeat(done) + &".".repeat(TASKS - done);
    print!("\r[{bar}] {done}/{TASKS}");
    let _ = io::stdout().flush();
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    block_on(async {
        // The rest waits for its turn: `run_in_process` is fair, and needs no pool around it.
        let mut tasks: JoinSet<_> = (0..TASKS as u64).map(|n| run_in_process(work, n)).collect();
        let (mut done, mut sum) = (0, 0);
        draw(done);
        while let Some(result) = tasks.join_next().await {
            sum += result??;
            done += 1;
            draw(done);
        }
        println!("\nall done, the sum is {sum}");
        Ok(())
    })?
}
