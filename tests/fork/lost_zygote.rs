//! A zygote ends in the middle of everything, and its program goes on.

use std::time::Duration;

use tokio_run_in_process::{Error, ExitStatus, Signal, Stdio, Zygote};

use crate::{
    harness::{capabilities, eventually, multi_thread, without_warm_workers},
    oracle::scratch,
    orphans::{Life, open_until_it_says_so, rest, stubborn},
};

crate::cases![
    e61_a_killed_zygote_leaves_running_tasks_alone,
    e61_a_task_can_be_ended_after_its_zygote,
    e61_a_task_can_be_dropped_after_its_zygote;
    90 => e62_a_zygote_killed_while_tasks_start_and_end,
    e62_a_zygote_lost_while_it_forks_another,
    e62_a_zygote_killed_before_it_read_its_orders,
    e62_a_zygote_killed_before_it_killed_a_task,
];

/// Kills the zygote and waits until it is gone.
async fn kill_zygote(zygote: &Zygote) {
    let life = Life::of(zygote.pid());
    life.kill();
    eventually("the zygote is gone", || life.is_over()).await;
}

/// Waits until the file `path` is there.
async fn patient(path: String, n: u64) -> u64 {
    std::fs::write(format!("{path}-{n}"), std::process::id().to_string()).unwrap();
    while !std::path::Path::new(&path).exists() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    n * 1_000_003
}

fn patient_without_a_runtime(path: String, n: u64) -> u64 {
    std::fs::write(format!("{path}-{n}"), std::process::id().to_string()).unwrap();
    while !std::path::Path::new(&path).exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    n * 1_000_003
}

/// The process of a patient task that has begun.
async fn patients_life(path: &str, n: u64) -> Life {
    let path = format!("{path}-{n}");
    let read = || std::fs::read_to_string(&path).ok()?.parse().ok();
    eventually("it has begun", || read().is_some()).await;
    let pid = read().unwrap();
    std::fs::remove_file(path).unwrap();
    Life::of(pid)
}

/// What must come soon, so that it is a failure with a name if it does not.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

fn e61_a_killed_zygote_leaves_running_tasks_alone() {
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        let path = scratch("go");
        let run = tokio::spawn(zygote.run_in_process(patient, (path.clone(), 1)));
        let run_blocking = tokio::spawn(zygote.run_blocking_in_process(patient_without_a_runtime, (path.clone(), 2)));
        let opened = zygote.open_in_process(patient, (path.clone(), 3)).await.unwrap();
        let opened_blocking =
            zygote.open_blocking_in_process(patient_without_a_runtime, (path.clone(), 4)).await.unwrap();
        let mut lives = Vec::new();
        for n in 1..=4 {
            lives.push(patients_life(&path, n).await);
        }
        kill_zygote(&zygote).await;
        for n in 0..3 {
            let next = "the next zygote";
            assert_eq!(soon(next, zygote.run_in_process(async |n: u8| n, n)).await.unwrap(), n);
            let process = soon(next, zygote.open_in_process(async |n: u8| n, n)).await.unwrap();
            assert_eq!(soon(next, process.wait()).await.unwrap(), n);
            assert_eq!(soon(next, zygote.run_blocking_in_process(|n: u8| n, n)).await.unwrap(), n);
        }
        assert!(lives.iter().all(|life| !life.is_over()), "they go on");
        std::fs::write(&path, "").unwrap();
        assert_eq!(soon("a value of run", run).await.unwrap().unwrap(), 1_000_003);
        assert_eq!(soon("a value of run, plain", run_blocking).await.unwrap().unwrap(), 2 * 1_000_003);
        for (process, n) in [(&opened, 3), (&opened_blocking, 4)] {
            assert_eq!(soon("a value of open", process.wait()).await.unwrap(), n * 1_000_003);
            let (status, usage) = soon("an exit", process.exited()).await;
            if inherits() {
                assert_eq!(status, ExitStatus::Exited(0));
                assert!(usage.is_some());
            } else {
                // Whoever reaps it now may be late.
                assert!([ExitStatus::Exited(0), ExitStatus::Unknown].contains(&status), "{status:?}");
                assert!(usage.is_none());
            }
        }
        eventually("they are gone", || lives.iter().all(|life| life.is_over())).await;
        std::fs::remove_file(path).unwrap();
    });
}

