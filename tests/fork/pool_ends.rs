//! Workers of a pool that end: with a task, by an initializer, over a limit, killed. What the task hears, and that the next
//! one is served.

#![expect(clippy::map_identity, reason = "it says what a task that never returns would return")]

use std::time::{Duration, Instant};

use tokio_run_in_process::{Coded, Error, Phase, Pool, PoolRun, Signal, Zygote, worker};

use crate::{
    harness::{begin, capabilities, eventually, is_alive, send_signal},
    hostile_sockets::{daemon, end},
    oracle::{undisturbed, undisturbed_with},
    orphans::Life,
    pool::{count, double, nap, pid, pool, says_and_stays},
    tools::{Notes, note},
};

crate::cases![
    a_panic_of_the_initializer_is_the_outcome,
    an_initializer_that_ends_its_worker_is_an_outcome,
    a_panic_costs_its_task_only,
    however_a_worker_ends_its_task_hears_of_it,
    a_worker_killed_while_it_is_idle_is_replaced_unseen,
    a_worker_told_to_end_while_it_is_idle_ends_and_costs_no_task,
    a_worker_whose_line_somebody_holds_is_not_waited_for,
    an_idle_worker_that_is_killed_is_replaced_though_somebody_holds_its_line,
    a_dropped_future_ends_its_task,
    a_task_over_its_time_is_ended,
    large_arguments_and_results,
    what_does_not_fit_or_decode_costs_its_task_only,
];

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

fn a_worker_told_to_end_while_it_is_idle_ends_and_costs_no_task() {
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        for signal in [libc::SIGTERM, libc::SIGINT] {
            for _ in 0..20 {
                let first = pool.run(pid, ()).await.unwrap();
                // It may be leaving already: it served the last task all the same.
                // SAFETY: touches no memory.
                unsafe { libc::kill(first.try_into().unwrap(), signal) };
                // At once, or when it is gone: the next task does not notice.
                if signal == libc::SIGINT {
                    eventually("it ends though it is idle", || !is_alive(first)).await;
                }
            }
        }
        // One who took the signal over in a task before goes on with it.
        let takes = async || std::mem::forget(worker::signal(Signal::TERM).unwrap());
        pool.run(takes, ()).await.unwrap();
        let first = pool.run(pid, ()).await.unwrap();
        send_signal(first, libc::SIGTERM);
        assert_eq!(pool.run(pid, ()).await.unwrap(), first);
    });
}

/// Leaves a process behind that has all that the worker has, and is in no group of its.
fn leaves_a_daemon(path: String) -> u32 {
    daemon(&path, || std::thread::sleep(Duration::from_secs(600)));
    std::process::id()
}

fn a_worker_whose_line_somebody_holds_is_not_waited_for() {
    undisturbed(|| async {
        let (left, begun) = (Notes::new("left"), Notes::new("begun"));
        let pool = pool(1);
        let stays = async |left: String, begun: String| {
            leaves_a_daemon(left);
            says_and_stays(begun).await
        };
        let killed = async {
            eventually("it has begun", || !begun.pids().is_empty()).await;
            send_signal(begun.pids()[0], libc::SIGKILL);
        };
        let run = pool.run(stays, (left.path(), begun.path()));
        let (outcome, ()) = tokio::join!(soon("killed", run), killed);
        end(&left);
        assert_eq!(outcome.unwrap_err().signal(), Some(Signal::KILL));
        assert_eq!(pool.run(double, 1).await.unwrap(), 2);
    });
}

fn an_idle_worker_that_is_killed_is_replaced_though_somebody_holds_its_line() {
    undisturbed(|| async {
        let pool = pool(1);
        for size in [0, 4 << 20] {
            let left = Notes::new("left");
            let worker = pool.run_blocking(leaves_a_daemon, left.path()).await.unwrap();
            Life::of(worker).kill();
            eventually("it is gone", || !is_alive(worker)).await;
            let large = serde_bytes::ByteBuf::from(vec![1_u8; size]);
            let outcome = soon("its turn", pool.run(async |bytes: serde_bytes::ByteBuf| bytes.len(), large)).await;
            end(&left);
            match outcome {
                Ok(found) => assert_eq!(found, size),
                // A small one is sent at once, and where the kernel does not say that nobody read it, it may have begun.
                Err(e) => assert!(capabilities() != "all" && size == 0 && e.signal() == Some(Signal::KILL), "{e:?}"),
            }
            assert_eq!(pool.run(double, 1).await.unwrap(), 2);
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
