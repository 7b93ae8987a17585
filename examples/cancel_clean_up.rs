//! A task that is asked to end cleans up first: by its destructors, or in its own way.

use std::time::Duration;

use tokio_run_in_process::{block_on, open_in_process, worker};

struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        println!("first task: its destructors run");
    }
}

async fn leaves_it_to_destructors() {
    let _guard = Guard;
    tokio::time::sleep(Duration::from_secs(60)).await;
}

async fn cleans_up_itself() -> String {
    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs(60)) => "done".into(),
        () = worker::cancelled() => {
            tokio::time::sleep(Duration::from_millis(50)).await; // the grace period is there for this
            "stopped half-way, all tidy".into()
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    block_on(async {
        let first = open_in_process(leaves_it_to_destructors, ()).await?;
        let second = open_in_process(cleans_up_itself, ()).await?;
        tokio::time::sleep(Duration::from_millis(200)).await; // both are in the middle of their work

        let (status, _) = first.shutdown().await; // as if dropped, but waits for the end
        println!("first task: {status}");
        second.shutdown().await;
        println!("second task: {}", second.wait().await?);
        Ok(())
    })?
}
