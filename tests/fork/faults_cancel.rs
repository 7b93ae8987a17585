//! A task is cancelled at every moment of its life, however it resists.

use std::{
    future::{Future, pending},
    io::Write,
    os::fd::FromRawFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tokio_run_in_process::{Error, Process, Signal, Task, Zygote, default_zygote, worker};

use crate::{
    harness::{children, descriptors, eventually, without_warm_workers},
    oracle::{undisturbed, undisturbed_with},
    tools::{Notes, Random, asleep, dead, note, poll_once, signal, status, stop, stubborn},
};

crate::cases![
    c27_a_future_dropped_before_its_first_poll_spawns_nothing,
    c27_a_future_dropped_in_the_queue_spawns_nothing,
    c28_a_worker_that_comes_after_its_caller_went_does_not_run_the_task,
    c29_dropped_before_the_worker_reads_an_argument_that_is_not_sent_yet,
    c29_dropped_half_way_through_its_argument,
    c30_dropped_while_its_result_comes_slowly,
    c30_dropped_while_a_large_result_waits,
    c31_dropped_in_its_grace_period,
    c32_aborted_and_timed_out_is_ended_once;
    120 => c28_futures_dropped_at_any_moment,
    c37_a_cancellation_meets_the_result,
];

const GRACE: Duration = Duration::from_millis(400);
/// Longer than any case: what ends before it, ended politely.
const LONG: Duration = Duration::from_secs(600);

type Anything<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// The four ways to start a task that notes that it ran, and then stays.
fn four_ways(task: &Task, path: &str) -> Vec<Anything<'static>> {
    async fn stays(path: String) {
        note(&path, "ran");
        pending().await
    }
    fn stays_blocking(path: String) {
        note(&path, "ran");
        std::thread::sleep(LONG);
    }
    let (a, b) = (task.run(stays, path.to_owned()), task.run_blocking(stays_blocking, path.to_owned()));
    let (c, d) = (task.open(stays, path.to_owned()), task.open_blocking(stays_blocking, path.to_owned()));
    vec![
        Box::pin(async { drop(a.await) }),
        Box::pin(async { drop(b.await) }),
        Box::pin(async { drop(c.await) }),
        Box::pin(async { drop(d.await) }),
    ]
}

fn c27_a_future_dropped_before_its_first_poll_spawns_nothing() {
    undisturbed(|| async {
        let (notes, zygote) = (Notes::new("c27"), default_zygote().unwrap().pid());
        let before = (descriptors(std::process::id()), asleep(zygote).await);
        for _ in 0..50 {
            drop(four_ways(&Task::new(), &notes.path()));
        }
        // At once: there was nothing that anybody would have to take back.
        assert_eq!((descriptors(std::process::id()), asleep(zygote).await), before);
        assert_eq!(notes.text(), "");
    });
}

fn c27_a_future_dropped_in_the_queue_spawns_nothing() {
    undisturbed_with(Zygote::builder().max_processes(1), |zygote| async move {
        let notes = Notes::new("c27");
        let busy = zygote.open_in_process(pending::<()>, ()).await.unwrap();
        // `open` does not wait for what the zygote says of the worker, with a pidfd: that is sent, and then it is read.
        let slept = asleep(zygote.pid()).await;
        asleep(driver()).await;
        let before = (descriptors(std::process::id()), slept);
        let mut queued: Vec<_> = (0..10).flat_map(|_| four_ways(&zygote.task(), &notes.path())).collect();
        assert!(queued.iter_mut().all(|task| poll_once(task).is_pending()));
        queued.drain(1..);
        assert_eq!((descriptors(std::process::id()), asleep(zygote.pid()).await), before);
        // The one that is left gets its turn and does not hear of it.
        busy.kill().unwrap();
        busy.exited().await;
        assert_eq!(zygote.available_processes(), 0);
        let slept = asleep(zygote.pid()).await;
        drop(queued);
        eventually("the turn comes back", || zygote.available_processes() == 1).await;
        assert_eq!(asleep(zygote.pid()).await, slept);
        assert_eq!(notes.text(), "");
    });
}

/// The library's thread.
fn driver() -> u32 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let mut pids = threads.map(|thread| thread.file_name().to_str().unwrap().parse().unwrap());
    pids.find(|&pid| status(pid, "Name").is_some_and(|name| name == "run-in-process")).unwrap()
}

