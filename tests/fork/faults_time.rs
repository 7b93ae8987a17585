//! Cancellation when clocks are not as usual, and with times at the ends of the scale.

use std::{
    future::pending,
    io::{BufRead, BufReader},
    pin::Pin,
    process::{Command, Stdio},
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use tokio_run_in_process::{Error, Phase, Signal, Task, Zygote, open_blocking_in_process, run_in_process};

use crate::{
    harness::{eventually, helper, is_alive, skip},
    oracle::{scratch, undisturbed, undisturbed_with},
    tools::{Notes, dead, must_succeed, note, poll_once, signal, stopped, stubborn, unshared},
};

crate::cases![
    c40_a_program_that_was_stopped_loses_nothing,
    c41_a_monotonic_clock_that_is_days_ahead,
    c41_a_wall_clock_that_is_set_back,
    c42_no_grace_period_is_sigkill_at_once,
    c42_endless_times,
    c42_a_limit_of_nothing,
];
crate::helpers![everyday, is_stopped, sees_the_wall_clock_jump];

const GRACE: Duration = Duration::from_millis(400);
const LONG: Duration = Duration::from_secs(600);

/// What a program does with tasks, and what depends on clocks, signals and pids.
fn everyday() {
    undisturbed(|| async {
        assert_eq!(run_in_process(async |n: u8| n, 7).await.unwrap(), 7);
        let napping = async || tokio::time::sleep(Duration::from_millis(20)).await;
        let start = Instant::now();
        run_in_process(napping, ()).await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20));
        // Default actions, and a runtime's handlers.
        let polled = Task::new().grace_period(LONG).open(pending::<()>, ()).await.unwrap();
        let blocking = open_blocking_in_process(|| std::thread::sleep(LONG), ()).await.unwrap();
        for process in [polled, blocking] {
            assert_eq!(process.shutdown().await.0.signal(), Some(Signal::TERM));
            assert!(process.wait().await.unwrap_err().is_cancelled());
        }
        let limit = Duration::from_millis(100);
        let start = Instant::now();
        let error = Task::new().timeout(limit).run(pending::<()>, ()).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { phase: Phase::Running, .. }), "{error:?}");
        assert!(start.elapsed() >= limit && start.elapsed() < limit + Duration::from_secs(8));
        killed_after_its_grace_period().await;
        let error = run_in_process(async || -> u8 { std::process::exit(3) }, ()).await.unwrap_err();
        assert_eq!(error.exit_code(), Some(3));
    });
}

async fn killed_after_its_grace_period() {
    let notes = Notes::new("stubborn");
    let process = Task::new().grace_period(GRACE).open(stubborn, notes.path()).await.unwrap();
    notes.say("ready").await;
    let start = Instant::now();
    assert_eq!(process.shutdown().await.0.signal(), Some(Signal::KILL));
    let after = start.elapsed();
    assert!(after >= GRACE && after < GRACE + Duration::from_secs(8), "{after:?}");
}

fn c40_a_program_that_was_stopped_loses_nothing() {
    let mut child = helper("is_stopped").stdout(Stdio::piped()).spawn().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        stopped(child.id()).await;
        // Every time limit of the program that has one is over by then, by far.
        tokio::time::sleep(Duration::from_secs(4)).await;
        signal(child.id(), libc::SIGCONT);
    });
    let said: Vec<_> = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
    assert!(child.wait().unwrap().success(), "{said:?}");
    assert_eq!(said, ["all is well"]);
}

type Begun<F> = (Pin<Box<F>>, Poll<<F as Future>::Output>);

/// Polls it once; a warm worker may have answered by then.
fn begun<F: Future>(future: F) -> Begun<F> {
    let mut future = Box::pin(future);
    let first = poll_once(&mut future);
    (future, first)
}

async fn end<F: Future>((future, first): Begun<F>) -> F::Output {
    match first {
        Poll::Ready(output) => output,
        Poll::Pending => future.await,
    }
}

