//! Workers that serve many tasks: what each task gets, and what becomes of the worker.

#![expect(clippy::map_identity, reason = "it says what a task that never returns would return")]

use std::{
    collections::HashSet,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio_run_in_process::{Coded, Error, Phase, Pool, PoolRun, Signal, Zygote, worker};

use crate::{
    harness::{begin, children, eventually, is_alive, send_signal},
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
    a_panic_of_the_initializer_is_the_outcome,
    an_initializer_that_ends_its_worker_is_an_outcome,
    a_panic_costs_its_task_only,
    however_a_worker_ends_its_task_hears_of_it,
    a_worker_killed_while_it_is_idle_is_replaced_unseen,
    a_dropped_future_ends_its_task,
    a_task_over_its_time_is_ended,
    large_arguments_and_results,
    what_does_not_fit_or_decode_costs_its_task_only,
    every_runtime_in_turn_and_none,
    a_runtime_dropped_in_between,
    workers_of_a_pool_count_as_processes,
    a_dropped_pool_leaves_nothing;
    90 => thousands_of_tasks_some_of_which_end_badly,
];

fn pool(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

async fn pid() -> u32 {
    std::process::id()
}

async fn double(n: u64) -> u64 {
    n * 2
}

async fn nap(millis: u64) -> u64 {
    tokio::time::sleep(Duration::from_millis(millis)).await;
    millis
}

/// Notes who does it, and never ends.
async fn says_and_stays(path: String) {
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

async fn count() -> (u32, u64) {
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

const SWITCH: &str = "POOL_TEST_SWITCH";

fn switch() -> String {
    std::fs::read_to_string(std::env::var(SWITCH).unwrap()).unwrap_or_default()
}

async fn does_what_the_switch_says() {
    match &*switch() {
        "panic" => panic!("the initializer, on purpose"),
        "panic later" => {
            nap(30).await;
            panic!("the initializer, on purpose")
        }
        "exit" => std::process::exit(9),
        "exit later" => {
            nap(30).await;
            std::process::exit(9)
        }
        "abort" => std::process::abort(),
        _ => {}
    }
}

/// A file that says what initializers do. Set before there is a thread, so that workers know of it.
fn switched() -> Notes {
    let notes = Notes::new("switch");
    // SAFETY: there is one thread.
    unsafe { std::env::set_var(SWITCH, notes.path()) };
    notes
}

async fn soon<T>(what: &str, run: PoolRun<T>) -> Result<T, Error> {
    tokio::time::timeout(Duration::from_secs(8), run).await.unwrap_or_else(|_| panic!("never: {what}"))
}

fn a_panic_of_the_initializer_is_the_outcome() {
    let notes = switched();
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).initializer(does_what_the_switch_says).build().unwrap();
        // A report of a debug build takes half a second of looking for names.
        for _ in 0..2 {
            for how in ["panic", "panic later"] {
                std::fs::write(&notes.0, how).unwrap();
                let error = soon(how, pool.run(double, 1)).await.unwrap_err();
                let report = error.panic().unwrap_or_else(|| panic!("{error:?}"));
                assert!(report.to_string().contains("the initializer, on purpose"), "{report}");
                let task = error.task().unwrap();
                assert!(task.name().ends_with("double") && task.pid().is_some(), "{task}");
                // More than goes at once.
                let large = vec![1_u8; 4 << 20];
                let error = soon(how, pool.run(async |bytes: Vec<u8>| bytes.len(), large)).await.unwrap_err();
                assert!(error.is_panic(), "{error:?}");
            }
            std::fs::write(&notes.0, "").unwrap();
            assert_eq!(soon("double", pool.run(double, 4)).await.unwrap(), 8);
            std::fs::write(&notes.0, "panic").unwrap();
            // Who is up stays up.
            assert_eq!(soon("double", pool.run(double, 5)).await.unwrap(), 10);
            pool.run(async || std::process::abort(), ()).await.map(|()| ()).unwrap_err();
        }
    });
}

fn an_initializer_that_ends_its_worker_is_an_outcome() {
    let notes = switched();
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).initializer(does_what_the_switch_says).build().unwrap();
        for how in ["exit", "exit later", "abort"] {
            std::fs::write(&notes.0, how).unwrap();
            // The task did not begin, and nobody tries for ever.
            let error = soon(how, pool.run(double, 1)).await.unwrap_err();
            assert!(matches!(error, Error::EndedEarly { .. }), "{how}: {error:?}");
            assert!(error.task().unwrap().name().ends_with("double"), "{error}");
        }
        std::fs::write(&notes.0, "").unwrap();
        assert_eq!(soon("double", pool.run(double, 4)).await.unwrap(), 8);
    });
}