/// The zygote stands between order and answer, past the grace period too.
fn c28_a_worker_that_comes_after_its_caller_went_does_not_run_the_task() {
    without_warm_workers();
    undisturbed_with(Zygote::builder().max_processes(64), |zygote| async move {
        let notes = Notes::new("c28");
        for (grace, stand) in [(LONG, Duration::ZERO), (Duration::ZERO, Duration::ZERO), (GRACE, 2 * GRACE)] {
            let task = zygote.task().grace_period(grace);
            stop(zygote.pid()).await;
            let mut tasks: Vec<_> = (0..8).flat_map(|_| four_ways(&task, &notes.path())).collect();
            assert!(tasks.iter_mut().all(|task| poll_once(task).is_pending()));
            drop(tasks);
            // What `open` ordered the driver takes back.
            asleep(driver()).await;
            tokio::time::sleep(stand).await;
            assert_eq!((children(zygote.pid()), zygote.available_processes()), (vec![], 32));
            signal(zygote.pid(), libc::SIGCONT);
            eventually("all turns are back", || zygote.available_processes() == 64).await;
            assert_eq!(children(zygote.pid()), [0_u32; 0]);
        }
        assert_eq!(notes.text(), "");
    });
}

fn c28_futures_dropped_at_any_moment() {
    undisturbed_with(Zygote::builder().max_processes(32).grace_period(LONG), |zygote| async move {
        let notes = Notes::new("c28");
        let mut lanes = JoinSet::new();
        for lane in 0..24 {
            let (task, path, mut random) = (zygote.task(), notes.path(), Random::new(lane));
            lanes.spawn(async move {
                for _ in 0..25 {
                    for mut future in four_ways(&task, &path) {
                        let until = Instant::now() + Duration::from_micros(random.below(4000));
                        // Polled by hand, so that it is dropped between any two steps, not only when a timer fires.
                        while Instant::now() < until && poll_once(&mut future).is_pending() {
                            tokio::task::yield_now().await;
                        }
                    }
                }
            });
        }
        lanes.join_all().await;
        eventually("all turns are back", || zygote.available_processes() == 32).await;
        let ran = notes.text().matches("ran").count();
        assert!((1..2400).contains(&ran), "{ran} of 2400 tasks had begun: the moments are not spread");
    });
}

const LARGE: usize = 8 << 20;

async fn takes_a_lot(path: String, text: String) -> usize {
    note(&path, "ran");
    text.len()
}

