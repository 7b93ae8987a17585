//! Warm workers: who gets one, how many stand, and what they are.

#![expect(clippy::map_identity, reason = "it says what a task that never returns would return")]

use std::{
    collections::HashSet,
    process::{Child, Stdio as StdStdio},
    time::{Duration, Instant},
};

use tokio_run_in_process::{Error, Phase, Runtime, StartError, Stdio, WorkerTask, Zygote, init};

use crate::{
    harness::{children, descriptors, eventually, helper, is_alive, multi_thread, skip},
    hygiene::{LIBC, allowed, bit, draws, numbers, own, signals},
    oracle::undisturbed_with,
    tools::status,
};

crate::cases![
    a_task_goes_to_a_worker_that_stood_ready,
    none_stands_where_none_is_asked_for,
    none_stands_where_the_variable_says_so,
    a_malformed_number_of_warm_workers_is_an_error,
    the_builder_wins_over_the_variable,
    as_many_stand_again_after_tasks,
    workers_without_a_runtime_stand_where_they_are_used,
    options_reach_a_warm_worker,
    a_warm_worker_is_as_clean_as_a_cold_one,
    too_many_warm_workers_are_refused_by_number;
    60 => more_stand_under_a_burst_and_fewer_afterwards,
    no_job_kills_its_worker;
    180 => a_thousand_stand_and_serve,
    twenty_thousand_tasks_leave_nothing,
];

crate::helpers![spins];

const VARIABLE: &str = "TOKIO_RUN_IN_PROCESS_WARM";

/// Called while there is one thread.
fn set(value: &str) {
    // SAFETY: there is one thread.
    unsafe { std::env::set_var(VARIABLE, value) };
}

/// Waits until so many stand and nobody else is there, and gives their pids.
pub(crate) async fn all_stand(zygote: &Zygote, count: usize) -> Vec<u32> {
    all_stand_beside(zygote, count, &[]).await
}

/// The same where other zygotes were forked from this one.
pub(crate) async fn all_stand_beside(zygote: &Zygote, count: usize, others: &[u32]) -> Vec<u32> {
    let mut pids = Vec::new();
    eventually("all stand", || {
        pids = children(zygote.pid());
        pids.retain(|pid| !others.contains(pid));
        // Nor is one on its way out that had a task, while a spare is not yet forked.
        let metrics = zygote.metrics();
        pids.len() == count && (metrics.warm, metrics.alive) == (count, 0) && pids.iter().all(|&pid| is_alive(pid))
    })
    .await;
    pids
}

async fn pid() -> u32 {
    std::process::id()
}

fn a_task_goes_to_a_worker_that_stood_ready() {
    undisturbed_with(Zygote::builder().warm(3), |zygote| async move {
        let before = zygote.metrics().started_warm;
        for _ in 0..10 {
            let stood = all_stand(&zygote, 3).await;
            assert!(stood.contains(&zygote.run_in_process(pid, ()).await.unwrap()));
            let stood = all_stand(&zygote, 3).await;
            let process = zygote.open_in_process(pid, ()).await.unwrap();
            assert!(stood.contains(&process.pid()));
            assert_eq!(process.wait().await.unwrap(), process.pid());
        }
        assert_eq!(zygote.metrics().started_warm, before + 20);
    });
}

pub(crate) async fn burst(zygote: &Zygote, count: u64) {
    let napping = async |n: u64| {
        tokio::time::sleep(Duration::from_millis(10)).await;
        n * 7
    };
    let tasks: Vec<_> = (0..count).map(|n| (n, tokio::spawn(zygote.run_in_process(napping, n)))).collect();
    for (n, task) in tasks {
        assert_eq!(task.await.unwrap().unwrap(), n * 7);
    }
}

async fn none_ever_stands(zygote: &Zygote) {
    for _ in 0..3 {
        burst(zygote, 16).await;
        assert_eq!(zygote.run_blocking_in_process(|n: u8| n, 1).await.unwrap(), 1);
        eventually("no process is left", || children(zygote.pid()).is_empty()).await;
        assert_eq!((zygote.metrics().warm, zygote.metrics().started_warm), (0, 0));
    }
}

fn none_stands_where_none_is_asked_for() {
    undisturbed_with(Zygote::builder().warm(0), |zygote| async move { none_ever_stands(&zygote).await });
}

fn none_stands_where_the_variable_says_so() {
    set("0");
    undisturbed_with(Zygote::builder(), |zygote| async move { none_ever_stands(&zygote).await });
}

