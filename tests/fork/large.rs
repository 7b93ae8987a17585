//! Values so large that they take long: others have their turn meanwhile, whoever goes away half-way ends it all, and a
//! lack of memory is an error.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio_run_in_process::{
    Bytes, Coded, Error, Phase, Pool, Signal, Task, Zygote, ZygoteBuilder, open_in_process, run_blocking_in_process,
    run_in_process,
};

use crate::{
    bytes::{Album, echoes, gives, is_made, made, takes},
    harness::{begin, children, eventually},
    options::spawn_error,
    oracle::{scratch, undisturbed, undisturbed_with},
    orphans::Life,
    runtimes::{current_thread, elsewhere},
    tools::{Notes, note},
    warm::kilobytes,
};

crate::cases![
    a_result_that_the_parent_has_no_memory_for,
    arguments_that_the_worker_has_no_memory_for;
    90 => d59_arguments_that_are_not_read,
    d59_transfers_that_are_dropped_half_way,
    d59_a_worker_that_is_killed_while_it_reads_or_writes,
    d59_a_warm_worker_that_is_killed_while_it_reads,
    large_values_both_ways_at_once,
    arguments_are_not_kept_while_their_task_runs,
    others_go_on_beside_64_megabytes,
    others_go_on_beside_a_gigabyte,
];

fn arguments_are_not_kept_while_their_task_runs() {
    async fn waits(bytes: Bytes, path: String) -> usize {
        while !std::path::Path::new(&path).exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bytes.len()
    }
    const SIZE: usize = 64 << 20;
    undisturbed(|| async {
        let go = scratch("go");
        let pool = Pool::builder().workers(1).build().unwrap();
        let before = kilobytes(std::process::id());
        for way in 0..3 {
            let grown = || kilobytes(std::process::id()) - before;
            let (bytes, path, pool) = (Bytes::from(made(SIZE)), go.clone(), pool.clone());
            assert!(grown() > 50_000, "they are here");
            let task = tokio::spawn(async move {
                match way {
                    0 => run_in_process(waits, (bytes, path)).await,
                    1 => open_in_process(waits, (bytes, path)).await.unwrap().wait().await,
                    _ => pool.run(waits, (bytes, path)).await,
                }
            });
            eventually("they are with the worker only", || grown() < 20_000).await;
            assert!(!task.is_finished());
            std::fs::write(&go, "").unwrap();
            assert_eq!(task.await.unwrap().unwrap(), SIZE);
            std::fs::remove_file(&go).unwrap();
        }
        drop(pool);
    });
}

/// Lets something happen on a runtime of one thread, while another task there wants to act every five milliseconds, and
/// gives how long that had to wait at most.
fn beside_a_heartbeat(act: impl AsyncFnOnce()) -> Duration {
    current_thread().block_on(async {
        let worst = Arc::new(Mutex::new(Duration::ZERO));
        let heart = tokio::spawn({
            let worst = worst.clone();
            async move {
                loop {
                    let before = Instant::now();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let mut worst = worst.lock().unwrap();
                    *worst = worst.max(before.elapsed());
                }
            }
        });
        tokio::task::yield_now().await;
        act().await;
        // One more beat, which shows the last gap.
        tokio::time::sleep(Duration::from_millis(10)).await;
        heart.abort();
        *worst.lock().unwrap()
    })
}

/// What may be on a busy machine. A caller that reads or sends everything before others have their turn takes longer.
const LATE: Duration = Duration::from_secs(1);

fn others_go_on_beside(size: usize, times: usize) {
    undisturbed(|| async {
        let bytes = Bytes::from(made(size));
        let task = Task::new().startup_timeout(Duration::from_secs(60));
        let pool = Pool::builder().workers(1).build().unwrap();
        for _ in 0..times {
            for way in 0..5 {
                let late = elsewhere(|| {
                    beside_a_heartbeat(async || match way {
                        0 => assert!(task.run(takes, (bytes.clone(), size)).await.unwrap()),
                        1 => assert!(task.run(gives, size).await.unwrap().len() == size),
                        2 => assert!(task.run(echoes, bytes.clone()).await.unwrap().len() == size),
                        3 => {
                            let process = task.open(echoes, bytes.clone()).await.unwrap();
                            assert!(process.wait().await.unwrap().len() == size);
                        }
                        _ => assert!(pool.run(echoes, bytes.clone()).await.unwrap().len() == size),
                    })
                });
                println!("{size} bytes, way {way}: others waited {late:?} at most");
                assert!(late < LATE, "{size} bytes, way {way}: {late:?}");
            }
        }
        // What came is right, which was not looked at while others waited.
        assert!(task.run(echoes, bytes.clone()).await.unwrap() == bytes);
    });
}

