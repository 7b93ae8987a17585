//! Zygotes that are killed or stopped again and again, under load.
//!
//! Ten seconds each; `TOKIO_RUN_IN_PROCESS_TEST_SECONDS=60` makes it a minute.

use std::{
    os::unix::fs::OpenOptionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tokio_run_in_process::{Error, Zygote};

use crate::{
    harness::{eventually, multi_thread},
    lost_zygote::{inherits, soon},
    oracle::{no_core_files, scratch},
    recovery::try_both,
};

crate::cases![;
    120 => e62_the_serving_zygote_is_killed_every_50_ms,
    e62_the_ancestor_is_killed_every_50_ms,
    e62_either_zygote_is_killed_every_50_ms,
    e62_both_zygotes_are_killed_under_load,
    e63_either_zygote_is_stopped_every_50_ms,
];

const IN_FLIGHT: u64 = 32;
const EVERY: Duration = Duration::from_millis(50);

fn duration() -> Duration {
    let seconds = std::env::var("TOKIO_RUN_IN_PROCESS_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(10))
}

/// Fails if a task of this number has run before.
fn once(folder: &str, n: u64) {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(format!("{folder}/{n}"));
    file.expect("a task ran twice");
}

async fn task(folder: String, n: u64) -> u64 {
    once(&folder, n);
    tokio::time::sleep(Duration::from_millis(n % 40)).await;
    n * 3
}

fn plain_task(folder: String, n: u64) -> u64 {
    once(&folder, n);
    std::thread::sleep(Duration::from_millis(n % 40));
    n * 3
}

#[derive(Default)]
struct Tally {
    started: AtomicU64,
    right: AtomicU64,
    /// Was not begun, and nobody could be found for it.
    refused: AtomicU64,
    /// Had begun, or may have, and its outcome is lost.
    unknown: AtomicU64,
    stop: AtomicBool,
}

/// Runs tasks of each kind, until it is told to stop.
async fn run_tasks(zygote: Zygote, folder: String, tally: Arc<Tally>) {
    while !tally.stop.load(Relaxed) {
        let n = tally.started.fetch_add(1, Relaxed);
        let outcome = match n % 4 {
            0 => soon("run", zygote.run_in_process(task, (folder.clone(), n))).await,
            1 => soon("run, plain", zygote.run_blocking_in_process(plain_task, (folder.clone(), n))).await,
            2 => match soon("open", zygote.open_in_process(task, (folder.clone(), n))).await {
                Ok(process) => {
                    let outcome = soon("wait", process.wait()).await;
                    soon("exited", process.exited()).await;
                    outcome
                }
                Err(error) => Err(error),
            },
            _ => {
                async {
                    soon("open", zygote.open_blocking_in_process(plain_task, (folder.clone(), n))).await?.wait().await
                }
                .await
            }
        };
        let began = std::path::Path::new(&format!("{folder}/{n}")).exists();
        let count = match outcome {
            Ok(found) => {
                assert_eq!(found, n * 3);
                &tally.right
            }
            Err(Error::ZygoteLost { started: Some(false), .. } | Error::TimedOut { .. }) => {
                assert!(!began, "{n}: it was said not to have begun");
                // Instead of a loop that does nothing else.
                tokio::time::sleep(Duration::from_millis(1)).await;
                &tally.refused
            }
            Err(error @ Error::ZygoteLost { .. }) => {
                assert!(n % 4 > 1 || !inherits(), "{n}: to run it no pid is needed: {error:?}");
                &tally.unknown
            }
            Err(error) => panic!("{n}: {error:?}"),
        };
        count.fetch_add(1, Relaxed);
    }
}

/// Lets tasks run while `disturb` does its work every 50 ms. Gives the tally and how often that was.
async fn under_load(zygote: &Zygote, name: &str, disturb: impl AsyncFn(u64) -> bool) -> (Arc<Tally>, u64) {
    let folder = scratch(name);
    std::fs::create_dir(&folder).unwrap();
    let tally = Arc::new(Tally::default());
    let mut runners = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        runners.spawn(run_tasks(zygote.clone(), folder.clone(), tally.clone()));
    }
    let (start, mut disturbed) = (Instant::now(), 0);
    while start.elapsed() < duration() {
        disturbed += u64::from(disturb(disturbed).await);
        tokio::time::sleep(EVERY).await;
    }
    tally.stop.store(true, Relaxed);
    while let Some(runner) = runners.join_next().await {
        runner.unwrap();
    }
    eventually("all are gone", || zygote.metrics().alive == 0).await;
    println!(
        "{name}: {disturbed} times in {:?}, {} lost; {} tasks: {} right, {} refused, {} unknown",
        start.elapsed(),
        zygote.metrics().zygotes_lost,
        tally.started.load(Relaxed),
        tally.right.load(Relaxed),
        tally.refused.load(Relaxed),
        tally.unknown.load(Relaxed)
    );
    std::fs::remove_dir_all(folder).unwrap();
    (tally, disturbed)
}

fn start() -> Zygote {
    no_core_files();
    Zygote::builder().max_processes(40).start().unwrap()
}

/// After all that: it works, and two zygotes are there.
async fn is_well(zygote: &Zygote) {
    assert_eq!(soon("a task", zygote.run_in_process(async || 7, ())).await.unwrap(), 7);
    eventually("two zygotes", || try_both(zygote).is_some()).await;
}

/// Kills one of them. `false` if it is not there just now.
async fn kill(zygote: &Zygote, ancestor: bool) -> bool {
    let Some(both) = try_both(zygote) else { return false };
    let one = if ancestor { both.ancestor } else { both.serving };
    one.kill();
    // With so much to do that may take longer than to the next kill, which then takes the other one.
    eventually("it is gone", || one.is_over()).await;
    true
}

fn killed_under_load(name: &str, which: impl Fn(u64) -> bool) {
    let zygote = start();
    multi_thread().block_on(async {
        let (tally, killed) = under_load(&zygote, name, async |n| kill(&zygote, which(n)).await).await;
        assert!(killed >= duration().as_secs(), "{killed}");
        assert_eq!(tally.refused.load(Relaxed), 0, "the other one forks the next");
        assert_eq!(tally.unknown.load(Relaxed), 0, "an ancestor knows them, or they say who they are");
        is_well(&zygote).await;
    });
}

fn e62_the_serving_zygote_is_killed_every_50_ms() {
    killed_under_load("serving", |_| false);
}

fn e62_the_ancestor_is_killed_every_50_ms() {
    // It served 50 ms ago: nobody but itself knows what it forked then.
    killed_under_load("ancestor", |_| true);
}

fn e62_either_zygote_is_killed_every_50_ms() {
    killed_under_load("either", |n| n % 3 == 0);
}

/// Another handle is there, so that this one is not lost for good.
fn e62_both_zygotes_are_killed_under_load() {
    let (zygote, other) = (start(), start());
    multi_thread().block_on(async {
        assert_eq!(other.run_in_process(async || 7, ()).await.unwrap(), 7);
        let disturb = async |_| {
            let Some(both) = try_both(&zygote) else { return false };
            if both.ancestor.pid == other.pid() {
                return false;
            }
            both.ancestor.kill();
            both.serving.kill();
            true
        };
        let (_, killed) = under_load(&zygote, "both", disturb).await;
        assert!(killed >= duration().as_secs(), "{killed}");
        is_well(&zygote).await;
        is_well(&other).await;
    });
}

fn e63_either_zygote_is_stopped_every_50_ms() {
    let zygote = start();
    multi_thread().block_on(async {
        let disturb = async |n| {
            let Some(both) = try_both(&zygote) else { return false };
            let stopped = if n % 2 == 0 { both.serving } else { both.ancestor };
            stopped.signal(libc::SIGSTOP);
            tokio::time::sleep(EVERY).await;
            if n % 5 == 0 {
                stopped.kill();
            }
            stopped.signal(libc::SIGCONT);
            true
        };
        let (tally, _) = under_load(&zygote, "stopped", disturb).await;
        assert_eq!(tally.refused.load(Relaxed), 0, "they wait");
        is_well(&zygote).await;
    });
}
