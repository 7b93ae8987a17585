//! Plain functions that compute or block, two at once, each in its own process.

use tokio_run_in_process::{block_on, run_blocking_in_process};

fn count_primes(from: u32, to: u32) -> usize {
    (from.max(2)..to).filter(|n| (2..).take_while(|d| d * d <= *n).all(|d| n % d != 0)).count()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    block_on(async {
        let (low, high) = tokio::try_join!(
            run_blocking_in_process(count_primes, (0, 50_000)),
            run_blocking_in_process(count_primes, (50_000, 100_000)),
        )?;
        println!("{low} primes below 50000 and {high} more below 100000: {}", low + high);
        Ok(())
    })?
}