fn a_malformed_number_of_warm_workers_is_an_error() {
    let before = own();
    for bad in ["", "-1", "1.5", "some", "0x4", "99999999999999999999999"] {
        set(bad);
        for error in [init().unwrap_err(), Zygote::builder().warm(1).start().unwrap_err()] {
            let StartError::Config { name, value, .. } = &error else { panic!("{error:?}") };
            assert_eq!((*name, &**value), (VARIABLE, bad));
            assert!(error.to_string().contains(VARIABLE), "{error}");
        }
    }
    assert_eq!(own(), before, "nothing is left behind");
    set("2");
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(all_stand(&zygote, 2));
}

fn the_builder_wins_over_the_variable() {
    set("5");
    let five = Zygote::builder().start().unwrap();
    let none = Zygote::builder().warm(0).start().unwrap();
    let two = Zygote::builder().warm(2).start().unwrap();
    set("0");
    let one = Zygote::builder().warm(1).start().unwrap();
    let others = [five.pid(), none.pid(), two.pid(), one.pid()];
    multi_thread().block_on(async {
        for (zygote, count) in [(&five, 5), (&none, 0), (&two, 2), (&one, 1)] {
            all_stand_beside(zygote, count, &others).await;
            zygote.run_in_process(pid, ()).await.unwrap();
            all_stand_beside(zygote, count, &others).await;
        }
    });
}

fn as_many_stand_again_after_tasks() {
    undisturbed_with(Zygote::builder().warm(3), |zygote| async move {
        let mut seen = HashSet::new();
        for _ in 0..5 {
            for _ in 0..10 {
                assert!(seen.insert(zygote.run_in_process(pid, ()).await.unwrap()), "a worker serves one task");
            }
            zygote.run_in_process(async || std::process::abort(), ()).await.map(|()| ()).unwrap_err();
            drop(zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap());
            all_stand(&zygote, 3).await;
        }
    });
}

fn more_stand_under_a_burst_and_fewer_afterwards() {
    undisturbed_with(Zygote::builder().warm(2), |zygote| async move {
        let start = Instant::now();
        while zygote.metrics().warm < 8 {
            assert!(start.elapsed() < Duration::from_secs(30), "never more than {}", zygote.metrics().warm);
            burst(&zygote, 16).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(zygote.metrics().warm <= 16);
        // And nobody has to ask for it.
        all_stand(&zygote, 2).await;
    });
}

fn workers_without_a_runtime_stand_where_they_are_used() {
    undisturbed_with(Zygote::builder().warm(2), |zygote| async move {
        all_stand(&zygote, 2).await;
        let warm = || zygote.metrics().started_warm;
        let before = warm();
        assert_eq!(numbers(&zygote.run_blocking_in_process(own, ()).await.unwrap()), [0, 1, 2, 3]);
        assert_eq!(warm(), before, "the first is cold");
        // How soon one stands is the driver's business, and it goes again after a calm second.
        let start = Instant::now();
        let mut served = 0;
        while served < 10 {
            assert!(start.elapsed() < Duration::from_secs(10), "{served} were warm");
            let stood = children(zygote.pid());
            let before = warm();
            let (found, pid) = zygote.run_blocking_in_process(|| (own(), std::process::id()), ()).await.unwrap();
            assert_eq!(numbers(&found), [0, 1, 2, 3], "{found:?}");
            assert_eq!(found[0].1, "/dev/null");
            if warm() > before && stood.contains(&pid) {
                served += 1;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        all_stand(&zygote, 2).await;
    });
}

struct Threads;

impl Runtime for Threads {
    fn run(task: WorkerTask) {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(task)
    }
}

fn options_reach_a_warm_worker() {
    undisturbed_with(Zygote::builder().warm(2), |zygote| async move {
        let before = zygote.metrics().started_warm;
        let task = || zygote.task();
        all_stand(&zygote, 2).await;
        let variable = async || (std::env::var("WARMTH").ok(), std::env::var("HOME").ok());
        let found = task().env_clear().env("WARMTH", "much").run(variable, ()).await.unwrap();
        assert_eq!(found, (Some("much".to_owned()), None));
        all_stand(&zygote, 2).await;
        let directory = async || std::env::current_dir().unwrap().to_str().unwrap().to_owned();
        assert_eq!(task().current_dir("/proc").run(directory, ()).await.unwrap(), "/proc");
        all_stand(&zygote, 2).await;
        let missing = task().current_dir("/is/not/there").run(directory, ()).await.unwrap_err();
        assert!(matches!(missing, Error::Spawn { .. }), "{missing:?}");
        all_stand(&zygote, 2).await;
        let copies = async || {
            let text = std::io::read_to_string(std::io::stdin()).unwrap();
            print!("out {text}");
            eprint!("err {text}");
        };
        let piped = task().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let process = piped.open(copies, ()).await.unwrap();
        let mut stdin = process.take_stdin().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stdin, b"text").await.unwrap();
        drop(stdin);
        let (mut out, mut err) = (process.take_stdout().unwrap(), process.take_stderr().unwrap());
        let mut texts = (String::new(), String::new());
        tokio::io::AsyncReadExt::read_to_string(&mut out, &mut texts.0).await.unwrap();
        tokio::io::AsyncReadExt::read_to_string(&mut err, &mut texts.1).await.unwrap();
        assert_eq!(texts, ("out text".to_owned(), "err text".to_owned()));
        process.wait().await.unwrap();
        drop((process, out, err));
        all_stand(&zygote, 2).await;
        let named = async || {
            let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
            (comm.trim().to_owned(), tokio_run_in_process::worker::name().map(str::to_owned))
        };
        let (comm, name) = task().name("heater").run(named, ()).await.unwrap();
        assert_eq!((&*comm, name.as_deref()), ("heater", Some("heater")));
        all_stand(&zygote, 2).await;
        let limit = Duration::from_millis(50);
        let error = task().timeout(limit).run(std::future::pending::<()>, ()).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { phase: Phase::Running, limit: l, .. } if l == limit), "{error:?}");
        all_stand(&zygote, 2).await;
        let error = task().result_limit(100).run(async || "x".repeat(1000), ()).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { limit: 100, .. }), "{error:?}");
        assert_eq!(zygote.metrics().started_warm, before + 7, "all of them were warm");

        let threads = async || tokio::runtime::Handle::current().metrics().num_workers();
        let custom = task().runtime::<Threads>().env("WARMTH", "some");
        let before = zygote.metrics().started_warm;
        let start = Instant::now();
        while zygote.metrics().started_warm < before + 5 {
            assert!(start.elapsed() < Duration::from_secs(10), "never a warm one for another runtime");
            assert_eq!(custom.run(threads, ()).await.unwrap(), 1);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // What an option did to one worker is nobody else's.
        all_stand(&zygote, 2).await;
        let (warmth, home) = zygote.run_in_process(variable, ()).await.unwrap();
        assert_eq!((warmth, home), (None, std::env::var("HOME").ok()));
    });
}

