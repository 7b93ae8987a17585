//! A task is cancelled and does not, or cannot, listen.

use std::{
    future::pending,
    io::Read,
    time::{Duration, Instant},
};

use tokio_run_in_process::{Process, Signal, Task, default_zygote};

use crate::{
    harness::{children, eventually, is_alive, skip, without_warm_workers},
    oracle::undisturbed,
    tools::{Notes, dead, note, signal, status, stopped, stubborn, stubborn_blocking},
};

crate::cases![
    c33_a_worker_that_ignores_sigterm,
    c34_a_task_that_blocks,
    c34_a_task_in_an_uninterruptible_wait,
    c35_a_worker_that_stopped_itself,
];

const GRACE: Duration = Duration::from_millis(400);
/// Longer than any case: what ends before it, ended politely.
const LONG: Duration = Duration::from_secs(600);

fn c33_a_worker_that_ignores_sigterm() {
    undisturbed(|| async {
        let ignores = |path: String| {
            // SAFETY: ignores the signal.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
            note(&path, "ready");
            loop {
                std::thread::park();
            }
        };
        let masks = async |path: String| {
            // SAFETY: an all-zero set is valid storage.
            let mut all = unsafe { std::mem::zeroed() };
            // SAFETY: a live set.
            unsafe { libc::sigfillset(&raw mut all) };
            // SAFETY: a live set; the old one is not asked for.
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut()) };
            note(&path, "ready");
            pending().await
        };
        let task = Task::new().grace_period(GRACE);
        for way in 0..4 {
            let notes = Notes::new(&format!("c33-{way}"));
            let process = match way {
                0 => task.open(stubborn, notes.path()).await.unwrap(),
                1 => task.open_blocking(stubborn_blocking, notes.path()).await.unwrap(),
                2 => task.open_blocking(ignores, notes.path()).await.unwrap(),
                _ => task.open(masks, notes.path()).await.unwrap(),
            };
            notes.say("ready").await;
            killed_after_its_grace_period(process).await;
        }
    });
}

async fn killed_after_its_grace_period(process: Process<()>) {
    let start = Instant::now();
    let (status, _) = process.shutdown().await;
    let after = start.elapsed();
    assert!(after >= GRACE && after < GRACE + Duration::from_secs(8), "{after:?}");
    assert_eq!(status.signal(), Some(Signal::KILL));
    let error = process.wait().await.unwrap_err();
    assert!(error.is_cancelled(), "{error:?}");
}

fn c34_a_task_that_blocks() {
    undisturbed(|| async {
        // Blocking threads do not keep a task that waits for them.
        let waits_for_a_thread = async |path: String| {
            let blocked = tokio::task::spawn_blocking(|| std::thread::sleep(LONG));
            note(&path, "ready");
            blocked.await.unwrap();
        };
        let notes = Notes::new("c34-spawn-blocking");
        let process = Task::new().grace_period(LONG).open(waits_for_a_thread, notes.path()).await.unwrap();
        notes.say("ready").await;
        assert_eq!(process.shutdown().await.0.signal(), Some(Signal::TERM));
        assert!(process.wait().await.unwrap_err().is_cancelled());
        // It blocks the thread that would see the signal.
        let reads = async |path: String| {
            let (mut never, _writer) = std::os::unix::net::UnixStream::pair().unwrap();
            note(&path, "ready");
            never.read_exact(&mut [0]).unwrap();
        };
        let sleeps = async |path: String| {
            note(&path, "ready");
            std::thread::sleep(LONG);
        };
        for (n, process) in [0, 1].into_iter().zip([true, false]) {
            let notes = Notes::new(&format!("c34-{n}"));
            let task = Task::new().grace_period(GRACE);
            let open = if process { task.open(reads, notes.path()) } else { task.open(sleeps, notes.path()) };
            let process = open.await.unwrap();
            notes.say("ready").await;
            killed_after_its_grace_period(process).await;
        }
    });
}

