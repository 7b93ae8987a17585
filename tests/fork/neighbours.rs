//! Programs that do not make it easy: they take every child's status, ignore SIGCHLD, or have next to no descriptors
//! left.

use std::{
    process::Stdio as StdStdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;
use tokio_run_in_process::{Error, Signal, Task, Zygote, run_in_process};

use crate::{
    harness::{descriptors, eventually, without_warm_workers},
    load::{Fate, Way, call, exit_code, is_right, rest},
    oracle::{undisturbed, undisturbed_with},
};

crate::cases![
    f84_a_program_that_waits_for_every_child_takes_no_worker;
    90 => f85_sigchld_ignored_before_init,
    f85_sigchld_ignored_after_init,
    f85_children_that_are_not_waited_for,
    f86_programs_of_tokio_beside_tasks,
    e68_few_descriptors_in_the_zygote,
    g103_few_descriptors_in_the_parent,
    g103_few_descriptors_from_the_start,
    g103_processes_opened_at_the_limit_are_told_apart,
];

/// Two hundred tasks that return, exit and die of a signal, some of which start a program of their own.
async fn two_hundred() {
    let mut tasks = JoinSet::new();
    for index in 0..200_u64 {
        tasks.spawn(async move {
            let fate = [Fate::Return, Fate::Exit, Fate::Crash][usize::try_from(index % 3).unwrap()];
            let way = [Way::Run, Way::Open, Way::RunBlocking, Way::OpenBlocking][usize::try_from(index % 4).unwrap()];
            let outcome = call(Task::new(), index, way, fate).await;
            assert!(is_right(index, fate, &outcome), "{index}, {fate:?} by {way:?}: {outcome:?}");
        });
    }
    tasks.join_all().await;
    let programs = async || {
        let std = std::process::Command::new("sh").args(["-c", "exit 5"]).status().unwrap().code();
        let tokio = tokio::process::Command::new("sh").args(["-c", "exit 6"]).status().await.unwrap().code();
        (std, tokio)
    };
    assert_eq!(run_in_process(programs, ()).await.unwrap(), (Some(5), Some(6)));
}

fn f84_a_program_that_waits_for_every_child_takes_no_worker() {
    undisturbed(|| async {
        let (stop, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let reaper = {
            let (stop, taken) = (stop.clone(), taken.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // SAFETY: a null status is allowed.
                    if unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {
                        taken.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(Duration::from_micros(50));
                }
            })
        };
        two_hundred().await;
        let second = Zygote::builder().start().unwrap();
        assert_eq!(second.run_in_process(async |n: u8| n, 9).await.unwrap(), 9);
        stop.store(true, Ordering::Relaxed);
        reaper.join().unwrap();
        assert_eq!(taken.load(Ordering::Relaxed), 0, "children of the program that are not its own");
    });
}

fn ignore_sigchld() {
    // SAFETY: an ignored signal needs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

fn f85_sigchld_ignored_before_init() {
    ignore_sigchld();
    undisturbed(two_hundred);
}

fn f85_sigchld_ignored_after_init() {
    undisturbed(|| async {
        ignore_sigchld();
        two_hundred().await;
        let second = Zygote::builder().start().unwrap();
        assert_eq!(second.run_in_process(async |n: u8| n, 9).await.unwrap(), 9);
    });
}

fn f85_children_that_are_not_waited_for() {
    // SAFETY: an all-zero sigaction is the default action, without flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_flags = libc::SA_NOCLDWAIT;
    // SAFETY: a live sigaction.
    assert_eq!(unsafe { libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut()) }, 0);
    undisturbed(two_hundred);
}

fn f86_programs_of_tokio_beside_tasks() {
    undisturbed(|| async {
        let mut both = JoinSet::new();
        for number in 0..200_u64 {
            both.spawn(async move {
                let command = format!("exit {}", number % 256);
                let mut child =
                    tokio::process::Command::new("sh").args(["-c", &command]).stdin(StdStdio::null()).spawn().unwrap();
                let status = child.wait().await.unwrap();
                assert_eq!(status.code(), Some(exit_code(number)), "a program of tokio's");
            });
            both.spawn(async move {
                // Another code than the program's of the same number.
                let outcome = call(Task::new(), 255 - number, [Way::Run, Way::Open][(number % 2) as usize], Fate::Exit);
                assert_eq!(outcome.await.unwrap_err().exit_code(), Some(exit_code(255 - number)), "a task");
            });
        }
        both.join_all().await;
    });
}

/// Sets how many descriptors this program may have, and gives what it was.
fn limit_descriptors(count: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live rlimit.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    let before = std::mem::replace(&mut limit.rlim_cur, count);
    // SAFETY: a live rlimit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    before
}

/// Runs two hundred tasks at once, and gives how many had their value. The others were refused for the moment.
async fn as_many_as_go(zygote: &Zygote) -> usize {
    async fn nap(index: u64) -> u64 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        index
    }
    let mut tasks = JoinSet::new();
    for index in 0..200 {
        let zygote = zygote.clone();
        tasks.spawn(async move {
            let outcome = match index % 2 {
                0 => zygote.run_in_process(nap, index).await,
                _ => async { zygote.open_in_process(nap, index).await?.wait().await }.await,
            };
            match outcome {
                Ok(found) => {
                    assert_eq!(found, index);
                    true
                }
                Err(e) => {
                    assert!(e.is_retryable(), "{index}: {e:?}");
                    false
                }
            }
        });
    }
    tasks.join_all().await.into_iter().filter(|done| *done).count()
}