fn a_warm_worker_is_as_clean_as_a_cold_one() {
    undisturbed_with(Zygote::builder().warm(4), |zygote| async move {
        let mut seen: HashSet<u64> = draws().into_iter().collect();
        let before = zygote.metrics().started_warm;
        let mut kinds = HashSet::new();
        for _ in 0..50 {
            all_stand(&zygote, 4).await;
            let (drawn, [pending, blocked, ignored, caught], found) =
                zygote.run_in_process(async || (draws(), signals(), own()), ()).await.unwrap();
            assert!(drawn.into_iter().all(|number| seen.insert(number)), "drawn twice");
            assert_eq!((pending, blocked, ignored & !LIBC), (0, 0, bit(libc::SIGPIPE)));
            assert_eq!(caught & !allowed(), bit(libc::SIGTERM) | bit(libc::SIGINT), "{caught:x}");
            assert_eq!(numbers(&found)[..4], [0, 1, 2, 3], "{found:?}");
            kinds.insert(found.len());
        }
        assert_eq!(zygote.metrics().started_warm, before + 50);
        assert_eq!(kinds.len(), 1, "some held more than others");
        let start = Instant::now();
        let before = zygote.metrics().started_warm;
        while zygote.metrics().started_warm < before + 50 {
            assert!(start.elapsed() < Duration::from_secs(15));
            let (drawn, [pending, blocked, ignored, caught]) =
                zygote.run_blocking_in_process(|| (draws(), signals()), ()).await.unwrap();
            assert!(drawn.into_iter().all(|number| seen.insert(number)), "drawn twice");
            assert_eq!((pending, blocked, ignored & !LIBC), (0, 0, bit(libc::SIGPIPE)));
            assert_eq!(caught & !allowed(), 0, "{caught:x}");
        }
    });
}

