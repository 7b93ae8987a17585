//! A limit that holds even for a task that never comes to an `.await`: its process is ended.

use std::time::Duration;

use tokio_run_in_process::{Task, block_on};

async fn never_ends(start: u64) -> u64 {
    let mut n = start;
    loop {
        n = std::hint::black_box(n.wrapping_mul(3));
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    block_on(async {
        // SIGTERM after 200 ms, and, because this task is too busy to notice, SIGKILL 100 ms later.
        let task = Task::new().timeout(Duration::from_millis(200)).grace_period(Duration::from_millis(100));
        let process = task.open(never_ends, 1).await?;
        let error = process.wait().await.expect_err("it has a limit");
        assert!(error.is_timeout());
        println!("{error}");
        let (status, _) = process.exited().await;
        println!("its process was {status}");
        Ok(())
    })?
}
