//! A table that every worker shares is built once, and replaced by the next version while tasks go on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio_run_in_process::{Shared, block_on, default_zygote, run_in_process, set_default_zygote, worker};

struct Table {
    version: u32,
    squares: Shared,
}

/// As if it took a while: it runs in a process of its own, once for each version.
fn build(version: u32) -> Table {
    let mut squares = Shared::builder(8 << 20).expect("memory");
    for (n, square) in squares.chunks_exact_mut(8).enumerate() {
        square.copy_from_slice(&(n as u64 * n as u64).to_le_bytes());
    }
    Table { version, squares: squares.finish().expect("memory") }
}

/// The table's version, and whether it has the right square.
async fn check(n: usize) -> Option<(u32, bool)> {
    let table = worker::preloaded::<Table>()?;
    let square = table.squares[8 * n..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes))?;
    Some((table.version, square == n as u64 * n as u64))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    block_on(async {
        let root = default_zygote()?;
        set_default_zygote(root.preload(build, 1).await?);
        let stop = Arc::new(AtomicBool::new(false));
        let asks = tokio::spawn({
            let stop = stop.clone();
            async move {
                let (mut right, mut last) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let (version, is_right) = run_in_process(check, right % 1000).await?.expect("a table");
                    assert!(is_right && version >= last);
                    (right, last) = (right + 1, version);
                }
                Ok::<_, tokio_run_in_process::Error>((right, last))
            }
        });
        for version in 2..=4 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            // The tasks of the old table finish with it.
            drop(set_default_zygote(root.preload(build, version).await?));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.store(true, Ordering::Relaxed);
        let (right, last) = asks.await??;
        println!("{right} tasks, none lost or wrong; the last one saw version {last}");
        Ok(())
    })?
}