fn others_go_on_beside_64_megabytes() {
    others_go_on_beside(64 << 20, 3);
}

fn others_go_on_beside_a_gigabyte() {
    others_go_on_beside(1_000_000_000, 1);
}

/// Without warm workers, so that the only child of the zygote is the task's.
fn cold() -> ZygoteBuilder {
    Zygote::builder().warm(0).grace_period(Duration::from_millis(200))
}

async fn only_child(zygote: &Zygote) -> Life {
    let mut found = Vec::new();
    eventually("it is born", || {
        found = children(zygote.pid());
        found.len() == 1
    })
    .await;
    Life::of(found[0])
}

const MUCH: usize = 64 << 20;

fn d59_arguments_that_are_not_read() {
    undisturbed_with(cold(), |zygote| async move {
        // Long enough for it to be born on a busy machine.
        let task = zygote.task().startup_timeout(Duration::from_secs(3));
        let notes = Notes::new("never");
        let never = async |path: String, _: Bytes| note(&path, "ran");
        let arguments = (notes.path(), Bytes::from(made(MUCH)));
        // What fits is sent at the first poll; a worker that is stopped then has not begun.
        let run = begin(task.run(never, arguments.clone())).await;
        only_child(&zygote).await.signal(libc::SIGSTOP);
        let error = run.await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { phase: Phase::Starting, .. }), "{error:?}");
        eventually("it is gone", || zygote.metrics().alive == 0).await;
        // Dropped instead.
        let run = begin(task.run(never, arguments.clone())).await;
        only_child(&zygote).await.signal(libc::SIGSTOP);
        drop(run);
        eventually("it is gone", || zygote.metrics().alive == 0).await;
        // Nobody is blocked by it, the driver neither: others have their turn on each runtime meanwhile.
        let stopped = Life::of(zygote.pid());
        stopped.signal(libc::SIGSTOP);
        let late = elsewhere(|| {
            beside_a_heartbeat(async || {
                let (run, open) = (task.run(never, arguments.clone()), task.open(never, arguments.clone()));
                let (run, open) = tokio::join!(run, open);
                for error in [run.unwrap_err(), open.unwrap_err()] {
                    assert!(matches!(error, Error::TimedOut { phase: Phase::Starting, .. }), "{error:?}");
                    assert!(error.is_retryable());
                }
            })
        });
        stopped.signal(libc::SIGCONT);
        assert!(late < LATE, "{late:?}");
        assert_eq!(notes.text(), "");
    });
}

fn d59_transfers_that_are_dropped_half_way() {
    undisturbed_with(Zygote::builder().grace_period(Duration::from_millis(200)), |zygote| async move {
        let bytes = Bytes::from(made(MUCH));
        let pool = zygote.pool().workers(2).build().unwrap();
        for millis in [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89] {
            let within = Duration::from_millis(millis);
            let hasty = zygote.task().timeout(Duration::from_millis(10));
            let _ = tokio::time::timeout(within, zygote.run_in_process(takes, (bytes.clone(), MUCH))).await;
            let _ = tokio::time::timeout(within, zygote.run_in_process(gives, MUCH)).await;
            let _ = tokio::time::timeout(within, pool.run(echoes, bytes.clone())).await;
            if let Ok(process) = tokio::time::timeout(within, zygote.open_in_process(echoes, bytes.clone())).await {
                let _ = tokio::time::timeout(within, process.unwrap().wait()).await;
            }
            // It has them, and does not end by itself.
            let stays = async |_: Bytes| pending::<()>().await;
            let error = hasty.run(stays, bytes.clone()).await.unwrap_err();
            assert!(matches!(error, Error::TimedOut { phase: Phase::Running, .. }), "{error:?}");
        }
        drop(pool);
    });
}

