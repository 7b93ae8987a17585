//! What must be as before once a case is through: descriptors, threads, processes.

use std::future::Future;

use tokio_run_in_process::{Zygote, ZygoteBuilder};

use crate::harness::{descriptors, eventually, nothing_is_left};

/// What this program and its zygote hold, warmed up: the driver runs, every lazy thing has been made.
struct Baseline {
    ours: Held,
    warm: bool,
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
        // It lets go of the sockets of a worker before the worker's place is free.
        eventually("every place is free", || zygote.metrics().alive == 0).await;
        let warm = zygote.metrics().warm > 0;
        let mut ours = Held::default();
        eventually("the descriptors settle", || {
            let before = std::mem::replace(&mut ours, held(zygote, warm));
            before == ours
        })
        .await;
        Self { ours, warm, zygotes: descriptors(zygote.pid()), threads: threads() }
    }

    async fn is_back(&self, zygote: &Zygote, permits: usize) {
        nothing_is_left(zygote).await;
        eventually("every permit is back", || zygote.available_processes() == permits).await;
        let found = std::cell::RefCell::new(Held::default());
        let check = || {
            *found.borrow_mut() = held(zygote, self.warm);
            *found.borrow() == self.ours
        };
        let fine = tokio::time::timeout(std::time::Duration::from_secs(9), eventually("our descriptors", check)).await;
        assert!(fine.is_ok(), "descriptors were {:?}\nand are {:?}", self.ours, found.borrow());
        // It holds the socket of a warm worker that it is about to fork.
        eventually("the zygote's descriptors", || descriptors(zygote.pid()) == self.zygotes).await;
        eventually("the threads are back", || threads() <= self.threads).await;
        assert_eq!(zygote.run_in_process(async |n: u8| n, 7).await.unwrap(), 7, "a canary");
    }
}

/// Descriptors: which, or, where warm workers come and go, how many of what kind, without the two sockets of each.
#[derive(Debug, Default, PartialEq)]
struct Held(Vec<(u32, String)>);

fn held(zygote: &Zygote, warm: bool) -> Held {
    let mut found = descriptors(std::process::id());
    if warm {
        for (number, target) in &mut found {
            *number = 0;
            target.truncate(target.find(":[").unwrap_or(target.len()));
        }
        found.sort();
        for _ in 0..2 * zygote.metrics().warm {
            if let Some(at) = found.iter().position(|(_, kind)| kind == "socket") {
                found.remove(at);
            }
        }
    }
    Held(found)
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