fn a_panic_costs_its_task_only() {
    undisturbed(|| async {
        let pool = pool(1);
        let worker = pool.run(pid, ()).await.unwrap();
        for _ in 0..20 {
            let panics = async |n: u32| -> u32 { panic!("on purpose {n}") };
            let error = pool.run(panics, 5).await.unwrap_err();
            assert!(error.panic().unwrap().to_string().contains("on purpose 5"), "{error}");
            assert_eq!(error.task().unwrap().pid(), Some(worker));
            assert!(error.task().unwrap().name().contains("panics") || !error.task().unwrap().name().is_empty());
            let late = async || {
                nap(1).await;
                panic!("later")
            };
            assert!(pool.run(late, ()).await.map(|()| ()).unwrap_err().is_panic());
            assert!(pool.run_blocking(|| panic!("plain"), ()).await.map(|()| ()).unwrap_err().is_panic());
            assert_eq!(pool.run(pid, ()).await.unwrap(), worker);
        }
    });
}

async fn exits() {
    std::process::exit(7);
}

async fn exits_with_0() {
    std::process::exit(0);
}

async fn aborts() {
    std::process::abort();
}

async fn cancels() {
    worker::cancel().await;
}

async fn is_killed() {
    send_signal(std::process::id(), libc::SIGKILL);
    std::future::pending().await
}

fn blocks_and_is_killed() {
    send_signal(std::process::id(), libc::SIGKILL);
    std::thread::sleep(Duration::from_secs(60));
}

fn however_a_worker_ends_its_task_hears_of_it() {
    undisturbed(|| async {
        let notes = Notes::new("stay");
        let pool = pool(1);
        for _ in 0..4 {
            let check = async |name: &str, run: PoolRun<()>, right: fn(&Error) -> bool| {
                let (before, served) = pool.run(count, ()).await.unwrap();
                assert_eq!(served, 1, "the last one is gone");
                let error = soon(name, run).await.unwrap_err();
                assert!(right(&error), "{name}: {error:?}");
                let task = error.task().unwrap();
                assert!(task.name().ends_with(name), "{name}: {task}");
                assert_eq!(task.pid(), Some(before), "{name}");
            };
            check("exits", pool.run(exits, ()), |e| e.exit_code() == Some(7)).await;
            check("exits_with_0", pool.run(exits_with_0, ()), |e| e.exit_code() == Some(0)).await;
            check("aborts", pool.run(aborts, ()), |e| e.signal() == Some(Signal::ABRT)).await;
            check("cancels", pool.run(cancels, ()), Error::is_cancelled).await;
            check("is_killed", pool.run(is_killed, ()), |e| e.signal() == Some(Signal::KILL)).await;
            let blocks = pool.run_blocking(blocks_and_is_killed, ());
            check("blocks_and_is_killed", blocks, |e| e.signal() == Some(Signal::KILL)).await;
            // From outside, in the middle of it.
            let _ = std::fs::remove_file(&notes.0);
            let killed = async {
                eventually("it has begun", || !notes.pids().is_empty()).await;
                send_signal(notes.pids()[0], libc::SIGKILL);
            };
            let stays = pool.run(says_and_stays, notes.path());
            tokio::join!(check("says_and_stays", stays, |e| e.signal() == Some(Signal::KILL)), killed);
        }
        assert_eq!(pool.run(count, ()).await.unwrap().1, 1);
    });
}

fn a_worker_killed_while_it_is_idle_is_replaced_unseen() {
    undisturbed(|| async {
        let pool = pool(3);
        for round in 0..20 {
            let pids = pool.map(async |_: u8| (nap(5).await, std::process::id()).1, 0..3).collect().await.unwrap();
            pids.iter().for_each(|&pid| Life::of(pid).kill());
            if round % 2 == 0 {
                eventually("they are gone", || pids.iter().all(|&pid| !is_alive(pid))).await;
            }
            for n in 0..3 {
                assert_eq!(soon("double", pool.run(double, n)).await.unwrap(), n * 2, "round {round}");
            }
            let large = vec![7_u8; 1 << 20];
            assert_eq!(soon("large", pool.run(async |b: Vec<u8>| b.len(), large)).await.unwrap(), 1 << 20);
        }
    });
}