/// Whether an ancestor inherits the workers of a zygote that it forked.
pub(crate) fn inherits() -> bool {
    capabilities() == "all"
}

/// Whether the library can signal a worker without a zygote.
fn has_pidfd() -> bool {
    capabilities() != "none"
}

fn e61_a_task_can_be_ended_after_its_zygote() {
    let zygote = Zygote::builder().grace_period(Duration::from_millis(300)).start().unwrap();
    multi_thread().block_on(async {
        let mut all = Vec::new();
        for kind in ["asleep", "stubborn", "asleep", "blocked", "asleep"] {
            let (process, _) = open_until_it_says_so(&zygote, kind).await;
            let life = Life::of(process.pid());
            all.push((process, life));
        }
        let task = zygote.task().timeout(Duration::from_secs(2)).stdout(Stdio::null());
        let limited = task.open_blocking(stubborn, ()).await.unwrap();
        let limited_life = Life::of(limited.pid());
        kill_zygote(&zygote).await;
        assert!(all.iter().all(|(_, life)| !life.is_over()), "they go on");
        let ended = |error: &Error, signal| match error {
            Error::Signaled { signal: found, .. } => *found == signal,
            // How it ended is not known everywhere.
            Error::ZygoteLost { started, .. } => *started == Some(true),
            _ => false,
        };
        for (what, (process, life)) in ["kill", "kill", "terminate", "shutdown", "shutdown"].iter().zip(&all) {
            match *what {
                "kill" => process.kill().unwrap(),
                "terminate" if has_pidfd() => process.terminate().unwrap(),
                "terminate" => {
                    // Only the zygote could have done it, and no other process may be meant by mistake.
                    process.terminate().unwrap_err();
                    process.kill().unwrap();
                }
                _ => drop(soon("shutdown", process.shutdown()).await),
            }
            let error = soon(what, process.wait()).await.unwrap_err();
            let signal = if *what == "kill" { Signal::KILL } else { Signal::TERM };
            assert!(ended(&error, signal) || *what == "shutdown" && error.is_cancelled(), "{what}: {error:?}");
            soon("an exit", process.exited()).await;
            eventually("the worker is gone", || life.is_over()).await;
        }
        let error = soon("a timeout", limited.wait()).await.unwrap_err();
        assert!(error.is_timeout(), "{error:?}");
        soon("an exit", limited.exited()).await;
        eventually("the worker is gone", || limited_life.is_over()).await;
    });
}

fn e61_a_task_can_be_dropped_after_its_zygote() {
    let zygote = Zygote::builder().grace_period(Duration::from_millis(300)).start().unwrap();
    multi_thread().block_on(async {
        let path = scratch("never");
        let run = tokio::spawn(zygote.run_in_process(patient, (path.clone(), 1)));
        let run_blocking = tokio::spawn(zygote.run_blocking_in_process(patient_without_a_runtime, (path.clone(), 2)));
        let mut lives = vec![patients_life(&path, 1).await, patients_life(&path, 2).await];
        let mut processes = Vec::new();
        for kind in ["asleep", "stubborn", "busy", "blocked"] {
            let (process, _) = open_until_it_says_so(&zygote, kind).await;
            lives.push(Life::of(process.pid()));
            processes.push(process);
        }
        kill_zygote(&zygote).await;
        assert!(lives.iter().all(|life| !life.is_over()), "they go on");
        run.abort();
        run_blocking.abort();
        drop(processes);
        eventually("they are gone", || lives.iter().all(|life| life.is_over())).await;
    });
}

