//! What must be as before once a case is through: descriptors, threads, processes.

use std::future::Future;

use tokio_run_in_process::{Zygote, ZygoteBuilder};

use crate::harness::{descriptors, eventually, nothing_is_left};

/// What this program and its zygote hold, warmed up: the driver runs, every lazy thing has been made.
struct Baseline {
    ours: Held,
    zygotes: Vec<(u32, String)>,
    threads: usize,
}

impl Baseline {
    async fn take(zygote: &Zygote) -> Self {
        let (a, b) = tokio::join!(zygote.run_in_process(async || (), ()), zygote.open_in_process(async || (), ()));
        a.unwrap();
        b.unwrap().exited().await;
        // Its last descriptors are closed by the driver, in its own time.
        nothing_is_left(zygote).await;
        let ours = settled(zygote).await;
        Self { ours, zygotes: descriptors(zygote.pid()), threads: threads() }
    }

    async fn is_back(&self, zygote: &Zygote, permits: usize) {
        nothing_is_left(zygote).await;
        eventually("every permit is back", || zygote.available_processes() == permits).await;
        let found = std::cell::RefCell::new(Held::default());
        let check = || {
            *found.borrow_mut() = held(zygote);
            found.borrow().is_like(&self.ours)
        };
        let fine = tokio::time::timeout(std::time::Duration::from_secs(9), eventually("our descriptors", check)).await;
        assert!(fine.is_ok(), "descriptors were {:?}\nand are {:?}", self.ours, found.borrow());
        // It holds the socket of a warm worker that it is about to fork; so it may have when it was looked at first.
        let has = |fd: &(u32, String)| self.zygotes.contains(fd);
        eventually("the zygote has no more descriptors", || descriptors(zygote.pid()).iter().all(has)).await;
        eventually("the threads are back", || threads() <= self.threads).await;
        assert_eq!(zygote.run_in_process(async |n: u8| n, 7).await.unwrap(), 7, "a canary");
    }
}

/// Descriptors, and how many workers stood ready, each of which has two sockets here.
#[derive(Debug, Default)]
struct Held {
    found: Vec<(u32, String)>,
    warm: usize,
}

impl Held {
    /// Whether they are the same, or, where warm workers come and go, as many of each kind without the sockets of those.
    fn is_like(&self, other: &Self) -> bool {
        if self.warm == 0 && other.warm == 0 { self.found == other.found } else { self.kinds() == other.kinds() }
    }

    fn kinds(&self) -> Vec<&str> {
        let kind = |(_, target): &'_ (u32, String)| target.find(":[").unwrap_or(target.len());
        let mut kinds: Vec<&str> = self.found.iter().map(|found| &found.1[..kind(found)]).collect();
        kinds.sort_unstable();
        for _ in 0..2 * self.warm {
            if let Some(at) = kinds.iter().position(|&kind| kind == "socket") {
                kinds.remove(at);
            }
        }
        kinds
    }
}

fn held(zygote: &Zygote) -> Held {
    Held { found: descriptors(std::process::id()), warm: zygote.metrics().warm }
}

async fn settled(zygote: &Zygote) -> Held {
    let mut now = held(zygote);
    eventually("the descriptors settle", || {
        let before = std::mem::replace(&mut now, held(zygote));
        before.is_like(&now)
    })
    .await;
    now
}

/// How many descriptors this program has, but for those of warm workers, which come and go.
pub(crate) async fn descriptors_at_rest(zygote: &Zygote) -> usize {
    settled(zygote).await.kinds().len()
}

pub(crate) fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Runs a case with the process-wide zygote. Afterwards everything must be as it was.
pub(crate) fn undisturbed<F: Future<Output = ()>>(body: impl FnOnce() -> F) {
    no_core_files();
    tokio_run_in_process::init().unwrap();
    let zygote = tokio_run_in_process::default_zygote().unwrap();
    compare(&zygote.clone(), body);
}

/// The same with a zygote of its own.
pub(crate) fn undisturbed_with<F: Future<Output = ()>>(builder: ZygoteBuilder, body: impl FnOnce(Zygote) -> F) {
    no_core_files();
    let zygote = builder.start().unwrap();
    compare(&zygote, || body(zygote.clone()));
}

fn compare<F: Future<Output = ()>>(zygote: &Zygote, body: impl FnOnce() -> F) {
    let permits = zygote.available_processes();
    runtime().block_on(async {
        let baseline = Baseline::take(zygote).await;
        body().await;
        baseline.is_back(zygote, permits).await;
    });
}

/// Its blocking threads go soon, so that threads can be counted.
fn runtime() -> tokio::runtime::Runtime {
    let keep = std::time::Duration::from_millis(20);
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_keep_alive(keep).enable_all().build().unwrap()
}

/// Cases crash on purpose; a core file would be what they leave.
pub(crate) fn no_core_files() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live rlimit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) }, 0);
}

/// A path that no other case uses, in a folder that is there.
pub(crate) fn scratch(name: &str) -> String {
    let path = std::env::temp_dir().join(format!("fork-{}-{name}", std::process::id()));
    path.to_str().unwrap().to_owned()
}
