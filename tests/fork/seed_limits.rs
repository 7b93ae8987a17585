//! How many processes there may be at a time, and how long one may take to come up.

use std::time::{Duration, Instant};

use tokio_run_in_process::{Error, MAX_PROCESSES, Phase, State, Task, Zygote, default_zygote};

use crate::{
    harness::{children, eventually, parent_of, without_warm_workers},
    oracle::{scratch, undisturbed, undisturbed_with},
    seed::{never, note, notes, poll_once, runtimes},
};

crate::cases![
    p05_sixteen_processes_at_most,
    p05_the_environment_sets_the_maximum,
    p05_the_builder_sets_the_maximum,
    p05_a_malformed_maximum_is_an_error,
    p05_the_next_one_waits_its_turn_fairly,
    s18_the_builder_sets_the_startup_timeout,
    s18_the_environment_sets_the_startup_timeout,
    s18_a_task_sets_the_startup_timeout,
    s18_the_default_is_five_seconds,
    s18_a_malformed_timeout_is_an_error,
    s18_a_worker_that_does_not_begin_is_killed,
    s19_one_more_does_not_start_before_one_has_ended,
    s19_never_more_than_the_maximum,
];

/// Opens as many processes as may be; one more must wait until one of them is gone.
async fn holds(zygote: &Zygote, maximum: usize) {
    assert_eq!(zygote.available_processes(), maximum);
    let mut processes = Vec::new();
    for _ in 0..maximum {
        processes.push(zygote.open_in_process(never, ()).await.unwrap());
    }
    assert!(processes.iter().all(|process| process.state() == State::Executing));
    assert_eq!(zygote.available_processes(), 0);
    let hasty = zygote.task().queue_timeout(Duration::from_millis(50));
    assert!(hasty.run(async || (), ()).await.unwrap_err().is_timeout());
    let mut waits = zygote.run_in_process(async || 5, ());
    assert!(poll_once(&mut waits).await.is_none());
    processes.pop().unwrap().kill().unwrap();
    assert_eq!(waits.await.unwrap(), 5);
    for process in processes {
        process.kill().unwrap();
        process.exited().await;
    }
}

fn p05_sixteen_processes_at_most() {
    assert_eq!(MAX_PROCESSES, 16);
    undisturbed(|| async { holds(&default_zygote().unwrap(), 16).await });
}

fn set_maximum(value: &str) {
    // SAFETY: there is one thread.
    unsafe { std::env::set_var("TOKIO_RUN_IN_PROCESS_MAX_PROCS", value) };
}

fn p05_the_environment_sets_the_maximum() {
    set_maximum("3");
    undisturbed(|| async { holds(&default_zygote().unwrap(), 3).await });
}

fn p05_the_builder_sets_the_maximum() {
    set_maximum("3");
    undisturbed_with(Zygote::builder().max_processes(2), |zygote| async move { holds(&zygote, 2).await });
}

fn p05_a_malformed_maximum_is_an_error() {
    for value in ["0", "many", "-1", ""] {
        set_maximum(value);
        let error = tokio_run_in_process::init().unwrap_err().to_string();
        assert!(error.contains("TOKIO_RUN_IN_PROCESS_MAX_PROCS") && error.contains(&format!("{value:?}")), "{error}");
    }
    assert!(children(std::process::id()).is_empty());
    set_maximum("1");
    undisturbed(|| async { holds(&default_zygote().unwrap(), 1).await });
}