fn e62_a_zygote_killed_while_tasks_start_and_end() {
    let first = Zygote::builder().start().unwrap();
    let mut random = 0x5eed_u64;
    multi_thread().block_on(async {
        for round in 0..40_u64 {
            let zygote = Zygote::builder().max_processes(40).grace_period(Duration::from_millis(100)).start().unwrap();
            let mut tasks = tokio::task::JoinSet::new();
            for n in 0..40_u64 {
                let zygote = zygote.clone();
                tasks.spawn(async move {
                    let outcome = match n % 4 {
                        0 => zygote.run_in_process(async |n: u64| n + 1, n).await,
                        1 => async { zygote.open_in_process(async |n: u64| n + 1, n).await?.wait().await }.await,
                        2 => zygote.run_blocking_in_process(|n: u64| n + 1, n).await,
                        _ => match zygote.open_blocking_in_process(|_: u64| -> u64 { rest() }, n).await {
                            Ok(process) => {
                                process.shutdown().await;
                                assert!(process.wait().await.is_err());
                                Ok(n + 1)
                            }
                            Err(e) => Err(e),
                        },
                    };
                    match outcome {
                        Ok(found) => assert_eq!(found, n + 1),
                        Err(e) => assert!(matches!(e, Error::ZygoteLost { .. }), "{n}: {e:?}"),
                    }
                });
            }
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            tokio::time::sleep(Duration::from_micros((random >> 33) % 30_000)).await;
            kill_zygote(&zygote).await;
            while let Some(task) = soon(&format!("an outcome in round {round}"), tasks.join_next()).await {
                task.unwrap();
            }
        }
        assert_eq!(first.run_in_process(async || 5, ()).await.unwrap(), 5);
    });
}

/// Stops the zygote, as if it were slow.
async fn stop(life: Life) {
    life.signal(libc::SIGSTOP);
    eventually("it is stopped", || life.state() == Some('T')).await;
}

fn e62_a_zygote_lost_while_it_forks_another() {
    let first = Zygote::builder().start().unwrap();
    let second = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        let life = Life::of(second.pid());
        stop(life).await;
        // The order goes to the newest zygote, which will not read it.
        let third = tokio::task::spawn_blocking(|| Zygote::builder().start());
        tokio::time::sleep(Duration::from_millis(50)).await;
        life.kill();
        let third = third.await.unwrap().unwrap();
        assert_eq!(third.run_in_process(async || 3, ()).await.unwrap(), 3);
        assert_eq!(first.run_in_process(async || 1, ()).await.unwrap(), 1);
    });
}

fn e62_a_zygote_killed_before_it_read_its_orders() {
    without_warm_workers();
    let zygote = Zygote::builder().max_processes(600).start().unwrap();
    multi_thread().block_on(async {
        assert_eq!(zygote.run_in_process(async || 1, ()).await.unwrap(), 1);
        let life = Life::of(zygote.pid());
        stop(life).await;
        // More than the socket holds, and as many again that have not had their turn.
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..1200 {
            let zygote = zygote.clone();
            tasks.spawn(async move {
                match n % 2 {
                    0 => zygote.run_in_process(async || 1, ()).await,
                    _ => async { zygote.open_in_process(async || 1, ()).await?.wait().await }.await,
                }
            });
        }
        eventually("the first have their turn", || zygote.available_processes() == 0).await;
        life.kill();
        while let Some(outcome) = soon("an outcome", tasks.join_next()).await {
            // None had begun, so all go to the next zygote.
            assert_eq!(outcome.unwrap().unwrap(), 1);
        }
    });
}

/// The signals that were on their way are lost with the zygote; what they were to do is not.
fn e62_a_zygote_killed_before_it_killed_a_task() {
    let zygote = Zygote::builder().grace_period(Duration::ZERO).start().unwrap();
    multi_thread().block_on(async {
        let mut lives = Vec::new();
        let mut processes = Vec::new();
        for kind in ["asleep", "stubborn", "asleep", "stubborn"] {
            let (process, _) = open_until_it_says_so(&zygote, kind).await;
            lives.push(Life::of(process.pid()));
            processes.push(process);
        }
        let path = scratch("never");
        let run = tokio::spawn(zygote.run_in_process(patient, (path.clone(), 1)));
        lives.push(patients_life(&path, 1).await);
        let life = Life::of(zygote.pid());
        stop(life).await;
        let [first, second, third, fourth] = processes.try_into().unwrap();
        first.kill().unwrap();
        second.kill().unwrap();
        drop((third, fourth));
        run.abort();
        let _ = run.await;
        life.kill();
        for process in [first, second] {
            assert!(soon("an outcome", process.wait()).await.is_err());
            soon("an exit", process.exited()).await;
        }
        eventually("they are gone", || lives.iter().all(|life| life.is_over())).await;
    });
}