/// Stops itself in the middle of things.
fn is_stopped() {
    let startup = Duration::from_secs(2);
    undisturbed_with(Zygote::builder().max_processes(64).startup_timeout(startup), |zygote| async move {
        let nap = async |n: u8, ms: u64| {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            n
        };
        // Some that run: one ends in the meantime, one later, one is cut, one has time left, one is on its way out.
        let meanwhile = zygote.open_in_process(nap, (1, 1000)).await.unwrap();
        let later = zygote.open_in_process(nap, (2, 5500)).await.unwrap();
        let cut = zygote.task().timeout(startup).open(nap, (3, 600_000)).await.unwrap();
        let in_time = zygote.task().timeout(Duration::from_secs(60)).open(nap, (4, 5500)).await.unwrap();
        let notes = Notes::new("c40");
        let dropped = zygote.task().grace_period(GRACE).open(stubborn, notes.path()).await.unwrap();
        notes.say("ready").await;
        let dropped_pid = dropped.pid();
        drop(dropped);
        // And some that were ordered this very moment.
        let runs: Vec<_> = (0..8).map(|n| begun(zygote.run_in_process(nap, (n, 0)))).collect();
        let opens: Vec<_> = (0..8).map(|n| begun(zygote.open_in_process(nap, (n, 0)))).collect();
        let start = Instant::now();
        signal(std::process::id(), libc::SIGSTOP);
        for (n, run) in (0..).zip(runs) {
            assert_eq!(end(run).await.unwrap(), n);
        }
        assert!(start.elapsed() > startup, "it was stopped");
        for (n, open) in (0..).zip(opens) {
            assert_eq!(end(open).await.unwrap().wait().await.unwrap(), n);
        }
        assert_eq!(meanwhile.wait().await.unwrap(), 1);
        assert_eq!(later.wait().await.unwrap(), 2);
        // The time that a program is stopped counts for its tasks, which go on.
        assert!(cut.wait().await.unwrap_err().is_timeout());
        assert_eq!(in_time.wait().await.unwrap(), 4);
        dead(dropped_pid, start).await;
        println!("all is well");
    });
}

fn c41_a_monotonic_clock_that_is_days_ahead() {
    let options = ["--time", "--fork", "--monotonic", "864000", "--boottime", "864000"];
    must_succeed(&mut unshared(&options, "everyday"));
}

/// A library that a program loads before the C library: it moves the wall clock.
const SHIM: &str = r"
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long shift;
void shift_wall_clock(long seconds) { shift = seconds; }
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shift;
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec t;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &t);
    now->tv_sec = t.tv_sec;
    now->tv_usec = t.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (now) *now = t.tv_sec;
    return t.tv_sec;
}
";

fn c41_a_wall_clock_that_is_set_back() {
    let (source, shim) = (scratch("shim.c"), scratch("shim.so"));
    std::fs::write(&source, SHIM).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o", &shim, &source]).output();
    std::fs::remove_file(&source).unwrap();
    match built {
        Err(e) => skip(&format!("no C compiler: {e}")),
        Ok(output) if !output.status.success() => skip(&String::from_utf8_lossy(&output.stderr)),
        Ok(_) => {}
    }
    let status = helper("sees_the_wall_clock_jump").env("LD_PRELOAD", &shim).status();
    std::fs::remove_file(&shim).unwrap();
    assert!(status.unwrap().success());
}

fn shift_wall_clock(seconds: i64) {
    // SAFETY: a live C string.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"shift_wall_clock".as_ptr()) };
    assert!(!found.is_null());
    // SAFETY: the function of the library above has this signature.
    let shift: extern "C" fn(libc::c_long) = unsafe { std::mem::transmute(found) };
    let before = SystemTime::now();
    shift(seconds);
    assert_eq!(SystemTime::now() < before, seconds < 0, "the clock moves");
}

/// While tasks start, run and have their grace period, an hour back and two forward.
fn sees_the_wall_clock_jump() {
    undisturbed(|| async {
        for seconds in [-3600, 3600] {
            let notes = Notes::new(&format!("c41{seconds}"));
            let limit = Duration::from_millis(500);
            let task = Task::new().grace_period(GRACE);
            let start = Instant::now();
            let timed = tokio::spawn(task.clone().timeout(limit).run(pending::<()>, ()));
            let sleeper =
                tokio::spawn(run_in_process(async || tokio::time::sleep(Duration::from_millis(700)).await, ()));
            let process = task.open(stubborn, notes.path()).await.unwrap();
            notes.say("ready").await;
            let (pid, dropped) = (process.pid(), Instant::now());
            drop(process);
            shift_wall_clock(seconds);
            let after = dead(pid, dropped).await;
            assert!(after >= GRACE && after < GRACE + Duration::from_secs(8), "{after:?}");
            assert!(timed.await.unwrap().unwrap_err().is_timeout());
            assert!(start.elapsed() >= limit);
            sleeper.await.unwrap().unwrap();
            assert!(start.elapsed() < Duration::from_secs(10));
            assert_eq!(run_in_process(async |n: u8| n, 7).await.unwrap(), 7);
        }
    });
}

/// A task that would clean up if it had the time.
async fn polite(path: String) {
    note(&path, "ready ");
    tokio_run_in_process::worker::cancelled().await;
    note(&path, "clean ");
}