fn p05_the_next_one_waits_its_turn_fairly() {
    let path = scratch("turns");
    undisturbed_with(Zygote::builder().max_processes(1), |zygote| async move {
        let first = zygote.open_in_process(never, ()).await.unwrap();
        let polled = async |path: String, number: u32| note(&path, &number.to_string());
        let plain = |path: String, number: u32| note(&path, &number.to_string());
        type Turn = std::pin::Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;
        let mut turns: Vec<Turn> = Vec::new();
        for number in 0..12 {
            let arguments = (path.clone(), number);
            let opened = zygote.task().open(polled, arguments.clone());
            turns.push(match number % 3 {
                0 => Box::pin(zygote.run_in_process(polled, arguments)),
                1 => Box::pin(async move { opened.await?.wait().await }),
                _ => Box::pin(zygote.run_blocking_in_process(plain, arguments)),
            });
        }
        for turn in &mut turns {
            assert!(poll_once(turn).await.is_none());
        }
        // The last comer is polled first, which does not help it.
        let turns: Vec<_> = turns.into_iter().rev().map(tokio::spawn).collect();
        first.kill().unwrap();
        for turn in turns {
            turn.await.unwrap().unwrap();
        }
        assert_eq!(notes(&path), (0..12).map(|number: u32| number.to_string()).collect::<Vec<_>>());
        std::fs::remove_file(path).unwrap();
    });
}

fn signal(zygote: &Zygote, signal: i32) {
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::kill(zygote.pid().try_into().unwrap(), signal) }, 0);
}

/// Stops a zygote, so that no worker comes up.
async fn stop(zygote: &Zygote) {
    signal(zygote, libc::SIGSTOP);
    let stopped = || std::fs::read_to_string(format!("/proc/{}/stat", zygote.pid())).unwrap().contains(") T ");
    eventually("the zygote is stopped", stopped).await;
}

/// No worker comes up: the callers are told when the time is over, not before, and their tasks never run.
async fn times_out_starting(zygote: &Zygote, task: &Task, limit: Duration) {
    let path = scratch("never-touched");
    let touch = |path: String| std::fs::write(path, "").unwrap();
    stop(zygote).await;
    let start = Instant::now();
    let mut callers = Vec::new();
    for (runtime, task) in runtimes(task) {
        let run = task.run(async move |path: String| touch(path), path.clone());
        let open = task.open(async move |path: String| touch(path), path.clone());
        callers.push((runtime, tokio::spawn(run)));
        callers.push((runtime, tokio::spawn(async move { open.await?.wait().await })));
    }
    let (run, open) = (task.run_blocking(touch, path.clone()), task.open_blocking(touch, path.clone()));
    callers.push(("blocking", tokio::spawn(run)));
    callers.push(("blocking", tokio::spawn(async move { open.await?.wait().await })));
    for (runtime, caller) in callers {
        let error = caller.await.unwrap().unwrap_err();
        assert!(start.elapsed() >= limit, "{runtime}: {:?}", start.elapsed());
        let Error::TimedOut { phase, limit: told, .. } = &error else { panic!("{runtime}: {error:?}") };
        assert_eq!((*phase, *told), (Phase::Starting, limit), "{runtime}");
        assert!(error.is_timeout() && error.is_retryable(), "{runtime}");
        assert!(error.to_string().contains(&format!("was not ready within {limit:?} and was killed")), "{error}");
    }
    signal(zygote, libc::SIGCONT);
    // It does now what it was asked for, too late.
    eventually("every permit is back", || zygote.available_processes() == MAX_PROCESSES).await;
    assert!(!std::fs::exists(path).unwrap());
}

const SHORT: Duration = Duration::from_millis(1500);

fn s18_the_builder_sets_the_startup_timeout() {
    without_warm_workers();
    undisturbed_with(Zygote::builder().startup_timeout(SHORT), |zygote| async move {
        times_out_starting(&zygote, &zygote.task(), SHORT).await;
    });
}

fn s18_the_environment_sets_the_startup_timeout() {
    without_warm_workers();
    // SAFETY: there is one thread.
    unsafe { std::env::set_var("TOKIO_RUN_IN_PROCESS_STARTUP_TIMEOUT", "1.5") };
    undisturbed(|| async { times_out_starting(&default_zygote().unwrap(), &Task::new(), SHORT).await });
}

fn s18_a_task_sets_the_startup_timeout() {
    without_warm_workers();
    undisturbed(|| async {
        let limit = Duration::from_millis(200);
        times_out_starting(&default_zygote().unwrap(), &Task::new().startup_timeout(limit), limit).await;
    });
}

fn s18_the_default_is_five_seconds() {
    without_warm_workers();
    undisturbed(|| async {
        times_out_starting(&default_zygote().unwrap(), &Task::new(), Duration::from_secs(5)).await;
    });
}

