//! Workers that serve many tasks: what each task gets, and what becomes of the worker.

#![expect(clippy::map_identity, reason = "it says what a task that never returns would return")]

use std::{
    collections::HashSet,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio_run_in_process::{Error, Phase, Pool, Zygote, worker};

use crate::{
    harness::{begin, children, eventually, is_alive},
    oracle::{undisturbed, undisturbed_with},
    orphans::Life,
    runtimes::{block_on, current_thread, elsewhere},
    tools::{Notes, note},
};

crate::cases![
    a_pool_runs_every_kind_of_function,
    a_map_gives_results_in_order_or_as_they_come,
    a_map_runs_no_more_at_a_time_than_it_may,
    a_dropped_map_ends_its_tasks,
    a_worker_is_used_again,
    a_worker_serves_no_more_tasks_than_it_may,
    idle_workers_go_after_their_time,
    an_initializer_runs_once_for_each_worker,
    every_runtime_in_turn_and_none,
    a_runtime_dropped_in_between,
    workers_of_a_pool_count_as_processes,
    a_dropped_pool_leaves_nothing;
    90 => thousands_of_tasks_some_of_which_end_badly,
];

pub(crate) fn pool(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

pub(crate) async fn pid() -> u32 {
    std::process::id()
}

pub(crate) async fn double(n: u64) -> u64 {
    n * 2
}

pub(crate) async fn nap(millis: u64) -> u64 {
    tokio::time::sleep(Duration::from_millis(millis)).await;
    millis
}

/// Notes who does it, and never ends.
pub(crate) async fn says_and_stays(path: String) {
    note(&path, &format!(" pid={} ", std::process::id()));
    std::future::pending().await
}

fn a_pool_runs_every_kind_of_function() {
    undisturbed(|| async {
        let pool = pool(2);
        assert_eq!(pool.run(double, 21).await.unwrap(), 42);
        assert_eq!(pool.run(async |a: String, b: u8| format!("{a}{b}"), ("x".to_owned(), 1)).await.unwrap(), "x1");
        assert_eq!(pool.run_blocking(|a: u64, b: u64| a - b, (7, 3)).await.unwrap(), 4);
        assert_eq!(pool.run(nap, 5).await.unwrap(), 5);
        assert_eq!(pool.map(double, 0..10).collect().await.unwrap(), (0..10).map(|n| n * 2).collect::<Vec<_>>());
        assert_eq!(pool.map(double, []).collect().await.unwrap(), [0; 0]);
        let (a, b, c) = tokio::join!(pool.run(double, 1), pool.run_blocking(|| 5, ()), pool.run(nap, 1));
        assert_eq!((a.unwrap(), b.unwrap(), c.unwrap()), (2, 5, 1));
        assert_eq!(tokio::spawn(pool.run(double, 4)).await.unwrap().unwrap(), 8);
    });
}

fn a_map_gives_results_in_order_or_as_they_come() {
    undisturbed(|| async {
        let pool = pool(4);
        // The first waits for the others, which must not wait for it.
        let waits = async |path: String, n: u64| {
            if n == 0 {
                while !std::path::Path::new(&path).exists() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            n
        };
        let go = Notes::new("go");
        let items: Vec<_> = (0..12).map(|n| (go.path(), n)).collect();
        let mut map = pool.map(waits, items.clone()).unordered();
        let mut found = HashSet::new();
        for _ in 1..12 {
            let n = map.next().await.unwrap().unwrap();
            assert!(n != 0 && found.insert(n));
        }
        note(&go.0, "go");
        assert_eq!(map.next().await.unwrap().unwrap(), 0);
        assert!(map.next().await.is_none() && map.next().await.is_none());
        assert_eq!(pool.map(waits, items).collect().await.unwrap(), (0..12).collect::<Vec<_>>());
        // Later items first, and an error among them.
        let uneven = async |n: u64| {
            nap(20 - n * 2).await;
            assert!(n != 3, "on purpose");
            n
        };
        let mut map = pool.map(uneven, 0..10);
        for n in 0..10 {
            match map.next().await.unwrap() {
                Ok(value) => assert!(value == n && n != 3),
                Err(error) => assert!(error.is_panic() && n == 3, "{n}: {error:?}"),
            }
        }
        assert!(map.next().await.is_none());
        assert!(pool.map(uneven, 0..10).collect().await.unwrap_err().is_panic());
    });
}

fn a_map_runs_no_more_at_a_time_than_it_may() {
    undisturbed_with(Zygote::builder().warm(2), |zygote| async move {
        let notes = Notes::new("steps");
        let steps = async |path: String| {
            note(&path, "+");
            nap(5).await;
            note(&path, "-");
        };
        for (workers, concurrency, most) in [(4, None, 4), (4, Some(2), 2), (2, Some(8), 2), (3, Some(1), 1)] {
            let pool = zygote.pool().workers(workers).build().unwrap();
            std::fs::write(&notes.0, "").unwrap();
            let map = pool.map(steps, vec![notes.path(); 24]);
            let map = if let Some(concurrency) = concurrency { map.concurrency(concurrency) } else { map };
            map.collect().await.unwrap();
            let (mut now, mut peak) = (0, 0);
            for step in notes.text().chars() {
                now += if step == '+' { 1 } else { -1 };
                peak = peak.max(now);
            }
            assert_eq!((now, notes.text().len()), (0, 48));
            assert!(peak <= most, "{peak} at a time of {workers}, {concurrency:?}");
            assert!(most == 1 || peak > 1, "one after another");
        }
        // Items are taken when there is room for them.
        static TAKEN: AtomicU64 = AtomicU64::new(0);
        let items = (0..).inspect(|_| {
            TAKEN.fetch_add(1, Ordering::Relaxed);
        });
        let pool = zygote.pool().workers(2).build().unwrap();
        let mut map = pool.map(double, items).concurrency(3);
        assert_eq!(TAKEN.load(Ordering::Relaxed), 0);
        for n in 0..5 {
            assert_eq!(map.next().await.unwrap().unwrap(), n * 2);
        }
        assert!(TAKEN.load(Ordering::Relaxed) <= 8, "{TAKEN:?}");
    });
}

fn a_dropped_map_ends_its_tasks() {
    undisturbed(|| async {
        let notes = Notes::new("stay");
        let pool = pool(3);
        let mut map = pool.map(says_and_stays, vec![notes.path(); 9]);
        let mut next = Box::pin(map.next());
        let begun = async {
            eventually("three have begun", || notes.pids().len() == 3).await;
        };
        tokio::select! {
            _ = &mut next => panic!("they do not end"),
            () = begun => {}
        }
        drop(next);
        let lives: Vec<_> = notes.pids().into_iter().map(Life::of).collect();
        nap(10).await;
        assert!(lives.iter().all(|life| !life.is_over()), "dropping `next` ends nothing");
        drop(map);
        eventually("they are gone", || lives.iter().all(|life| life.is_over())).await;
        assert_eq!(pool.run(double, 2).await.unwrap(), 4);
        assert_eq!(notes.pids().len(), 3, "the others did not begin");
    });
}

static SERVED: AtomicU64 = AtomicU64::new(0);

pub(crate) async fn count() -> (u32, u64) {
    (std::process::id(), SERVED.fetch_add(1, Ordering::Relaxed) + 1)
}

fn a_worker_is_used_again() {
    undisturbed(|| async {
        let pool = pool(1);
        let first = pool.run(count, ()).await.unwrap();
        assert_eq!(first.1, 1);
        for n in 2..=100 {
            assert_eq!(pool.run(count, ()).await.unwrap(), (first.0, n));
        }
        assert_eq!(pool.run_blocking(|| SERVED.load(Ordering::Relaxed), ()).await.unwrap(), 100);
        assert_eq!(pool.idle_workers(), 1);
        let is_worker = async || (worker::is_worker(), worker::name().map(str::to_owned));
        assert_eq!(pool.run(is_worker, ()).await.unwrap(), (true, Some("pool".to_owned())));
        assert_eq!(SERVED.load(Ordering::Relaxed), 0);
    });
}

fn a_worker_serves_no_more_tasks_than_it_may() {
    undisturbed(|| async {
        for most in [1, 3] {
            let pool = Pool::builder().workers(1).max_tasks_per_worker(most).build().unwrap();
            let mut pids = HashSet::new();
            for n in 0..12 {
                let (pid, served) = pool.run(count, ()).await.unwrap();
                assert_eq!(served, n % most + 1);
                assert_eq!(pids.insert(pid), served == 1);
            }
            // A task that panicked is one, too.
            let pool = Pool::builder().workers(1).max_tasks_per_worker(2).build().unwrap();
            let first = pool.run(pid, ()).await.unwrap();
            assert!(pool.run(async || panic!("on purpose"), ()).await.map(|()| ()).unwrap_err().is_panic());
            assert_ne!(pool.run(pid, ()).await.unwrap(), first);
        }
    });
}

fn idle_workers_go_after_their_time() {
    undisturbed(|| async {
        let time = Duration::from_millis(300);
        let pool = Pool::builder().workers(3).idle_timeout(time).build().unwrap();
        let start = Instant::now();
        let pids = pool.map(async |_: u8| (nap(20).await, std::process::id()).1, 0..3).collect().await.unwrap();
        let lives: Vec<_> = pids.into_iter().map(Life::of).collect();
        eventually("they are gone", || lives.iter().all(|life| life.is_over())).await;
        assert!(start.elapsed() >= time);
        assert_eq!(pool.idle_workers(), 0);
        // One that has a task stays.
        let (before, after) = tokio::join!(pool.run(async || (nap(900).await, std::process::id()).1, ()), nap(900));
        assert!(before.is_ok() && after == 900);
        assert_eq!(pool.run(double, 1).await.unwrap(), 2);
        // The pool ends though somebody looks after it.
        let one = pool.run(pid, ()).await.unwrap();
        drop(pool);
        eventually("it is gone", || !is_alive(one)).await;
    });
}

static INITIALIZED: AtomicU64 = AtomicU64::new(0);

async fn initialize() {
    tokio::time::sleep(Duration::from_millis(1)).await;
    INITIALIZED.fetch_add(1, Ordering::Relaxed);
}

fn an_initializer_runs_once_for_each_worker() {
    undisturbed(|| async {
        let builder = Pool::builder().workers(3).initializer(initialize);
        let pool = builder.clone().build().unwrap();
        let initialized = async |_: u8| (std::process::id(), INITIALIZED.load(Ordering::Relaxed));
        let found = pool.map(initialized, 0..60).collect().await.unwrap();
        assert!(found.iter().all(|&(_, times)| times == 1), "{found:?}");
        let pool = builder.workers(1).max_tasks_per_worker(2).build().unwrap();
        let found = pool.map(initialized, 0..6).collect().await.unwrap();
        assert!(found.iter().all(|&(_, times)| times == 1), "{found:?}");
        assert_eq!(found.iter().map(|(pid, _)| pid).collect::<HashSet<_>>().len(), 3);
    });
}

fn every_runtime_in_turn_and_none() {
    undisturbed(|| async {
        let pool = pool(1);
        let worker = pool.run(pid, ()).await.unwrap();
        let uses = async |pool: &Pool| {
            assert_eq!(pool.run(pid, ()).await.unwrap(), worker);
            assert_eq!(pool.run(nap, 3).await.unwrap(), 3);
            let large = "x".repeat(1 << 20);
            assert!(pool.run(async |text: String| text, large.clone()).await.unwrap() == large);
            assert_eq!(pool.map(double, 0..3).collect().await.unwrap(), [0, 2, 4]);
        };
        for _ in 0..3 {
            elsewhere(|| {
                current_thread().block_on(uses(&pool));
                let many = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
                many.block_on(uses(&pool));
                block_on(uses(&pool));
                // No timers there.
                tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(uses(&pool));
                block_on(uses(&pool));
            });
            uses(&pool).await;
        }
        // Without I/O there is nothing to wait with.
        let error = elsewhere(|| {
            let bare = tokio::runtime::Builder::new_current_thread().build().unwrap();
            bare.block_on(pool.run(nap, 1)).unwrap_err()
        });
        assert!(matches!(error, Error::NoReactor { .. }), "{error:?}");
        assert_eq!(pool.run(double, 1).await.unwrap(), 2);
    });
}

fn a_runtime_dropped_in_between() {
    undisturbed(|| async {
        let notes = Notes::new("stay");
        let pool = pool(2);
        for _ in 0..5 {
            let _ = std::fs::remove_file(&notes.0);
            elsewhere(|| {
                let runtime = current_thread();
                runtime.block_on(async {
                    assert_eq!(pool.run(nap, 1).await.unwrap(), 1);
                    tokio::spawn(pool.run(says_and_stays, notes.path()));
                    eventually("it has begun", || !notes.pids().is_empty()).await;
                });
                drop(runtime);
            });
            let worker = notes.pids()[0];
            eventually("its task ended with it", || !is_alive(worker)).await;
            assert_eq!(pool.map(double, 0..4).collect().await.unwrap(), [0, 2, 4, 6]);
        }
        // A future that began there and goes on here.
        let _ = std::fs::remove_file(&notes.0);
        let (mut run, runtime) = elsewhere(|| {
            let runtime = current_thread();
            let mut run = Box::pin(pool.run(nap, 50));
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    _ = &mut run => panic!("too soon"),
                    () = tokio::time::sleep(Duration::from_millis(10)) => {}
                }
            });
            (run, runtime)
        });
        elsewhere(move || drop(runtime));
        match tokio::time::timeout(Duration::from_secs(8), &mut run).await.expect("no hang") {
            Ok(value) => assert_eq!(value, 50),
            Err(error) => assert!(matches!(error, Error::ShutDown), "{error:?}"),
        }
        drop(run);
        assert_eq!(pool.map(double, 0..4).collect().await.unwrap(), [0, 2, 4, 6]);
    });
}