fn d59_a_worker_that_is_killed_while_it_reads_or_writes() {
    undisturbed_with(cold(), |zygote| async move {
        let bytes = Bytes::from(made(MUCH));
        let run = begin(zygote.run_in_process(takes, (bytes.clone(), MUCH))).await;
        only_child(&zygote).await.kill();
        let error = run.await.unwrap_err();
        assert!(matches!(error, Error::EndedEarly { .. }) && error.is_retryable(), "{error:?}");
        let notes = Notes::new("gives");
        let gives = async |path: String| {
            note(&path, "now");
            Bytes::from(made(MUCH))
        };
        // Nobody reads, so it cannot be through.
        let run = begin(zygote.run_in_process(gives, notes.path())).await;
        notes.say("now").await;
        only_child(&zygote).await.kill();
        let error = run.await.unwrap_err();
        assert_eq!(error.signal(), Some(Signal::KILL), "{error:?}");
    });
}

fn d59_a_warm_worker_that_is_killed_while_it_reads() {
    undisturbed_with(Zygote::builder().warm(1), |zygote| async move {
        let album = Album::of(300);
        for _ in 0..5 {
            let all_stand = || zygote.metrics().warm == 1 && children(zygote.pid()).len() == 1;
            eventually("one stands", all_stand).await;
            let spare = only_child(&zygote).await;
            let run = begin(zygote.run_in_process(async |album: Album| album, album.clone())).await;
            spare.kill();
            assert!(run.await.unwrap() == album, "another one has it, whole");
        }
    });
}

fn large_values_both_ways_at_once() {
    undisturbed(|| async {
        let bytes = Bytes::from(made(8 << 20));
        let pool = Pool::builder().workers(2).build().unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..40 {
            let (bytes, pool) = (bytes.clone(), pool.clone());
            tasks.spawn(async move {
                match n % 4 {
                    0 => run_in_process(echoes, bytes).await,
                    1 => open_in_process(echoes, bytes).await.unwrap().wait().await,
                    2 => run_blocking_in_process(|bytes: Bytes| bytes, bytes).await,
                    _ => pool.run(echoes, bytes).await,
                }
            });
        }
        while let Some(came) = tasks.join_next().await {
            assert!(came.unwrap().unwrap() == bytes);
        }
        drop(pool);
    });
}

/// How much more memory this process, and what it starts, may map.
fn set_room(more: u64) {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live rlimit.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) }, 0);
    limit.rlim_cur = if more == u64::MAX { limit.rlim_max } else { pages * 4096 + more };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
}

fn a_result_that_the_parent_has_no_memory_for() {
    undisturbed(|| async {
        let size = 600 << 20;
        let pool = Pool::builder().workers(1).build().unwrap();
        assert!(pool.run(gives, 10).await.is_ok());
        set_room(300 << 20);
        let results = [
            run_in_process(gives, size).await,
            open_in_process(gives, size).await.unwrap().wait().await,
            pool.run(gives, size).await,
        ];
        set_room(u64::MAX);
        for result in results {
            let error = result.unwrap_err();
            let Error::Decode { what: Coded::Result, reason, .. } = &error else { panic!("{error:?}") };
            assert!(reason.contains("memory"), "{reason}");
        }
        assert!(is_made(&run_in_process(gives, size).await.unwrap(), size), "there is enough again");
        assert!(is_made(&pool.run(gives, 10).await.unwrap(), 10));
        drop(pool);
    });
}

fn arguments_that_the_worker_has_no_memory_for() {
    set_room(600 << 20);
    undisturbed(|| async {
        // The zygote, and so its workers, keep the limit.
        set_room(u64::MAX);
        let size = 900 << 20;
        let bytes = Bytes::from(vec![0; size]);
        let pool = Pool::builder().workers(1).build().unwrap();
        let length = async |bytes: Bytes| bytes.len();
        let outcomes = [
            run_in_process(length, bytes.clone()).await,
            match open_in_process(length, bytes.clone()).await {
                Ok(process) => process.wait().await,
                Err(error) => Err(error),
            },
            pool.run(length, bytes.clone()).await,
        ];
        for outcome in outcomes {
            let error = outcome.unwrap_err();
            assert_eq!(spawn_error(&error).1.raw_os_error(), Some(libc::ENOMEM), "{error:?}");
            assert!(error.is_retryable());
        }
        assert_eq!(run_in_process(length, vec![0; 10 << 20].into()).await.unwrap(), 10 << 20);
        drop(pool);
    });
}