fn a_dropped_future_ends_its_task() {
    undisturbed(|| async {
        let notes = Notes::new("stay");
        let pool = pool(2);
        for _ in 0..5 {
            let _ = std::fs::remove_file(&notes.0);
            let task = begin(pool.run(says_and_stays, notes.path())).await;
            let task = tokio::spawn(task);
            eventually("it has begun", || !notes.pids().is_empty()).await;
            let life = Life::of(notes.pids()[0]);
            assert_eq!(pool.run(double, 1).await.unwrap(), 2);
            task.abort();
            eventually("it is gone", || life.is_over()).await;
            assert_eq!(pool.map(double, 0..4).collect().await.unwrap(), [0, 2, 4, 6]);
        }
        // Never polled, and polled once.
        drop(pool.run(says_and_stays, notes.path()));
        drop(begin(pool.run(nap, 1)).await);
        assert_eq!(pool.map(double, 0..4).collect().await.unwrap(), [0, 2, 4, 6]);
    });
}

fn a_task_over_its_time_is_ended() {
    undisturbed_with(Zygote::builder().grace_period(Duration::from_millis(50)), |zygote| async move {
        let limit = Duration::from_millis(200);
        let notes = Notes::new("stay");
        let pool = zygote.pool().workers(1).task_timeout(limit).build().unwrap();
        let blocks = |path: String| {
            note(&path, &format!(" pid={} ", std::process::id()));
            std::thread::sleep(Duration::from_secs(60));
        };
        for blocking in [false, true, false] {
            let _ = std::fs::remove_file(&notes.0);
            let start = Instant::now();
            let run =
                if blocking { pool.run_blocking(blocks, notes.path()) } else { pool.run(says_and_stays, notes.path()) };
            let error = soon("a limit", run).await.unwrap_err();
            assert!(start.elapsed() >= limit);
            let Error::TimedOut { task, phase: Phase::Running, limit: found, .. } = &error else { panic!("{error:?}") };
            assert_eq!(*found, limit);
            assert_eq!(task.pid(), notes.pids().first().copied(), "{error}");
            let worker = task.pid().unwrap();
            eventually("it is gone", || !is_alive(worker)).await;
            assert_eq!(pool.run(double, 3).await.unwrap(), 6);
        }
    });
}

fn large_arguments_and_results() {
    undisturbed(|| async {
        let pool = pool(2);
        const SIZE: usize = 8 << 20;
        let large = || serde_bytes::ByteBuf::from((0..SIZE).map(|n| (n % 251) as u8).collect::<Vec<_>>());
        for _ in 0..3 {
            assert_eq!(pool.run(async |bytes: serde_bytes::ByteBuf| bytes.len(), large()).await.unwrap(), SIZE);
            let makes = || serde_bytes::ByteBuf::from((0..SIZE).map(|n| (n % 251) as u8).collect::<Vec<_>>());
            assert!(pool.run_blocking(makes, ()).await.unwrap() == large());
            let echo = async |bytes: serde_bytes::ByteBuf| bytes;
            let (a, b) = tokio::join!(pool.run(echo, large()), pool.run(echo, large()));
            assert!(a.unwrap() == large() && b.unwrap() == large());
        }
        assert_eq!(pool.idle_workers(), 2);
    });
}

#[derive(Debug, serde::Serialize)]
struct Odd(u8);

impl<'de> serde::Deserialize<'de> for Odd {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match <u8 as serde::Deserialize>::deserialize(deserializer)? {
            n if n % 2 == 1 => Ok(Self(n)),
            n => Err(serde::de::Error::custom(format!("{n} is even"))),
        }
    }
}

fn what_does_not_fit_or_decode_costs_its_task_only() {
    undisturbed_with(Zygote::builder().result_limit(1000), |zygote| async move {
        let pool = zygote.pool().workers(1).build().unwrap();
        let worker = pool.run(pid, ()).await.unwrap();
        for _ in 0..5 {
            let error = pool.run(async |n: usize| "x".repeat(n), 5000).await.unwrap_err();
            assert!(matches!(error, Error::TooLarge { limit: 1000, size, .. } if size > 5000), "{error:?}");
            assert_eq!(error.task().unwrap().pid(), Some(worker));
            assert_eq!(pool.run(async |n: usize| "x".repeat(n), 900).await.unwrap().len(), 900);
            let error = pool.run(async |odd: Odd| odd.0, Odd(2)).await.unwrap_err();
            let Error::Decode { what: Coded::Arguments, reason, task, .. } = &error else { panic!("{error:?}") };
            assert!(reason.contains("2 is even") && task.pid() == Some(worker), "{error}");
            assert_eq!(pool.run(async |odd: Odd| odd.0, Odd(3)).await.unwrap(), 3);
            let error = pool.run(async || Odd(4), ()).await.unwrap_err();
            assert!(matches!(error, Error::Decode { what: Coded::Result, .. }), "{error:?}");
            assert_eq!(pool.run(pid, ()).await.unwrap(), worker, "it goes on");
        }
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
