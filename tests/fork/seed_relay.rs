//! Signals to the program: its workers hear of them if it asked for that, and its own are still its own.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    process::ExitStatus as ProgramStatus,
    time::Duration,
};

use tokio_run_in_process::{ExitStatus, Process, Signal, Stdio, Task, default_zygote, set_default_zygote, worker};

use crate::{
    harness::{eventually, helper, is_alive, multi_thread},
    oracle::scratch,
    seed::{hear, never, note, notes, open_everywhere, plain_never, say},
    seed_signals::died_of,
};

crate::cases![
    s13_an_interrupt_of_the_parent_reaches_the_worker,
    s13_a_parent_that_handles_the_interrupt_sees_it_too,
    s13_without_a_relay_the_worker_ends_with_the_parent,
    s27_sigterm_and_sighup_are_relayed,
    s27_a_relay_follows_the_process_wide_zygote,
];

crate::helpers![relays, relays_on, handles, does_not_relay];

/// How many runtimes there are.
const WORKERS: usize = if cfg!(feature = "smol") { 3 } else { 2 };

/// A task of each runtime that notes which signal it gets and ends with a value. They are ready when this returns.
async fn open_listeners(task: Task, path: &str, signal: i32) -> Vec<Process<u32>> {
    let polled = async |path: String, signal: i32| {
        let mut taken = worker::signal(signal.into()).unwrap();
        say("ready");
        taken.recv().await;
        note(&path, &Signal::from(signal).to_string());
        9999
    };
    let plain = |path: String, signal: i32| {
        let mut taken = worker::signal(signal.into()).unwrap();
        say("ready");
        taken.recv_blocking();
        note(&path, &Signal::from(signal).to_string());
        9999
    };
    let task = task.stdout(Stdio::piped());
    let mut processes = Vec::new();
    for (_, process) in open_everywhere(&task, polled, plain, (path.to_owned(), signal)).await {
        let mut stdout = process.take_stdout().unwrap();
        hear(&mut stdout, "ready").await;
        processes.push(process);
    }
    processes
}

/// What a program prints once it can be signalled: the pids of its workers.
fn say_pids<T>(processes: &[Process<T>]) {
    let pids: Vec<String> = processes.iter().map(|process| process.pid().to_string()).collect();
    say(&pids.join(" "));
}

/// The two arguments of a program below, which starts with the signal's default action: a shell may have started the
/// tests in the background with SIGINT ignored.
fn path_and_signal() -> (String, i32) {
    let mut arguments = std::env::args().skip(1);
    let (path, signal) = (arguments.next().unwrap(), arguments.next().unwrap().parse().unwrap());
    // SAFETY: the default action.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    (path, signal)
}

fn relays() {
    let (path, signal) = path_and_signal();
    // The workers have as long as they need.
    let zygote = tokio_run_in_process::Zygote::builder().grace_period(Duration::from_secs(20)).start().unwrap();
    zygote.relay_signals().unwrap().forget();
    multi_thread().block_on(async {
        let processes = open_listeners(zygote.task(), &path, signal).await;
        say_pids(&processes);
        never().await;
    });
}

/// Goes over to another generation while tasks of the one before are under way.
fn relays_on() {
    let (path, signal) = path_and_signal();
    tokio_run_in_process::init().unwrap();
    tokio_run_in_process::relay_signals().unwrap().forget();
    multi_thread().block_on(async {
        let mut processes = open_listeners(Task::new(), &path, signal).await;
        let next = default_zygote().unwrap().preload(|| (), ()).await.unwrap();
        drop(set_default_zygote(next));
        processes.extend(open_listeners(Task::new(), &path, signal).await);
        say_pids(&processes);
        never().await;
    });
}

/// Handles the signal as a program may, and has a relay besides.
fn handles() {
    let (path, signal) = path_and_signal();
    tokio_run_in_process::init().unwrap();
    multi_thread().block_on(async {
        let mut received = tokio::signal::unix::signal(signal.into()).unwrap();
        let _relay = tokio_run_in_process::relay_signals().unwrap();
        let listeners = open_listeners(Task::new(), &path, signal).await;
        let others = open_everywhere(&Task::new(), never, plain_never, ()).await;
        say_pids(&listeners);
        received.recv().await;
        for process in listeners {
            assert_eq!(process.wait().await.unwrap(), 9999);
            assert_eq!(process.exited().await.0, ExitStatus::Exited(0));
        }
        for (runtime, process) in others {
            died_of(runtime, &process, signal.into()).await;
        }
        say("handled");
    });
}

fn does_not_relay() {
    let (path, signal) = path_and_signal();
    tokio_run_in_process::init().unwrap();
    multi_thread().block_on(async {
        let processes = open_listeners(Task::new(), &path, signal).await;
        say_pids(&processes);
        never().await;
    });
}

/// Starts a program, signals it once it is ready, and gives its end, what else it printed, what its workers noted.
fn signalled(program: &str, signal: i32, workers: usize) -> (ProgramStatus, String, Vec<String>) {
    let path = scratch(&format!("{program}-{signal}"));
    let mut running =
        helper(program).args([&path, &signal.to_string()]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(running.stdout.take().unwrap());
    let mut pids = String::new();
    output.read_line(&mut pids).unwrap();
    let pids: Vec<u32> = pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), workers, "it is ready");
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::kill(running.id().try_into().unwrap(), signal) }, 0);
    let mut rest = String::new();
    output.read_line(&mut rest).unwrap();
    let status = running.wait().unwrap();
    multi_thread().block_on(eventually("its workers are gone", || !pids.iter().any(|&pid| is_alive(pid))));
    let noted = notes(&path);
    let _ = std::fs::remove_file(path);
    (status, rest, noted)
}

/// Every worker noted the signal, and the program died of it.
fn is_relayed(signal: i32) {
    let (status, _, noted) = signalled("relays", signal, WORKERS);
    assert_eq!(status.signal(), Some(signal), "its own signal still ends the program: {status}");
    assert_eq!(noted, vec![Signal::from(signal).to_string(); WORKERS]);
}

fn s27_a_relay_follows_the_process_wide_zygote() {
    let (status, _, noted) = signalled("relays_on", libc::SIGTERM, 2 * WORKERS);
    assert_eq!(status.signal(), Some(libc::SIGTERM), "{status}");
    assert_eq!(noted, vec!["SIGTERM"; 2 * WORKERS], "of both generations");
}

fn is_relayed_and_handled(signal: i32) {
    let (status, rest, noted) = signalled("handles", signal, WORKERS);
    assert!(status.success(), "{status}");
    assert_eq!(rest, "handled\n");
    assert!(noted.iter().all(|noted| *noted == Signal::from(signal).to_string()), "{noted:?}");
}

fn s13_an_interrupt_of_the_parent_reaches_the_worker() {
    is_relayed(libc::SIGINT);
}

fn s13_a_parent_that_handles_the_interrupt_sees_it_too() {
    is_relayed_and_handled(libc::SIGINT);
}

fn s13_without_a_relay_the_worker_ends_with_the_parent() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let (status, _, noted) = signalled("does_not_relay", signal, WORKERS);
        assert_eq!((status.signal(), noted), (Some(signal), vec![]));
    }
}

fn s27_sigterm_and_sighup_are_relayed() {
    for signal in [libc::SIGTERM, libc::SIGHUP] {
        is_relayed(signal);
        is_relayed_and_handled(signal);
    }
}
