//! A task's output as it comes, line by line; and the output of a task that fails, all of it at the end.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_run_in_process::{Stdio, Task, block_on};

async fn count(to: u32) -> u32 {
    for n in 1..=to {
        println!("{n} of {to}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    to
}

fn load(path: String) -> usize {
    println!("loading {path}");
    eprintln!("error: {path} is damaged");
    std::process::abort()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    block_on(async {
        let process = Task::new().stdout(Stdio::piped()).open(count, 3).await?;
        let stdout = process.take_stdout().expect("it is piped");
        let mut lines = BufReader::new(stdout).lines();
        while let Some(line) = lines.next_line().await? {
            println!("it says: {line}");
        }
        println!("its result: {}", process.wait().await?);

        let output = Task::new().name("load").output_blocking(load, "data.bin".to_owned()).await;
        if let Err(error) = output.result {
            println!("{error}");
            println!("its last words: {}", output.stderr.text().trim_end());
            println!("and before: {}", output.stdout.text().trim_end());
        }
        Ok(())
    })?
}