fn workers_of_a_pool_count_as_processes() {
    undisturbed_with(Zygote::builder().max_processes(3), |zygote| async move {
        let pool = zygote.pool().workers(2).build().unwrap();
        assert_eq!(zygote.available_processes(), 3, "none is started before it is needed");
        pool.map(async |_: u8| nap(20).await, 0..2).collect().await.unwrap();
        assert_eq!((zygote.available_processes(), pool.idle_workers()), (1, 2));
        let process = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        assert_eq!(zygote.available_processes(), 0);
        let busy = [begin(pool.run(nap, 600)).await, begin(pool.run(nap, 600)).await];
        let hasty = zygote.task().queue_timeout(Duration::from_millis(50));
        let error = hasty.run(double, 1).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { phase: Phase::Queued, .. }), "{error:?}");
        for busy in busy {
            busy.await.unwrap();
        }
        assert_eq!(zygote.run_in_process(double, 1).await.unwrap(), 2, "an idle one makes room");
        assert_eq!(pool.run(double, 1).await.unwrap(), 2);
        drop(process);
        drop(pool);
        eventually("the permits are back", || zygote.available_processes() == 3).await;
    });
}

fn a_dropped_pool_leaves_nothing() {
    undisturbed_with(Zygote::builder().warm(0), |zygote| async move {
        for _ in 0..10 {
            let pool = zygote.pool().workers(4).build().unwrap();
            let copy = pool.clone();
            pool.map(async |_: u8| nap(5).await, 0..4).collect().await.unwrap();
            assert_eq!(children(zygote.pid()).len(), 4);
            drop(pool);
            assert_eq!(copy.run(double, 1).await.unwrap(), 2);
            // A task keeps what it needs.
            let task = begin(copy.run(nap, 30)).await;
            drop(copy);
            assert_eq!(task.await.unwrap(), 30);
            eventually("all are gone, no zombie either", || children(zygote.pid()).is_empty()).await;
        }
    });
}