fn s18_a_malformed_timeout_is_an_error() {
    for value in ["0", "soon", "-1", "inf", ""] {
        // SAFETY: there is one thread.
        unsafe { std::env::set_var("TOKIO_RUN_IN_PROCESS_STARTUP_TIMEOUT", value) };
        let error = tokio_run_in_process::init().unwrap_err().to_string();
        assert!(error.contains("TOKIO_RUN_IN_PROCESS_STARTUP_TIMEOUT"), "{error}");
        assert!(error.contains(&format!("{value:?}")), "{error}");
    }
    assert!(children(std::process::id()).is_empty());
}

/// It has a pid, but waits for the rest of its arguments, which its caller does not send.
fn s18_a_worker_that_does_not_begin_is_killed() {
    undisturbed(|| async {
        let zygote = default_zygote().unwrap();
        let limit = Duration::from_millis(200);
        let path = scratch("never-touched");
        let touch = |path: String, _: Vec<u8>| std::fs::write(path, "").unwrap();
        let large = (path.clone(), vec![7_u8; 8 << 20]);
        let mut callers = Vec::new();
        let task = Task::new().startup_timeout(limit);
        for (runtime, task) in runtimes(&task) {
            callers
                .push((runtime, task.run(async move |path: String, fill: Vec<u8>| touch(path, fill), large.clone())));
        }
        callers.push(("blocking", task.run_blocking(touch, large)));
        for (runtime, mut caller) in callers {
            let start = Instant::now();
            assert!(poll_once(&mut caller).await.is_none(), "{runtime}");
            eventually("it is gone", || zygote.available_processes() == MAX_PROCESSES).await;
            assert!(start.elapsed() >= limit, "{runtime}: {:?}", start.elapsed());
            let error = caller.await.unwrap_err();
            assert!(matches!(error, Error::TimedOut { phase: Phase::Starting, .. }), "{runtime}: {error:?}");
            assert!(error.task().unwrap().pid().is_some(), "{runtime}: it had come up");
        }
        assert!(!std::fs::exists(path).unwrap());
    });
}

fn s19_one_more_does_not_start_before_one_has_ended() {
    without_warm_workers();
    undisturbed_with(Zygote::builder().max_processes(2), |zygote| async move {
        let task = zygote.task();
        // It tells whether one that should be gone is there when it starts itself.
        let is_there = |pid: u32| parent_of(pid) == Some(std::os::unix::process::parent_id());
        let second = zygote.open_in_process(never, ()).await.unwrap();
        for number in 0..3 {
            let first = zygote.open_in_process(never, ()).await.unwrap();
            let (name, mut third) = match number {
                0 => ("blocking", task.run_blocking(is_there, first.pid())),
                _ => {
                    let on = runtimes(&task);
                    let (name, task) = &on[(number - 1) % on.len()];
                    (*name, task.run(async move |pid: u32| is_there(pid), first.pid()))
                }
            };
            assert!(poll_once(&mut third).await.is_none(), "{name}");
            let third = tokio::spawn(third);
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(!third.is_finished(), "{name}");
            assert_eq!(children(zygote.pid()).len(), 2, "{name}");
            first.kill().unwrap();
            assert!(!third.await.unwrap().unwrap(), "{name}");
            assert_eq!(second.state(), State::Executing);
        }
        second.kill().unwrap();
        second.exited().await;
    });
}

fn s19_never_more_than_the_maximum() {
    without_warm_workers();
    undisturbed_with(Zygote::builder().max_processes(3), |zygote| async move {
        let siblings = || children(std::os::unix::process::parent_id()).len();
        let mut tasks = Vec::new();
        for _ in 0..30 {
            for (runtime, task) in runtimes(&zygote.task()) {
                tasks.push((runtime, tokio::spawn(task.run(async move || siblings(), ()))));
            }
            tasks.push(("blocking", tokio::spawn(zygote.run_blocking_in_process(siblings, ()))));
        }
        for (runtime, task) in tasks {
            let found = task.await.unwrap().unwrap();
            assert!((1..=3).contains(&found), "{runtime}: {found}");
        }
    });
}
