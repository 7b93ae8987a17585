//! Signals to a task, for every runtime of the worker.

use std::time::Duration;

use tokio_run_in_process::{Error, ExitStatus, Process, Signal, State, Stdio, Task, open_in_process, worker};

use crate::{
    oracle::{scratch, undisturbed},
    seed::{hear, never, note, notes, open_everywhere, plain_never, runtimes, say, sleep_for_ever},
};

crate::cases![
    s05_blocking_work_does_not_keep_an_interrupt_waiting,
    s06_terminate_ends_it,
    s07_kill_ends_it,
    s08_sigint_ends_it,
    s08_destructors_run_unless_it_is_killed,
    s09_sigint_can_be_handled,
    s10_sigint_can_be_ignored_once,
    s21_an_early_signal_is_never_lost,
];

/// It died of this signal, and both answers of its handle say so.
pub(crate) async fn died_of<T>(runtime: &str, process: &Process<T>, signal: Signal)
where
    T: serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let error = process.wait().await.unwrap_err();
    assert!(matches!(error, Error::Signaled { .. }), "{runtime}: {error:?}");
    assert_eq!(error.signal(), Some(signal), "{runtime}");
    assert!(error.to_string().contains(&format!("was killed by {signal}")), "{runtime}: {error}");
    assert_eq!(process.exited().await.0.signal(), Some(signal), "{runtime}");
}

fn s05_blocking_work_does_not_keep_an_interrupt_waiting() {
    undisturbed(|| async {
        let executor = async || {
            let work = tokio::task::spawn_blocking(|| {
                say("ready");
                sleep_for_ever();
            });
            work.await.unwrap();
        };
        let task = Task::new().stdout(Stdio::piped()).grace_period(Duration::from_secs(60));
        let process = task.open(executor, ()).await.unwrap();
        hear(&mut process.take_stdout().unwrap(), "ready").await;
        process.send_signal(Signal::INT).unwrap();
        died_of("tokio's executor", &process, Signal::INT).await;
        // smol's parts have no executor for blocking work, so it gets a thread.
        let polled = async || {
            std::thread::spawn(|| {
                say("ready");
                sleep_for_ever();
            });
            never().await;
        };
        let plain = || {
            say("ready");
            sleep_for_ever();
        };
        for (runtime, process) in open_everywhere(&task, polled, plain, ()).await {
            hear(&mut process.take_stdout().unwrap(), "ready").await;
            process.send_signal(Signal::INT).unwrap();
            died_of(runtime, &process, Signal::INT).await;
        }
    });
}

fn ends_by(signal: Signal, send: impl Fn(&Process<()>) -> std::io::Result<()>) {
    undisturbed(|| async {
        // No escalation can be meant for the signal.
        let task = Task::new().grace_period(Duration::from_secs(60));
        for (runtime, process) in open_everywhere(&task, never, plain_never, ()).await {
            send(&process).unwrap();
            died_of(runtime, &process, signal).await;
        }
        // Also when it waits for a timer.
        let sleeps = async || tokio::time::sleep(Duration::from_secs(60)).await;
        let process = open_in_process(sleeps, ()).await.unwrap();
        send(&process).unwrap();
        died_of("tokio", &process, signal).await;
    });
}

fn s06_terminate_ends_it() {
    ends_by(Signal::TERM, Process::terminate);
}

fn s07_kill_ends_it() {
    ends_by(Signal::KILL, Process::kill);
}

fn s08_sigint_ends_it() {
    ends_by(Signal::INT, |process| process.send_signal(Signal::INT));
}

struct NotesItsEnd(String);

impl Drop for NotesItsEnd {
    fn drop(&mut self) {
        note(&self.0, "dropped");
    }
}

fn s08_destructors_run_unless_it_is_killed() {
    undisturbed(|| async {
        let path = scratch("dropped");
        let waits = async |path: String| {
            let _end = NotesItsEnd(path);
            say("ready");
            never().await;
        };
        for (runtime, task) in runtimes(&Task::new().stdout(Stdio::piped())) {
            for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
                let process = task.open(waits, path.clone()).await.unwrap();
                hear(&mut process.take_stdout().unwrap(), "ready").await;
                process.send_signal(signal).unwrap();
                died_of(runtime, &process, signal).await;
                assert_eq!(notes(&path).len(), usize::from(signal != Signal::KILL), "{runtime}: {signal}");
                let _ = std::fs::remove_file(&path);
            }
        }
    });
}

fn s09_sigint_can_be_handled() {
    undisturbed(|| async {
        let polled = async || {
            let mut interrupts = worker::signal(Signal::INT).unwrap();
            say("ready");
            interrupts.recv().await;
            9999
        };
        let plain = || {
            let mut interrupts = worker::signal(Signal::INT).unwrap();
            say("ready");
            interrupts.recv_blocking();
            9999
        };
        for (runtime, process) in open_everywhere(&Task::new().stdout(Stdio::piped()), polled, plain, ()).await {
            hear(&mut process.take_stdout().unwrap(), "ready").await;
            process.send_signal(Signal::INT).unwrap();
            assert_eq!(process.wait().await.unwrap(), 9999, "{runtime}");
            assert_eq!(process.exited().await.0, ExitStatus::Exited(0), "{runtime}");
        }
    });
}

fn s10_sigint_can_be_ignored_once() {
    undisturbed(|| async {
        let polled = async || {
            let mut interrupts = worker::signal(Signal::INT).unwrap();
            say("ready");
            interrupts.recv().await;
            say("ignored");
            interrupts.recv().await;
            9999
        };
        let plain = || {
            let mut interrupts = worker::signal(Signal::INT).unwrap();
            say("ready");
            interrupts.recv_blocking();
            say("ignored");
            interrupts.recv_blocking();
            9999
        };
        for (runtime, process) in open_everywhere(&Task::new().stdout(Stdio::piped()), polled, plain, ()).await {
            let mut stdout = process.take_stdout().unwrap();
            for word in ["ready", "ignored"] {
                hear(&mut stdout, word).await;
                assert!(process.try_wait().is_none(), "{runtime}");
                process.send_signal(Signal::INT).unwrap();
            }
            assert_eq!(process.wait().await.unwrap(), 9999, "{runtime}");
            assert_eq!(process.exited().await.0, ExitStatus::Exited(0), "{runtime}");
        }
    });
}

fn s21_an_early_signal_is_never_lost() {
    undisturbed(|| async {
        for signal in [Signal::TERM, Signal::INT, Signal::USR1, Signal::KILL] {
            for _ in 0..15 {
                let task = Task::new();
                for (runtime, task) in runtimes(&task) {
                    let process = task.open(never, ()).await.unwrap();
                    assert_eq!(process.state(), State::Executing, "{runtime}");
                    process.send_signal(signal).unwrap();
                    died_of(runtime, &process, signal).await;
                }
                let process = task.open_blocking(plain_never, ()).await.unwrap();
                assert_eq!(process.state(), State::Executing);
                process.send_signal(signal).unwrap();
                died_of("blocking", &process, signal).await;
            }
        }
    });
}
