//! The main job: one async function, run in a process of its own, awaited and in the background.

use tokio_run_in_process::{open_in_process, run_in_process};

async fn fib(n: u64) -> u64 {
    if n <= 1 { n } else { Box::pin(fib(n - 1)).await + Box::pin(fib(n - 2)).await }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tokio_run_in_process::init()?; // forks the zygote: before any thread, so before any runtime
    tokio::runtime::Runtime::new()?.block_on(async {
        let result = run_in_process(fib, 10).await?; // runs in a separate process
        println!("The 10th fibonacci number is {result}");

        let process = open_in_process(fib, 10).await?; // runs in the background, in a separate process
        // ... do other things here ...
        println!("pid {} says {}", process.pid(), process.wait().await?);
        Ok(())
    })
}