/// Does as its number says.
async fn fares(n: u64) -> u64 {
    match n % 40 {
        0 => panic!("on purpose {n}"),
        20 => std::process::exit(i32::try_from(n % 100).unwrap() + 1),
        m => {
            if m % 3 == 0 {
                tokio::task::yield_now().await;
            }
            n * 3
        }
    }
}

fn thousands_of_tasks_some_of_which_end_badly() {
    undisturbed_with(Zygote::builder().warm(4), |zygote| async move {
        let pool = zygote.pool().workers(4).build().unwrap();
        let mut map = pool.map(fares, 0..5000).concurrency(8);
        for n in 0..5000_u64 {
            let outcome = tokio::time::timeout(Duration::from_secs(20), map.next()).await.expect("no hang").unwrap();
            match (n % 40, outcome) {
                (0, Err(error)) => {
                    let text = error.panic().unwrap_or_else(|| panic!("{n}: {error:?}")).to_string();
                    assert!(text.contains(&format!("on purpose {n}")), "{text}");
                }
                (20, Err(Error::Exited { code, .. })) => assert_eq!(code, i32::try_from(n % 100).unwrap() + 1),
                (_, Ok(value)) => assert_eq!(value, n * 3),
                (_, outcome) => panic!("{n}: {outcome:?}"),
            }
        }
        assert!(map.next().await.is_none());
        assert_eq!(zygote.metrics().started, 2 + zygote.metrics().finished.exited + pool.idle_workers() as u64);
    });
}
