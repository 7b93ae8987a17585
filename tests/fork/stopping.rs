//! How a task is stopped: what still runs, what dies with it, what its outcome says.

use std::{
    future::pending,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tokio_run_in_process::{Error, ExitStatus, Signal, Task, default_zygote, worker};

use crate::{
    harness::{children, eventually, is_alive, multi_thread, without_warm_workers},
    hygiene::{bit, signals},
    oracle::undisturbed,
    tools::{Notes, Says, dead, note, signal, stubborn, stubborn_blocking},
};

crate::cases![
    destructors_run_however_a_task_is_ended,
    destructors_run_under_smol,
    a_signal_before_the_first_poll_ends_a_task,
    what_is_in_its_group_dies_with_a_worker_that_is_killed,
    what_is_in_its_group_dies_with_a_worker_that_leaves,
    an_escalation_goes_on_when_its_caller_is_gone,
    a_plain_function_has_the_default_action_unless_it_took_the_signal_over,
    a_signal_that_is_given_back_acts_as_before,
    threads_take_a_signal_over_and_give_it_back_at_once,
];

const GRACE: Duration = Duration::from_millis(400);
/// Longer than any case: what ends before it, ended politely.
const LONG: Duration = Duration::from_secs(600);

async fn leaves_traces(path: String) {
    let _task = Says(path.clone(), "task ");
    let (spawned, local, unpolled) =
        (Says(path.clone(), "spawned "), Says(path.clone(), "local "), Says(path.clone(), "unpolled "));
    let spawned = tokio::spawn(async move {
        let _spawned = spawned;
        pending::<()>().await
    });
    tokio::task::spawn_local(async move {
        let _local = local;
        pending::<()>().await
    });
    tokio::task::yield_now().await;
    drop(tokio::spawn(async move {
        let _unpolled = unpolled;
        pending::<()>().await
    }));
    note(&path, &format!(" pid={} ready ", std::process::id()));
    drop(spawned.await);
}

/// The task's own destructors first, then those of what it spawned, each once.
fn assert_traces(notes: &Notes, way: &str) {
    let text = notes.text();
    let (_, after) = text.split_once(" ready ").unwrap();
    assert!(after.starts_with("task "), "{way}: {after}");
    let mut words: Vec<_> = after.split_whitespace().collect();
    words.sort_unstable();
    assert_eq!(words, ["local", "spawned", "task", "unpolled"], "{way}");
}

fn is_signaled(error: &Error, by: Signal) {
    assert!(matches!(error, Error::Signaled { signal, .. } if *signal == by), "{error:?}");
}

fn destructors_run_however_a_task_is_ended() {
    without_warm_workers();
    undisturbed(|| async {
        let zygote = default_zygote().unwrap();
        let task = Task::new().grace_period(LONG);
        for way in ["terminate", "interrupt", "kill -TERM", "kill -INT", "shutdown", "drop", "drop a run", "timeout"] {
            let notes = Notes::new(way);
            let timed = task.clone().timeout(Duration::from_millis(1500));
            match way {
                "timeout" => {
                    assert!(timed.run(leaves_traces, notes.path()).await.unwrap_err().is_timeout());
                }
                "drop a run" => tokio::select! {
                    outcome = task.run(leaves_traces, notes.path()) => panic!("{outcome:?}"),
                    () = notes.say("ready") => {}
                },
                _ => {
                    let process = task.open(leaves_traces, notes.path()).await.unwrap();
                    notes.say("ready").await;
                    let expected = if way.to_lowercase().contains("int") { Signal::INT } else { Signal::TERM };
                    match way {
                        "terminate" => process.terminate().unwrap(),
                        "interrupt" => process.send_signal(Signal::INT).unwrap(),
                        "kill -TERM" | "kill -INT" => signal(process.pid(), expected.number()),
                        "shutdown" => drop(process.shutdown().await),
                        _ => {}
                    }
                    if way == "drop" {
                        drop(process);
                    } else {
                        let error = process.wait().await.unwrap_err();
                        assert_eq!(process.exited().await.0.signal(), Some(expected));
                        match way {
                            "shutdown" => assert!(error.is_cancelled(), "{error:?}"),
                            _ => is_signaled(&error, expected),
                        }
                    }
                }
            }
            eventually("it is gone", || children(zygote.pid()).is_empty()).await;
            assert_traces(&notes, way);
        }
    });
}

#[cfg(not(feature = "smol"))]
fn destructors_run_under_smol() {
    crate::harness::skip("the feature smol is off");
}

#[cfg(feature = "smol")]
fn destructors_run_under_smol() {
    use tokio_run_in_process::Smol;

    async fn leaves_traces(path: String) {
        let _task = Says(path.clone(), "task ");
        let spawn = |word| {
            let traces = Says(path.clone(), word);
            Smol::spawn(async move {
                let _traces = traces;
                pending::<()>().await
            })
        };
        let _kept = spawn("kept ");
        spawn("detached ").detach();
        note(&path, " ready ");
        pending().await
    }
    undisturbed(|| async {
        let notes = Notes::new("smol");
        let task = Task::new().grace_period(LONG).runtime::<Smol>();
        let process = task.open(leaves_traces, notes.path()).await.unwrap();
        notes.say("ready").await;
        process.terminate().unwrap();
        is_signaled(&process.wait().await.unwrap_err(), Signal::TERM);
        let mut words: Vec<_> = notes.text().split_whitespace().skip(1).map(str::to_owned).collect();
        assert_eq!(words[0], "task");
        words.sort_unstable();
        assert_eq!(words, ["detached", "kept", "task"]);
    });
}

/// Sent as soon as there is a handle, by any means: it is neither lost nor deadly to the destructors.
fn a_signal_before_the_first_poll_ends_a_task() {
    undisturbed(|| async {
        for round in 0..50 {
            let process = Task::new().grace_period(LONG).open(pending::<()>, ()).await.unwrap();
            let expected = [Signal::TERM, Signal::INT][round % 2];
            match round % 4 {
                0 | 1 => process.send_signal(expected).unwrap(),
                _ => signal(process.pid(), expected.number()),
            }
            is_signaled(&process.wait().await.unwrap_err(), expected);
        }
    });
}

/// Starts a program that is deaf to polite signals, and gives its pid.
#[expect(clippy::zombie_processes, reason = "it outlives its worker if it can")]
fn deaf_child(path: &str) {
    let script = format!("trap '' TERM INT HUP; echo ' pid='$$' child ' >> {path}; exec sleep 1000");
    let mut child = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap();
    while !std::fs::read_to_string(path).unwrap_or_default().contains(" child ") {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn what_is_in_its_group_dies_with_a_worker_that_is_killed() {
    undisturbed(|| async {
        let with_child = async |path: String| {
            deaf_child(&path);
            stubborn(path).await;
        };
        let with_child_blocking = |path: String| {
            deaf_child(&path);
            stubborn_blocking(path);
        };
        let task = Task::new().grace_period(GRACE);
        for way in 0..4 {
            let notes = Notes::new(&format!("group-{way}"));
            let process = match way % 2 {
                0 => task.open(with_child, notes.path()).await.unwrap(),
                _ => task.open_blocking(with_child_blocking, notes.path()).await.unwrap(),
            };
            notes.say("ready").await;
            let [child, worker] = notes.pids()[..] else { panic!("{}", notes.text()) };
            assert!(worker == process.pid() && is_alive(child));
            let start = Instant::now();
            if way < 2 {
                drop(process);
            } else {
                let (status, _) = process.shutdown().await;
                assert_eq!(status.signal(), Some(Signal::KILL));
                // It was told after the group was killed.
                assert!(start.elapsed() >= GRACE);
            }
            let after = dead(child, start).await;
            assert!(after >= GRACE, "{after:?}");
            dead(worker, start).await;
        }
    });
}

fn what_is_in_its_group_dies_with_a_worker_that_leaves() {
    undisturbed(|| async {
        let leaves = async |path: String, value: bool| {
            deaf_child(&path);
            note(&path, "ready");
            if !value {
                pending::<()>().await;
            }
        };
        for value in [true, false] {
            let notes = Notes::new(&format!("group-{value}"));
            let process = Task::new().grace_period(LONG).open(leaves, (notes.path(), value)).await.unwrap();
            notes.say("ready").await;
            if !value {
                process.terminate().unwrap();
            }
            assert_eq!(process.wait().await.is_ok(), value);
            dead(notes.pids()[0], Instant::now()).await;
        }
        // Nor does what it started keep the output that its caller reads.
        let notes = Notes::new("group-kill");
        let process = Task::new().open(leaves, (notes.path(), false)).await.unwrap();
        notes.say("ready").await;
        process.kill().unwrap();
        assert_eq!(process.exited().await.0.signal(), Some(Signal::KILL));
        dead(notes.pids()[0], Instant::now()).await;
    });
}

/// The caller, and the runtime that it ran on.
fn an_escalation_goes_on_when_its_caller_is_gone() {
    undisturbed(|| async {
        for way in 0..4 {
            let notes = Notes::new(&format!("gone-{way}"));
            let path = notes.path();
            let caller = move || {
                let runtime = multi_thread();
                let task = Task::new().grace_period(GRACE);
                let ready = || std::fs::read_to_string(&path).unwrap_or_default().contains("ready");
                let process = runtime.block_on(async {
                    let process = if way < 2 {
                        drop(tokio::spawn(task.run(stubborn, path.clone())));
                        None
                    } else {
                        Some(task.open(stubborn, path.clone()).await.unwrap())
                    };
                    eventually("it is ready", ready).await;
                    process
                });
                let start = Instant::now();
                match way {
                    0 => drop(runtime),
                    1 => runtime.shutdown_background(),
                    2 => drop((process, runtime)),
                    _ => drop((runtime, process)),
                }
                start
            };
            let start = tokio::task::spawn_blocking(caller).await.unwrap();
            let after = dead(notes.pids()[0], start).await;
            assert!(after >= GRACE, "{way}: {after:?}");
            // One may have gone under if the machine was busy for the whole grace period.
            assert!(notes.text().matches("TERM").count() <= 1, "{way}: {}", notes.text());
        }
    });
}

fn a_plain_function_has_the_default_action_unless_it_took_the_signal_over() {
    undisturbed(|| async {
        let sleeps = |path: String| {
            let _not_run = Says(path.clone(), "dropped ");
            note(&path, "ready ");
            std::thread::sleep(LONG);
        };
        let task = Task::new().grace_period(LONG);
        for (round, expected) in [Signal::TERM, Signal::INT, Signal::TERM].into_iter().enumerate() {
            let notes = Notes::new(&format!("blocking-{round}"));
            let process = task.open_blocking(sleeps, notes.path()).await.unwrap();
            notes.say("ready").await;
            if round == 2 {
                process.shutdown().await;
                assert!(process.wait().await.unwrap_err().is_cancelled());
            } else {
                process.send_signal(expected).unwrap();
                is_signaled(&process.wait().await.unwrap_err(), expected);
            }
            assert_eq!(process.exited().await.0.signal(), Some(expected));
            assert_eq!(notes.text(), "ready ", "it cannot be dropped half-way");
        }
        let takes_over = |path: String| -> u64 {
            let mut terms = worker::signal(Signal::TERM).unwrap();
            note(&path, "ready ");
            terms.recv_blocking();
            7
        };
        for way in 0..2 {
            let notes = Notes::new(&format!("over-{way}"));
            let process = task.open_blocking(takes_over, notes.path()).await.unwrap();
            notes.say("ready").await;
            if way == 0 {
                process.terminate().unwrap();
            } else {
                assert_eq!(process.shutdown().await.0, ExitStatus::Exited(0));
            }
            assert_eq!(process.wait().await.unwrap(), 7);
        }
        let gives_back = |path: String| -> u64 {
            drop(worker::signal(Signal::TERM).unwrap());
            note(&path, "ready ");
            std::thread::sleep(LONG);
            7
        };
        let notes = Notes::new("back");
        let process = task.open_blocking(gives_back, notes.path()).await.unwrap();
        notes.say("ready").await;
        process.terminate().unwrap();
        is_signaled(&process.wait().await.unwrap_err(), Signal::TERM);
    });
}

extern "C" fn nothing(_: libc::c_int) {}

/// Whether each signal does, when it is given back, what it did: SIGPIPE is ignored in a Rust program.
fn a_signal_that_is_given_back_acts_as_before() {
    fn gives_back() {
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGUSR2, nothing as *const () as libc::sighandler_t) };
        let [_, _, ignored, caught] = signals();
        assert!(ignored & bit(libc::SIGPIPE) != 0 && caught & bit(libc::SIGUSR2) != 0);
        for taken in [Signal::PIPE, Signal::USR1, Signal::USR2, Signal::HUP] {
            for _ in 0..2 {
                let (first, second) = (worker::signal(taken).unwrap(), worker::signal(taken).unwrap());
                drop(first);
                assert!(signals()[3] & bit(taken.number()) != 0, "{taken} is still taken over");
                drop(second);
                assert_eq!(signals()[2..], [ignored, caught], "{taken}");
            }
        }
    }
    undisturbed(|| async {
        Task::new().run(async || gives_back(), ()).await.unwrap();
        Task::new().run_blocking(gives_back, ()).await.unwrap();
    });
}

fn threads_take_a_signal_over_and_give_it_back_at_once() {
    fn takes() {
        let threads = [(); 4].map(|()| {
            std::thread::spawn(|| {
                for _ in 0..10_000 {
                    let _taken = worker::signal(Signal::USR1).unwrap();
                    // At its default it would end the task. To this thread, where it arrives before this returns.
                    // SAFETY: the signal has a handler.
                    unsafe { libc::raise(libc::SIGUSR1) };
                }
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(signals()[3] & bit(libc::SIGUSR1), 0, "nobody has it any more");
    }
    undisturbed(|| async {
        Task::new().run_blocking(takes, ()).await.unwrap();
    });
}