fn c42_no_grace_period_is_sigkill_at_once() {
    undisturbed(|| async {
        let task = Task::new().grace_period(Duration::ZERO);
        for way in 0..4 {
            let notes = Notes::new(&format!("c42-{way}"));
            let limited = if way == 3 { task.clone().timeout(Duration::from_millis(1500)) } else { task.clone() };
            let process = limited.open(polite, notes.path()).await.unwrap();
            notes.say("ready").await;
            crate::tools::asleep(process.pid()).await;
            let pid = process.pid();
            match way {
                0 => {
                    assert_eq!(process.shutdown().await.0.signal(), Some(Signal::KILL));
                    assert!(process.wait().await.unwrap_err().is_cancelled());
                }
                1 => drop(process),
                // The user's own signals have nothing to do with it.
                2 => {
                    process.terminate().unwrap();
                    process.wait().await.unwrap();
                }
                _ => {
                    assert!(process.wait().await.unwrap_err().is_timeout());
                    assert_eq!(process.exited().await.0.signal(), Some(Signal::KILL));
                }
            }
            dead(pid, Instant::now()).await;
            assert_eq!(notes.text().contains("clean"), way == 2);
        }
        // The result is there and the process must go: at once is soon enough.
        for n in 0..50 {
            let process = task.open(async |n: u8| n, n).await.unwrap();
            assert_eq!(process.wait().await.unwrap(), n);
            process.exited().await;
            assert_eq!(task.run(async |n: u8| n, n).await.unwrap(), n);
        }
    });
}

fn c42_endless_times() {
    let endless = Duration::MAX;
    let builder = Zygote::builder().max_processes(1).startup_timeout(endless).grace_period(endless);
    undisturbed_with(builder, |zygote| async move {
        let task = zygote.task().timeout(endless).queue_timeout(endless).startup_timeout(endless).grace_period(endless);
        assert_eq!(task.run(async |n: u8| n, 7).await.unwrap(), 7);
        let notes = Notes::new("c42");
        let process = task.open(stubborn, notes.path()).await.unwrap();
        notes.say("ready").await;
        let mut queued = Box::pin(task.run(async |n: u8| n, 8));
        assert!(poll_once(&mut queued).is_pending());
        let (exit, ()) = tokio::join!(process.shutdown(), async {
            notes.say("TERM").await;
            assert!(is_alive(process.pid()));
            process.kill().unwrap();
        });
        assert_eq!(exit.0.signal(), Some(Signal::KILL));
        assert!(process.wait().await.unwrap_err().is_cancelled());
        assert_eq!(queued.await.unwrap(), 8);
        // Almost endless: the clock would overflow at other places.
        for limit in [Duration::from_secs(u64::MAX / 2), Duration::from_secs(1 << 40), Duration::from_secs(1 << 33)] {
            let task = task.clone().timeout(limit).queue_timeout(limit).startup_timeout(limit).grace_period(limit);
            let process = task.open(pending::<()>, ()).await.unwrap();
            let mut queued = Box::pin(task.run(async |n: u8| n, 9));
            assert!(poll_once(&mut queued).is_pending());
            process.shutdown().await;
            assert_eq!(queued.await.unwrap(), 9);
        }
    });
}

fn c42_a_limit_of_nothing() {
    undisturbed_with(Zygote::builder().max_processes(1), |zygote| async move {
        let (task, none) = (zygote.task(), Duration::ZERO);
        for _ in 0..20 {
            let error = task.clone().timeout(none).run(pending::<()>, ()).await.unwrap_err();
            assert!(
                matches!(error, Error::TimedOut { phase: Phase::Running, limit, .. } if limit == none),
                "{error:?}"
            );
        }
        let mut never_ran = 0;
        for n in 0..100 {
            let notes = Notes::new(&format!("c42-{n}"));
            let marks = async |path: String| note(&path, "ran");
            match task.clone().startup_timeout(none).run(marks, notes.path()).await {
                Err(Error::TimedOut { phase: Phase::Starting, .. }) => {
                    eventually("it is gone", || zygote.available_processes() == 1).await;
                    assert_eq!(notes.text(), "");
                    never_ran += 1;
                }
                // It was quicker than whoever looks at the clock.
                Err(Error::TimedOut { phase: Phase::Running, .. }) | Ok(()) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        assert!(never_ran > 0);
        // There is room, so nobody waits; and where there is none, not for a moment.
        let hasty = task.clone().queue_timeout(none);
        eventually("there is room", || zygote.available_processes() == 1).await;
        let busy = hasty.open(pending::<()>, ()).await.unwrap();
        let error = hasty.run(async || (), ()).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { phase: Phase::Queued, .. }) && error.is_retryable(), "{error:?}");
        busy.kill().unwrap();
        busy.exited().await;
    });
}