/// Starts a program that cannot start before somebody writes to a FIFO: the kernel holds its parent, this process, in a
/// wait that no signal but a deadly one ends.
fn waits_for_its_child(fifo: &str) -> ! {
    let fifo = std::ffi::CString::new(fifo).unwrap();
    // SAFETY: valid storage for what the next call makes.
    let mut actions = unsafe { std::mem::zeroed() };
    // SAFETY: live storage.
    unsafe { libc::posix_spawn_file_actions_init(&raw mut actions) };
    // SAFETY: made by the call above; a live C string.
    unsafe { libc::posix_spawn_file_actions_addopen(&raw mut actions, 0, fifo.as_ptr(), libc::O_RDONLY, 0) };
    let (program, arguments) = (c"/bin/true".as_ptr(), [c"true".as_ptr().cast_mut(), std::ptr::null_mut()]);
    let (mut pid, environment) = (0, [std::ptr::null_mut()]);
    let (arguments, environment) = (arguments.as_ptr(), environment.as_ptr());
    // SAFETY: everything is live, and the lists end with a null pointer.
    unsafe { libc::posix_spawn(&raw mut pid, program, &raw const actions, std::ptr::null(), arguments, environment) };
    unreachable!("nobody writes to it");
}

fn c34_a_task_in_an_uninterruptible_wait() {
    without_warm_workers();
    undisturbed(|| async {
        let zygote = default_zygote().unwrap();
        let fifo = Notes::new("c34-fifo");
        let path = std::ffi::CString::new(fifo.path()).unwrap();
        // SAFETY: a live C string.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        let task = Task::new().grace_period(GRACE);
        let polled = task.open(async |fifo: String| waits_for_its_child(&fifo), fifo.path());
        let blocking = task.open_blocking(|fifo: String| waits_for_its_child(&fifo), fifo.path());
        let both: [Process<()>; 2] = [polled.await.unwrap(), blocking.await.unwrap()];
        for process in both {
            let pid = process.pid();
            eventually("its child waits", || !children(pid).is_empty()).await;
            let child = children(pid)[0];
            eventually("it waits", || status(pid, "State").is_some_and(|state| state.starts_with(['D', 'S']))).await;
            if status(pid, "State").is_some_and(|state| state.starts_with('S')) {
                skip("this C library starts programs without an uninterruptible wait");
            }
            killed_after_its_grace_period(process).await;
            dead(child, Instant::now()).await;
        }
        assert_eq!(children(zygote.pid()), [0; 0]);
    });
}

fn c35_a_worker_that_stopped_itself() {
    without_warm_workers();
    undisturbed(|| async {
        let zygote = default_zygote().unwrap();
        let stops = async || {
            signal(std::process::id(), libc::SIGSTOP);
            pending::<()>().await
        };
        let stops_blocking = || {
            signal(std::process::id(), libc::SIGSTOP);
            std::thread::sleep(LONG);
        };
        let task = Task::new().grace_period(LONG);
        for round in 0..3 {
            let open = [task.open(stops, ()).await.unwrap(), task.open_blocking(stops_blocking, ()).await.unwrap()];
            for process in open {
                stopped(process.pid()).await;
                match round {
                    0 => {
                        let (status, _) = process.shutdown().await;
                        assert_eq!(status.signal(), Some(Signal::TERM));
                        assert!(process.wait().await.unwrap_err().is_cancelled());
                    }
                    // To the user's own SIGTERM nothing is added.
                    1 => {
                        process.terminate().unwrap();
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        assert!(is_alive(process.pid()));
                        process.send_signal(Signal::CONT).unwrap();
                        assert_eq!(process.wait().await.unwrap_err().signal(), Some(Signal::TERM));
                    }
                    _ => drop(process),
                }
                eventually("it is gone", || children(zygote.pid()).len() < 2).await;
            }
            eventually("both are gone", || children(zygote.pid()).is_empty()).await;
        }
        // Timed out while it stands.
        let timed = Task::new().grace_period(LONG).timeout(Duration::from_millis(200));
        assert!(timed.run(stops, ()).await.unwrap_err().is_timeout());
        eventually("it is gone", || children(zygote.pid()).is_empty()).await;
        // It stops again and again, deaf to all but SIGKILL.
        let deaf = |path: String| {
            // SAFETY: ignores the signal.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
            note(&path, "ready");
            loop {
                signal(std::process::id(), libc::SIGSTOP);
            }
        };
        let notes = Notes::new("c35");
        let process = Task::new().grace_period(GRACE).open_blocking(deaf, notes.path()).await.unwrap();
        notes.say("ready").await;
        killed_after_its_grace_period(process).await;
    });
}