async fn with_few_descriptors(zygote: &Zygote, before: u64) {
    for _ in 0..3 {
        let done = as_many_as_go(zygote).await;
        println!("{done} of 200 ran");
        assert!(done > 0, "none ran");
        // What is refused is refused at once, and workers that are on their way out still hold what is missing.
        eventually("all are gone", || zygote.metrics().alive == 0).await;
    }
    limit_descriptors(before);
    assert_eq!(as_many_as_go(zygote).await, 200, "with enough of them");
}

fn g103_few_descriptors_in_the_parent() {
    undisturbed_with(Zygote::builder().max_processes(200), |zygote| async move {
        let before = limit_descriptors(64);
        with_few_descriptors(&zygote, before).await;
    });
}

/// The zygote and its workers have the limit as well, for good.
fn g103_few_descriptors_from_the_start() {
    let before = limit_descriptors(64);
    undisturbed_with(Zygote::builder().max_processes(200), |zygote| async move {
        with_few_descriptors(&zygote, before).await;
    });
}

/// Sets the soft limit of another process, and gives the one before.
fn limit_descriptors_of(pid: u32, count: u64) -> u64 {
    let pid = i32::try_from(pid).unwrap();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live limit; a null new one changes nothing.
    assert_eq!(unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit) }, 0);
    let before = std::mem::replace(&mut limit.rlim_cur, count);
    // SAFETY: a live limit.
    assert_eq!(unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) }, 0);
    before
}

/// A zygote that has no room for a worker's socket says so of that task, and lives.
fn e68_few_descriptors_in_the_zygote() {
    without_warm_workers();
    undisturbed_with(Zygote::builder().max_processes(64), |zygote| async move {
        // 0, 1, 2, the control socket, and where there is one the watch on the parent.
        let held = descriptors(zygote.pid()).len() as u64;
        let before = limit_descriptors_of(zygote.pid(), held);
        for _ in 0..20 {
            let error = zygote.run_in_process(async || 1, ()).await.unwrap_err();
            let Error::Spawn { source, .. } = &error else { panic!("{error:?}") };
            assert_eq!((source.raw_os_error(), error.is_retryable()), (Some(libc::EMFILE), true));
        }
        limit_descriptors_of(zygote.pid(), before);
        assert_eq!(zygote.run_in_process(async || 1, ()).await.unwrap(), 1);
    });
}

/// A process whose pidfd did not get through must not be taken for another.
fn g103_processes_opened_at_the_limit_are_told_apart() {
    undisturbed_with(Zygote::builder().max_processes(200), |zygote| async move {
        let before = limit_descriptors(64);
        let mut opening = JoinSet::new();
        for _ in 0..100 {
            let zygote = zygote.clone();
            opening.spawn(async move { zygote.open_in_process(rest, ()).await });
        }
        let mut processes = Vec::new();
        for opened in opening.join_all().await {
            match opened {
                Ok(process) => processes.push(process),
                Err(e) => assert!(e.is_retryable(), "{e:?}"),
            }
        }
        limit_descriptors(before);
        println!("{} of 100 are open", processes.len());
        assert!(!processes.is_empty());
        while processes.len() < 100 {
            processes.push(zygote.open_in_process(rest, ()).await.unwrap());
        }
        // Each dies of a signal of its own.
        let signals: Vec<i32> = (0..100).map(|number| 34 + number % 30).collect();
        for (process, &signal) in processes.iter().zip(&signals) {
            process.send_signal(signal).unwrap();
        }
        for (process, &signal) in processes.iter().zip(&signals) {
            assert_eq!(process.wait().await.unwrap_err().signal(), Some(Signal::from(signal)));
            assert_eq!(process.exited().await.0.signal(), Some(Signal::from(signal)));
        }
    });
}
