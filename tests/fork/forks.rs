//! A fork of the program, which has a copy of every handle: it can start nothing, and disturbs nothing.

use std::{future::IntoFuture, task::Poll, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_run_in_process::{
    Error, Process, StartError, State, Stdio, Task, Zygote, default_zygote, init, open_in_process, relay_signals,
    run_blocking_in_process, run_in_process,
};

use crate::{
    harness::{begin, is_alive, multi_thread, nothing_is_left},
    misuse::{answer, poll_once},
    oracle::{threads, undisturbed},
};

crate::cases![
    f82_a_fork_of_the_program_is_refused,
    f82_a_fork_before_the_first_task_is_refused,
    f82_a_fork_drops_futures_and_handles,
];

pub(crate) fn fork() -> i32 {
    // SAFETY: the child runs only what these tests have it do, and ends by `_exit`; the C library keeps its own locks
    // right.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // A child that hangs ends all the same.
        // SAFETY: touches no memory.
        unsafe { libc::alarm(20) };
    }
    pid
}

pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: it ends the process.
    unsafe { libc::_exit(code) }
}

/// The exit code of a child; 1000 and more for a signal.
pub(crate) fn wait_for(child: i32) -> i32 {
    let mut status = 0;
    // SAFETY: the status is live for the call.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } != child {}
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 1000 + libc::WTERMSIG(status) }
}

/// In a fork: nothing starts, and what is inherited is of no use. Gives the number of the first check that fails.
fn try_everything(zygote: &Zygote, process: &Process<u8>) -> i32 {
    fn wrong<T>(result: Poll<Result<T, Error>>) -> bool {
        matches!(result, Poll::Ready(Err(Error::WrongProcess)))
    }
    let checks = [
        matches!(init(), Err(StartError::WrongProcess)),
        matches!(Zygote::builder().start(), Err(StartError::WrongProcess)),
        matches!(tokio_run_in_process::block_on(async {}), Err(StartError::WrongProcess)),
        wrong(poll_once(run_in_process(answer, ()))),
        wrong(poll_once(open_in_process(answer, ()))),
        wrong(poll_once(run_blocking_in_process(|| 1, ()))),
        wrong(poll_once(zygote.run_in_process(answer, ()))),
        wrong(poll_once(zygote.task().open(answer, ()))),
        zygote.relay_signals().is_err(),
        relay_signals().is_err(),
        process.terminate().is_err(),
        process.kill().is_err(),
        process.send_signal(libc::SIGHUP).is_err(),
        wrong(poll_once(process.wait())),
        poll_once(process.shutdown()).is_ready(),
        poll_once(process.exited()).is_ready(),
        process.try_wait().is_none(),
    ];
    checks.iter().position(|held| !held).map_or(0, |at| i32::try_from(at).unwrap() + 1)
}

/// Waits for a line on its stdin.
fn waits() -> u8 {
    println!("ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    u8::try_from(line.len()).unwrap()
}

fn f82_a_fork_of_the_program_is_refused() {
    undisturbed(|| async {
        let zygote = default_zygote().unwrap();
        let task = Task::new().stdin(Stdio::piped()).stdout(Stdio::piped());
        let process = task.open_blocking(waits, ()).await.unwrap();
        let mut stdin = process.take_stdin().unwrap();
        let mut stdout = process.take_stdout().unwrap();
        stdout.read_exact(&mut [0; 6]).await.unwrap();
        let beside = tokio::spawn(run_in_process(async || tokio::time::sleep(Duration::from_millis(300)).await, ()));
        for through_exit in [false, true] {
            let child = match fork() {
                0 => {
                    let failed = try_everything(&zygote, &process);
                    // By `exit` with all its handlers, as a fork that knows nothing of us would.
                    if through_exit { std::process::exit(failed) } else { exit(failed) }
                }
                child => child,
            };
            assert_eq!(wait_for(child), 0, "the check of this number failed in the fork");
            assert_eq!(process.state(), State::Executing);
        }
        beside.await.unwrap().unwrap();
        stdin.write_all(b"12\n").await.unwrap();
        assert_eq!(process.wait().await.unwrap(), 3);
    });
}

fn f82_a_fork_before_the_first_task_is_refused() {
    init().unwrap();
    let zygote = default_zygote().unwrap();
    let second = Zygote::builder().start().unwrap();
    let waiting = second.run_in_process(answer, ());
    assert_eq!(threads(), 1);
    let child = match fork() {
        0 => {
            let wrong = matches!(init(), Err(StartError::WrongProcess))
                && matches!(Zygote::builder().start(), Err(StartError::WrongProcess))
                && matches!(multi_thread().block_on(run_in_process(answer, ())), Err(Error::WrongProcess))
                && matches!(multi_thread().block_on(waiting.into_future()), Err(Error::WrongProcess));
            drop((zygote, second));
            exit(if wrong { 0 } else { 1 })
        }
        child => child,
    };
    assert_eq!(wait_for(child), 0);
    multi_thread().block_on(async {
        assert_eq!(waiting.await.unwrap(), 42);
        assert_eq!(second.run_in_process(answer, ()).await.unwrap(), 42);
        assert_eq!(zygote.run_in_process(answer, ()).await.unwrap(), 42);
    });
    assert!(is_alive(zygote.pid()) && is_alive(second.pid()));
}

fn f82_a_fork_drops_futures_and_handles() {
    undisturbed(|| async {
        let second = Zygote::builder().start().unwrap();
        let task = second.task().stdin(Stdio::piped()).stdout(Stdio::piped());
        let process = task.open_blocking(waits, ()).await.unwrap();
        let untouched = task.open_blocking(waits, ()).await.unwrap();
        let mut stdin = process.take_stdin().unwrap();
        let mut stdout = process.take_stdout().unwrap();
        stdout.read_exact(&mut [0; 6]).await.unwrap();
        let nap = async |n: u8| {
            tokio::time::sleep(Duration::from_millis(500)).await;
            n
        };
        let unpolled = second.run_in_process(nap, 1);
        let running = begin(second.run_in_process(nap, 2)).await;
        let opening = begin(second.open_in_process(nap, 3)).await;
        let waiting = begin(untouched.into_future()).await;
        let child = match fork() {
            0 => {
                drop((unpolled, running, opening, waiting));
                drop((stdin, stdout, process));
                drop((task, second));
                exit(0)
            }
            child => child,
        };
        assert_eq!(wait_for(child), 0);
        assert_eq!(unpolled.await.unwrap(), 1);
        assert_eq!(running.await.unwrap(), 2);
        assert_eq!(opening.await.unwrap().wait().await.unwrap(), 3);
        // Its stdin was closed when `waiting` was polled.
        assert_eq!(waiting.await.unwrap(), 0);
        stdin.write_all(b"still here\n").await.unwrap();
        assert_eq!(process.wait().await.unwrap(), 11);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "");
        nothing_is_left(&second).await;
    });
}