fn c29_dropped_before_the_worker_reads_an_argument_that_is_not_sent_yet() {
    without_warm_workers();
    undisturbed(|| async {
        let (notes, zygote) = (Notes::new("c29"), default_zygote().unwrap());
        let task = Task::new().grace_period(LONG);
        stop(zygote.pid()).await;
        let permits = zygote.available_processes();
        let arguments = || (notes.path(), "x".repeat(LARGE));
        let (run, open) = (task.run(takes_a_lot, arguments()), task.open(takes_a_lot, arguments()));
        let (mut run, mut open) = (Box::pin(run), Box::pin(open));
        for _ in 0..20 {
            assert!(poll_once(&mut run).is_pending() && poll_once(&mut open).is_pending());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop((run, open));
        signal(zygote.pid(), libc::SIGCONT);
        eventually("both turns are back", || zygote.available_processes() == permits).await;
        assert_eq!(notes.text(), "");
    });
}

fn c29_dropped_half_way_through_its_argument() {
    without_warm_workers();
    undisturbed(|| async {
        let (notes, zygote) = (Notes::new("c29"), default_zygote().unwrap());
        let permits = zygote.available_processes();
        for stands in [false, true] {
            let task = Task::new().grace_period(LONG);
            let mut run = Box::pin(task.run(takes_a_lot, (notes.path(), "x".repeat(LARGE))));
            // The caller sends, so what is not polled does not send: the worker has a part and waits for the rest.
            assert!(poll_once(&mut run).is_pending());
            eventually("the worker waits", || {
                let workers = children(zygote.pid());
                workers.iter().any(|&pid| status(pid, "State").is_some_and(|state| state.starts_with('S')))
            })
            .await;
            let worker = children(zygote.pid())[0];
            if stands {
                stop(worker).await;
                for _ in 0..20 {
                    assert!(poll_once(&mut run).is_pending());
                }
            }
            drop(run);
            let after = dead(worker, Instant::now()).await;
            eventually("its turn is back", || zygote.available_processes() == permits).await;
            assert_eq!(notes.text(), "", "dead after {after:?}");
        }
    });
}

/// A frame of the wire: a result of this length follows.
fn returned(length: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = 2;
    header[8..].copy_from_slice(&length.to_le_bytes());
    header
}

fn sends_slowly(path: &str) {
    // SAFETY: a worker's job socket, which this test gets hold of as hostile code would.
    let mut job = unsafe { std::fs::File::from_raw_fd(3) };
    job.write_all(&returned(1 << 29)).unwrap();
    for n in 0.. {
        // It does not block in an async task, and its reader is gone at the end.
        let _ = job.write(&[7; 100]);
        std::thread::sleep(Duration::from_millis(1));
        if n == 20 {
            note(path, &format!(" pid={} sending ", std::process::id()));
        }
    }
}

fn c30_dropped_while_its_result_comes_slowly() {
    undisturbed(|| async {
        let task = Task::new().grace_period(GRACE);
        let waited: [(Anything<'_>, Notes, bool); 2] = ["async", "blocking"].map(|kind| {
            let notes = Notes::new(kind);
            let polled = kind == "async";
            let run = match polled {
                true => {
                    task.run(async |path: String| -> u8 { unreachable!("{:?}", sends_slowly(&path)) }, notes.path())
                }
                false => {
                    task.run_blocking(|path: String| -> u8 { unreachable!("{:?}", sends_slowly(&path)) }, notes.path())
                }
            };
            let run: Anything<'_> = Box::pin(async { drop(run.await) });
            (run, notes, polled)
        });
        for (run, notes, polled) in waited {
            tokio::select! {
                () = run => panic!("it cannot be done"),
                () = notes.say("sending") => {}
            }
            let start = Instant::now();
            let after = dead(notes.pids()[0], start).await;
            // SIGTERM ends a plain function at once; the other never comes to its next await.
            assert!(!polled || after >= GRACE, "{after:?}");
        }
    });
}

/// The caller reads no more, so the worker waits in the middle of its result.
fn c30_dropped_while_a_large_result_waits() {
    without_warm_workers();
    undisturbed(|| async {
        let zygote = default_zygote().unwrap();
        let permits = zygote.available_processes();
        let large = async |path: String| -> String {
            note(&path, "ran");
            "x".repeat(64 << 20)
        };
        for stands in [false, true] {
            let notes = Notes::new(if stands { "c30-stopped" } else { "c30" });
            let mut run = Box::pin(Task::new().grace_period(LONG).run(large, notes.path()));
            assert!(poll_once(&mut run).is_pending());
            notes.say("ran").await;
            let worker = children(zygote.pid())[0];
            eventually("the worker waits", || status(worker, "State").is_some_and(|state| state.starts_with('S')))
                .await;
            for _ in 0..5 {
                assert!(poll_once(&mut run).is_pending());
            }
            if stands {
                stop(worker).await;
            }
            drop(run);
            eventually("its turn is back", || zygote.available_processes() == permits).await;
        }
    });
}

/// A grace period with time for more than one thing to happen, on a busy machine too.
const SLOW: Duration = Duration::from_secs(2);

/// Ends a stubborn task in some way that leaves nobody behind, and more than once.
async fn end_twice(way: usize, process: Process<()>) {
    let soon = SLOW / 20;
    match way {
        0 => drop(tokio::time::timeout(soon, process.shutdown()).await.unwrap_err()),
        1 => {
            tokio::select! {
                _ = process.shutdown() => panic!("it does not end that soon"),
                _ = process.wait() => panic!("it does not end that soon"),
                () = tokio::time::sleep(soon) => {}
            }
        }
        2 => {
            let (a, b) = tokio::join!(
                tokio::time::timeout(soon, process.shutdown()),
                tokio::time::timeout(soon / 2, process.shutdown())
            );
            assert!(a.is_err() && b.is_err());
        }
        _ => drop(process.shutdown()),
    }
    drop(process);
    tokio::time::sleep(soon).await;
}

fn c31_dropped_in_its_grace_period() {
    undisturbed(|| async {
        let ways = (0..4).map(async |way| {
            let notes = Notes::new(&format!("c31-{way}"));
            let process = Task::new().grace_period(SLOW).open(stubborn, notes.path()).await.unwrap();
            notes.say("ready").await;
            let (pid, start) = (process.pid(), Instant::now());
            end_twice(way, process).await;
            let after = dead(pid, start).await;
            assert!(after >= SLOW, "{way}: {after:?}");
            assert_eq!(notes.text().matches("TERM").count(), 1, "{way}: {}", notes.text());
        });
        let [a, b, c, d] = ways.collect::<Vec<_>>().try_into().ok().unwrap();
        tokio::join!(a, b, c, d);
    });
}

/// Notes each SIGTERM it gets, and stays a while for another one.
async fn counts(path: String) {
    let mut terms = worker::signal(Signal::TERM).unwrap();
    note(&path, &format!(" pid={} ready ", std::process::id()));
    terms.recv().await;
    note(&path, "TERM ");
    while tokio::time::timeout(Duration::from_millis(100), terms.recv()).await.is_ok() {
        note(&path, "TERM ");
    }
}

fn c32_aborted_and_timed_out_is_ended_once() {
    undisturbed(|| async {
        let mut random = Random::new(32);
        for (round, way) in (0..24).map(|n| (n, n % 3)) {
            let notes = Notes::new(&format!("c32-{round}"));
            let limit = Duration::from_millis(30);
            let task = Task::new().grace_period(LONG);
            // Its own limit as well, in every third round.
            let task = if way == 2 { task.timeout(limit) } else { task };
            let run = task.run(counts, notes.path());
            let (ready, path) = (tokio::sync::oneshot::channel(), notes.path());
            let waiting = tokio::spawn(async move {
                let mut run = Box::pin(run);
                tokio::select! {
                    outcome = &mut run => return Ok(outcome),
                    () = eventually("it is ready", || std::fs::read_to_string(&path).unwrap_or_default().contains("ready")) => {}
                }
                let _ = ready.0.send(());
                tokio::time::timeout(limit, run).await
            });
            let _ = ready.1.await;
            if way != 1 {
                tokio::time::sleep(limit - Duration::from_millis(2) + Duration::from_micros(random.below(4000))).await;
                waiting.abort();
            }
            match waiting.await {
                Err(aborted) => assert!(aborted.is_cancelled()),
                Ok(Err(_elapsed)) => {}
                Ok(Ok(outcome)) => assert!(way == 2 && outcome.unwrap_err().is_timeout()),
            }
            // Its own limit may have come before it was ready to count.
            let Some(&pid) = notes.pids().first() else { continue };
            dead(pid, Instant::now()).await;
            let terms = notes.text().matches("TERM").count();
            assert!(terms == 1 || way == 2 && terms == 0, "{way}: {}", notes.text());
        }
    });
}

/// One race of a cancellation with a result. Says whether the result was there first.
async fn race(zygote: Zygote, random: &mut Random, number: u64) -> bool {
    let (wakes, busy, delay) = (random.below(2) == 0, random.below(3000), random.below(4));
    let task = async |number: u64, wakes: bool, busy: u64| {
        if wakes {
            tokio::time::sleep(Duration::from_micros(busy / 2)).await;
        }
        std::thread::sleep(Duration::from_micros(busy / 2));
        number
    };
    let delay = tokio::time::sleep(Duration::from_millis(delay));
    let arguments = (number, wakes, busy);
    let outcome = match number % 4 {
        0 | 1 => {
            let process = zygote.open_in_process(task, arguments).await.unwrap();
            delay.await;
            process.shutdown().await;
            process.wait().await.map_err(|error| assert!(error.is_cancelled(), "{error:?}"))
        }
        2 => {
            let process = zygote.open_in_process(task, arguments).await.unwrap();
            delay.await;
            let sent = process.terminate();
            assert!(sent.is_ok() || sent.unwrap_err().raw_os_error() == Some(libc::ESRCH));
            process.wait().await.map_err(|error| assert_eq!(error.signal(), Some(Signal::TERM), "{error:?}"))
        }
        _ => {
            tokio::select! {
                outcome = zygote.run_in_process(task, arguments) => outcome.map_err(|error: Error| panic!("{error:?}")),
                () = delay => Err(()),
            }
        }
    };
    outcome.map(|value| assert_eq!(value, number)).is_ok()
}

fn c37_a_cancellation_meets_the_result() {
    undisturbed_with(Zygote::builder().max_processes(32).grace_period(LONG), |zygote| async move {
        const TRIES: u64 = 10_000;
        const LANES: u64 = 24;
        let values = Arc::new(AtomicU64::new(0));
        let mut lanes = JoinSet::new();
        for lane in 0..LANES {
            let (zygote, values, mut random) = (zygote.clone(), values.clone(), Random::new(lane + 37));
            lanes.spawn(async move {
                for number in (lane..TRIES).step_by(LANES as usize) {
                    let first = race(zygote.clone(), &mut random, number / LANES).await;
                    values.fetch_add(u64::from(first), Relaxed);
                }
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane.unwrap();
        }
        let values = values.load(Relaxed);
        println!("{values} values");
        assert!((TRIES / 100..TRIES - TRIES / 100).contains(&values), "{values} of {TRIES}: it was no race");
    });
}
