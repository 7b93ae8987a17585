//! What a handle answers, for every runtime of the worker: states, pid, exit, outcome.

use std::{
    io::Write,
    os::fd::FromRawFd,
    time::{Duration, Instant},
};

use tokio_run_in_process::{Error, ExitStatus, Signal, State, Stdio, Task, default_zygote, open_in_process};

use crate::{
    harness::parent_of,
    oracle::undisturbed,
    seed::{hear, never, open_everywhere, plain_never, run_everywhere, say},
    seed_outcomes::fail,
};

crate::cases![
    s20_states_run_only_forward,
    s20_a_wrong_order_is_an_error,
    s22_a_finished_task_can_be_read,
    s23_the_pid_can_be_read_and_waited_for,
    s24_exit_code_123_is_seen,
    s25_asking_twice_gives_the_same,
    s26_a_panic_shows_pid_and_call_chain,
];

/// As a worker does before its last words, so that the parent's hanging up does not kill it.
fn disarm() {
    // SAFETY: touches no memory.
    let flags = unsafe { libc::fcntl(3, libc::F_GETFL) };
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::fcntl(3, libc::F_SETFL, flags & !libc::O_ASYNC) }, 0);
}

/// Sends bytes on a worker's job socket, as damaged or hostile code would.
fn forge(frames: &[[u64; 2]]) {
    // SAFETY: it is open until the process ends, and is not closed here.
    let mut job = std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(3) });
    let bytes: Vec<u8> = frames.iter().flatten().flat_map(|field| field.to_le_bytes()).collect();
    job.write_all(&bytes).unwrap();
}

const EXECUTING: u64 = 1;
const RETURNED: u64 = 2;

fn s20_states_run_only_forward() {
    undisturbed(|| async {
        // Once told to, it sends its result, `()`, by itself and stays, so that each state can be seen.
        let stays = || {
            say("ready");
            std::io::stdin().read_line(&mut String::new()).unwrap();
            disarm();
            forge(&[[RETURNED, 0]]);
            plain_never();
        };
        let task = Task::new().stdin(Stdio::piped()).stdout(Stdio::piped()).grace_period(Duration::from_secs(60));
        for (runtime, process) in open_everywhere(&task, async move || stays(), stays, ()).await {
            let process = std::sync::Arc::new(process);
            let watched = process.clone();
            let watcher = std::thread::spawn(move || {
                let mut seen = vec![watched.state()];
                while *seen.last().unwrap() != State::Exited {
                    let state = watched.state();
                    if state != *seen.last().unwrap() {
                        seen.push(state);
                    }
                    std::thread::yield_now();
                }
                seen
            });
            let mut stdin = process.take_stdin().unwrap();
            hear(&mut process.take_stdout().unwrap(), "ready").await;
            process.wait_for_state(State::Executing).await;
            assert_eq!(process.state(), State::Executing, "{runtime}");
            tokio::io::AsyncWriteExt::write_all(&mut stdin, b"go\n").await.unwrap();
            process.wait_for_state(State::Finished).await;
            assert_eq!(process.state(), State::Finished, "{runtime}");
            process.wait().await.unwrap();
            process.kill().unwrap();
            process.wait_for_state(State::Exited).await;
            assert_eq!(process.state(), State::Exited, "{runtime}");
            // What lies behind is not waited for.
            for state in State::ALL {
                process.wait_for_state(state).await;
            }
            let seen = watcher.join().unwrap();
            assert!(seen.is_sorted_by(|a, b| a.is_before(*b)), "{runtime}: {seen:?}");
            assert_eq!(seen.last(), Some(&State::Exited));
            assert!(process.exited().await.0.signal() == Some(Signal::KILL), "{runtime}");
        }
    });
}

fn s20_a_wrong_order_is_an_error() {
    undisturbed(|| async {
        let breaks = |twice: bool| {
            forge(if twice { &[[EXECUTING, 0]] } else { &[[77, 0]] });
            plain_never();
        };
        for (twice, words) in [(true, "Executing where Terminal was expected"), (false, "unknown kind 0x4d")] {
            for (runtime, process) in
                open_everywhere(&Task::new(), async move |twice: bool| breaks(twice), breaks, twice).await
            {
                let start = Instant::now();
                let error = process.wait().await.unwrap_err();
                let Error::Protocol { task, reason, .. } = &error else { panic!("{runtime}: {error:?}") };
                assert!(reason.contains(words), "{runtime}: {reason}");
                assert_eq!(task.pid(), Some(process.pid()), "{runtime}");
                // Nobody talks with it any more, so it does not stay.
                assert_eq!(process.exited().await.0.signal(), Some(Signal::KILL), "{runtime}");
                assert!(start.elapsed() < Duration::from_secs(10), "{runtime}: {:?}", start.elapsed());
                assert!(matches!(process.wait().await, Err(Error::Protocol { .. })), "{runtime}: it stays the outcome");
            }
        }
    });
}

