//! A task on smol's runtime instead of tokio. Needs the feature `smol`.

use std::time::{Duration, Instant};

use tokio_run_in_process::{Smol, Task, block_on};

async fn naps(count: u32) -> u32 {
    // All at once, on the executor of this task.
    let naps: Vec<_> = (0..count)
        .map(|n| {
            Smol::spawn(async move {
                async_io::Timer::after(Duration::from_millis(100)).await;
                n
            })
        })
        .collect();
    let mut sum = 0;
    for nap in naps {
        sum += nap.await;
    }
    sum
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    block_on(async {
        let start = Instant::now();
        let sum = Task::new().runtime::<Smol>().run(naps, 10).await?;
        println!("ten naps of 100 ms on smol, together: {sum}");
        assert!(start.elapsed() < Duration::from_millis(1000), "they overlap");
        Ok(())
    })?
}