fn set_limit(soft: impl FnOnce(libc::rlimit) -> u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live rlimit.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = soft(limit);
    // SAFETY: a live rlimit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

fn too_many_warm_workers_are_refused_by_number() {
    set_limit(|limit| limit.rlim_max.min(1024));
    let before = own();
    for count in [100_000, 1_000, usize::MAX] {
        let error = Zygote::builder().warm(count).start().unwrap_err();
        let StartError::Descriptors { needed, limit, .. } = error else { panic!("{error:?}") };
        assert!(limit <= 1024 && needed >= (count as u64).saturating_mul(2) && needed > limit, "{error}");
        assert!(error.to_string().contains(&needed.to_string()) && error.to_string().contains(&limit.to_string()));
    }
    assert_eq!(own(), before, "no descriptor is left");
    assert_eq!(children(std::process::id()), [0; 0], "no process is left");
    let zygote = Zygote::builder().warm(100).start().unwrap();
    multi_thread().block_on(async {
        all_stand(&zygote, 100).await;
        burst(&zygote, 100).await;
        all_stand(&zygote, 100).await;
    });
}

fn a_thousand_stand_and_serve() {
    set_limit(|limit| {
        if limit.rlim_max < 3000 {
            skip(&format!("the hard limit of descriptors is {}", limit.rlim_max));
        }
        limit.rlim_max.min(10_000)
    });
    let zygote = Zygote::builder().warm(1000).max_processes(64).start().unwrap();
    multi_thread().block_on(async {
        all_stand(&zygote, 1000).await;
        let tasks: Vec<_> =
            (0..2000_u64).map(|n| tokio::spawn(zygote.run_in_process(async |n: u64| n + 1, n))).collect();
        for (n, task) in (1..).zip(tasks) {
            assert_eq!(task.await.unwrap().unwrap(), n);
        }
        let metrics = zygote.metrics();
        assert_eq!((metrics.started, metrics.finished.returned), (2000, 2000));
        assert!(metrics.started_warm >= 1000, "{}", metrics.started_warm);
        all_stand(&zygote, 1000).await;
    });
}

pub(crate) fn kilobytes(pid: u32) -> i64 {
    status(pid, "VmRSS").unwrap().trim_end_matches(" kB").trim().parse().unwrap()
}

fn twenty_thousand_tasks_leave_nothing() {
    undisturbed_with(Zygote::builder().warm(4), |zygote| async move {
        let mut sizes = Vec::new();
        for part in 0..4 {
            for n in 0..5000_u64 {
                assert_eq!(zygote.run_in_process(async |n: u64| n ^ 1, n).await.unwrap(), n ^ 1);
            }
            all_stand(&zygote, 4).await;
            let held = descriptors(std::process::id()).len();
            sizes.push((kilobytes(std::process::id()), kilobytes(zygote.pid()), held));
            println!("after {} tasks: {:?}", (part + 1) * 5000, sizes[part]);
        }
        let (first, last) = (sizes[0], sizes[3]);
        assert!(last.0 - first.0 < 2048 && last.1 - first.1 < 2048, "memory grows: {sizes:?}");
        assert_eq!(first.2, last.2, "descriptors grow");
    });
}

/// A program that is killed with the case that started it, or before.
pub(crate) struct Program(pub(crate) Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that only wants the processor.
fn spins() {
    println!("spins");
    loop {
        std::hint::spin_loop();
    }
}

/// The sender of a job may be held up between the job and the switch that arms its worker.
fn no_job_kills_its_worker() {
    let _busy: Vec<_> = (0..2).map(|_| Program(helper("spins").stdout(StdStdio::null()).spawn().unwrap())).collect();
    // On a busy machine these four wait long for their turn.
    let patient = Zygote::builder().warm(4).startup_timeout(Duration::from_secs(60));
    undisturbed_with(patient, |zygote| async move {
        let senders: Vec<_> = (0..4_u64)
            .map(|sender| {
                let zygote = zygote.clone();
                // Less than the workers and the busy ones: its processor is taken away wherever it is.
                std::thread::spawn(move || {
                    // SAFETY: touches no memory. Of this thread only, on Linux.
                    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        for n in 0..750 {
                            let value = zygote.run_in_process(async |a: u64, b: u64| a * b, (sender, n)).await;
                            assert_eq!(value.unwrap(), sender * n);
                        }
                    });
                })
            })
            .collect();
        for sender in senders {
            tokio::task::spawn_blocking(move || sender.join().unwrap()).await.unwrap();
        }
        let finished = zygote.metrics().finished;
        assert_eq!(finished.signaled, 0, "{finished:?}");
    });
}