fn s22_a_finished_task_can_be_read() {
    undisturbed(|| async {
        for (runtime, process) in open_everywhere(&Task::new(), async || 7, || 7, ()).await {
            process.wait_for_state(State::Finished).await;
            assert!(process.state().is_on_or_after(State::Finished), "{runtime}");
            assert_eq!(process.try_wait().unwrap().unwrap(), 7, "{runtime}");
            process.wait_for_state(State::Exited).await;
            assert_eq!(process.try_wait().unwrap().unwrap(), 7, "{runtime}");
        }
    });
}

fn s23_the_pid_can_be_read_and_waited_for() {
    undisturbed(|| async {
        let zygote = default_zygote().unwrap().pid();
        let waits = || {
            std::io::stdin().read_line(&mut String::new()).unwrap();
            std::process::id()
        };
        let task = Task::new().stdin(Stdio::piped());
        for (runtime, process) in open_everywhere(&task, async move || waits(), waits, ()).await {
            let pid = process.pid();
            assert_eq!(parent_of(pid), Some(zygote), "{runtime}: it is there, right away");
            assert_eq!(process.wait().await.unwrap(), pid, "{runtime}");
            assert_eq!(process.exited().await.0, ExitStatus::Exited(0), "{runtime}");
            assert_ne!(parent_of(pid), Some(zygote), "{runtime}: it was reaped");
            assert_eq!(process.pid(), pid, "{runtime}");
        }
    });
}

fn s24_exit_code_123_is_seen() {
    undisturbed(|| async {
        let leave = || -> u8 { std::process::exit(123) };
        for (runtime, process) in open_everywhere(&Task::new(), async move || leave(), leave, ()).await {
            let error = process.wait().await.unwrap_err();
            assert!(matches!(error, Error::Exited { code: 123, .. }), "{runtime}: {error:?}");
            assert!(error.to_string().contains("exited with code 123"), "{runtime}: {error}");
            assert_eq!(process.exited().await.0, ExitStatus::Exited(123), "{runtime}");
        }
        for (runtime, result) in run_everywhere(&Task::new(), async move || leave(), leave, ()).await {
            assert_eq!(result.unwrap_err().exit_code(), Some(123), "{runtime}");
        }
    });
}

fn s25_asking_twice_gives_the_same() {
    undisturbed(|| async {
        let text = || vec!["a".to_owned(), "b".to_owned()];
        for (runtime, process) in open_everywhere(&Task::new(), async move || text(), text, ()).await {
            for _ in 0..3 {
                assert_eq!(process.wait().await.unwrap(), text(), "{runtime}");
                assert_eq!(process.try_wait().unwrap().unwrap(), text(), "{runtime}");
            }
            process.exited().await;
            assert_eq!(process.wait().await.unwrap(), text(), "{runtime}");
            // A handle that is told to end what has ended says the same.
            process.shutdown().await;
            assert_eq!(process.wait().await.unwrap(), text(), "{runtime}");
        }
        for how in 0..4 {
            for (runtime, process) in open_everywhere(&Task::new(), async |how: u32| fail(how), fail, how).await {
                let first = format!("{:?}", process.wait().await);
                process.exited().await;
                process.shutdown().await;
                assert_eq!(format!("{:?}", process.wait().await), first, "{runtime}");
                assert_eq!(format!("{:?}", process.try_wait().unwrap()), first, "{runtime}");
            }
        }
        // So do two that ask at once.
        let process = open_in_process(never, ()).await.unwrap();
        let (a, b, ()) = tokio::join!(process.wait(), process.wait(), async { process.kill().unwrap() });
        assert_eq!((a.unwrap_err().signal(), b.unwrap_err().signal()), (Some(Signal::KILL), Some(Signal::KILL)));
    });
}

#[inline(never)]
fn inner_func() -> u8 {
    panic!("deep down")
}

#[inline(never)]
async fn outer_func() -> u8 {
    std::hint::black_box(inner_func())
}

#[inline(never)]
fn plain_outer_func() -> u8 {
    std::hint::black_box(inner_func())
}

fn s26_a_panic_shows_pid_and_call_chain() {
    undisturbed(|| async {
        let processes = open_everywhere(&Task::new(), outer_func, plain_outer_func, ()).await;
        for (runtime, process) in processes {
            let text = process.wait().await.unwrap_err().to_string();
            assert!(text.contains(&format!("(pid {}) panicked: deep down (at ", process.pid())), "{runtime}: {text}");
            // Innermost first, and nothing but the task's own.
            let chain: Vec<&str> = text.lines().skip(1).collect();
            assert!(chain[0].starts_with("    in fork::seed_handle::inner_func"), "{runtime}: {text}");
            let outer = ["fork::seed_handle::outer_func", "fork::seed_handle::plain_outer_func"];
            assert!(outer.iter().any(|name| chain[1].starts_with(&format!("    in {name}"))), "{runtime}: {text}");
            assert!(chain[0].contains("seed_handle.rs:"), "{runtime}: with places, in a build that has them: {text}");
            assert!(!text.contains("tokio_run_in_process::"), "{runtime}: nothing of ours\n{text}");
        }
        for (runtime, result) in run_everywhere(&Task::new(), outer_func, plain_outer_func, ()).await {
            let error = result.unwrap_err();
            let pid = error.task().unwrap().pid().expect(runtime);
            assert!(error.to_string().contains(&format!("(pid {pid})")), "{runtime}: {error}");
        }
    });
}
