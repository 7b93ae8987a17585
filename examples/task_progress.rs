//! A progress bar that is fed, through a channel, by the task that does the work in its own process.

use std::io::{self, Write};

use tokio_run_in_process::{Sender, block_on, channel, open_blocking_in_process};

/// How many of a hundred parts are done.
type Percent = u32;

/// Counts primes, and says how far it is.
fn primes_below(limit: u32, mut progress: Sender<Percent>) -> usize {
    let mut primes = 0;
    for n in 2..limit {
        if (2..).take_while(|d| d * d <= n).all(|d| n % d != 0) {
            primes += 1;
        }
        if n % (limit / 100) == 0 {
            // Nobody looks any more? Then it works on without a word.
            let _ = progress.blocking_send(n / (limit / 100));
        }
    }
    primes
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    block_on(async {
        let (sender, mut progress) = channel()?;
        let process = open_blocking_in_process(primes_below, (200_000, sender)).await?;
        // Ends when the task drops its end, or dies.
        while let Some(percent) = progress.recv().await? {
            print!("\r[{:<50}] {percent} %", "#".repeat(percent as usize / 2));
            io::stdout().flush()?;
        }
        println!("\n{} primes below 200000", process.wait().await?);
        Ok(())
    })?
}
