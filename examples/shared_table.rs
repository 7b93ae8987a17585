//! A large table that is made once and read by a hundred tasks, each in a process of its own, none with a copy.

use tokio::task::JoinSet;
use tokio_run_in_process::{Shared, block_on, run_in_process};

const ROWS: usize = 1 << 20;
const WIDTH: usize = 64;

/// How many rows of the table begin with `byte`, and how much memory this process has of its own, in kilobytes.
async fn count(table: Shared, byte: u8) -> (usize, u64) {
    let rows = table.chunks(WIDTH).filter(|row| row[0] == byte).count();
    (rows, own_memory().unwrap_or(0))
}

/// All of it but what is in files and in memory that is shared. Linux only.
fn own_memory() -> Option<u64> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Anonymous:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    block_on(async {
        let mut table = Shared::builder(ROWS * WIDTH)?;
        for (n, row) in table.chunks_mut(WIDTH).enumerate() {
            row[0] = (n * n % 251) as u8;
        }
        let table = table.finish()?;
        let mut tasks: JoinSet<_> = (0..100).map(|byte| run_in_process(count, (table.clone(), byte))).collect();
        let (mut rows, mut most) = (0, 0);
        while let Some(counted) = tasks.join_next().await {
            let (found, memory) = counted??;
            rows += found;
            most = most.max(memory);
        }
        println!("100 tasks found {rows} rows in {} MB; none had more than {most} kB of its own", table.len() >> 20);
        Ok(())
    })?
}
