//! A task in the background: look at it, do something else, then ask for its outcome, as often as you like.

use std::time::Duration;

use tokio_run_in_process::{State, block_on, open_in_process};

async fn slow_square(n: u64) -> u64 {
    tokio::time::sleep(Duration::from_millis(300)).await;
    n * n
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    block_on(async {
        let process = open_in_process(slow_square, 12).await?; // ready once the task executes
        println!("{} runs as pid {}", process.name(), process.pid());
        assert_eq!(process.state(), State::Executing);

        println!("doing other things ...");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(process.try_wait().is_none(), "it is not done yet");

        println!("12 * 12 = {}", process.wait().await?);
        assert_eq!(process.wait().await?, 144, "asked again, it says the same");
        let (status, usage) = process.exited().await;
        println!("its process {status}, {} kB at most", usage.map_or(0, |usage| usage.max_rss / 1024));
        Ok(())
    })?
}
