//! How workers ended whose zygote died: exactly as if it had not.

use std::time::Duration;

use tokio_run_in_process::{Error, ExitStatus, Process, Signal, Zygote};

use crate::{
    harness::{eventually, multi_thread},
    lost_zygote::{inherits, soon},
    oracle::scratch,
    orphans::Life,
    recovery::{both, go, kill, recovered},
    terminals::trace,
    tools::{Random, note, stop},
};

crate::cases![
    e61_exits_are_exact_after_the_death_of_a_zygote,
    e61_exits_are_exact_while_a_tracer_holds_the_dead_zygote;
    90 => e61_a_worker_that_ended_as_its_zygote_died_is_reported,
];

/// Ends in its own way once `path` is there.
fn end(path: String, how: u8) -> u8 {
    note(&format!("{path}-begun"), "x");
    while !go(&path) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let me = i32::try_from(std::process::id()).unwrap();
    match how {
        // SAFETY: as a program of the user's would.
        0..3 => unsafe { libc::_exit(40 + i32::from(how)) },
        // SAFETY: touches no memory.
        3 => drop(unsafe { libc::kill(me, libc::SIGKILL) }),
        4 => panic!("as it should"),
        5 => {
            while cpu_time() < Duration::from_millis(30) {
                std::hint::spin_loop();
            }
        }
        _ => {}
    }
    how
}

/// What this process has used.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

async fn end_async(path: String, how: u8) -> u8 {
    end(path, how)
}

const WAYS: u8 = 7;

fn is_right(how: u8, outcome: &Result<u8, Error>) -> bool {
    match (how, outcome) {
        (0..3, Err(Error::Exited { code, task, .. })) => *code == 40 + i32::from(how) && task.pid().is_some(),
        (3, Err(Error::Signaled { signal, task, .. })) => *signal == Signal::KILL && task.pid().is_some(),
        (4, Err(Error::Panicked { report, .. })) => report.message() == "as it should",
        (_, Ok(found)) => *found == how,
        // How it ended is not known everywhere.
        (0..4, Err(Error::ZygoteLost { started: Some(true), .. })) => !inherits(),
        _ => false,
    }
}

async fn is_exit_right(how: u8, process: &Process<u8>) {
    let (status, usage) = soon("an exit", process.exited()).await;
    let right = match how {
        0..3 => status == ExitStatus::Exited(40 + i32::from(how)),
        3 => status.signal() == Some(Signal::KILL),
        // What follows the report of a panic is the library's business.
        4 => status != ExitStatus::Unknown,
        _ => status.success(),
    };
    if !inherits() {
        assert!(right || status == ExitStatus::Unknown, "{how}: {status:?}");
        return;
    }
    assert!(right, "{how}: {status:?}");
    let usage = usage.expect("what it used");
    assert!(usage.max_rss > 0, "{usage:?}");
    assert!(how != 5 || usage.user_time + usage.system_time >= Duration::from_millis(15), "{usage:?}");
}

fn e61_exits_are_exact_after_the_death_of_a_zygote() {
    let zygotes = [0, 30].map(|warm| (warm, Zygote::builder().max_processes(64).warm(warm).start().unwrap()));
    for (warm, zygote) in zygotes {
        multi_thread().block_on(async {
            eventually("the spares stand", || zygote.metrics().warm == warm).await;
            let path = scratch(&format!("exits-{warm}"));
            let (mut runs, mut opened) = (Vec::new(), Vec::new());
            for how in 0..WAYS {
                runs.push((how, tokio::spawn(zygote.run_in_process(end_async, (path.clone(), how)))));
                runs.push((how, tokio::spawn(zygote.run_blocking_in_process(end, (path.clone(), how)))));
                opened.push((how, zygote.open_in_process(end_async, (path.clone(), how)).await.unwrap()));
                opened.push((how, zygote.open_blocking_in_process(end, (path.clone(), how)).await.unwrap()));
            }
            let begun = format!("{path}-begun");
            let count = || std::fs::read_to_string(&begun).unwrap_or_default().len();
            eventually("all have begun", || count() == 4 * usize::from(WAYS)).await;
            let before = both(&zygote);
            kill(before.serving).await;
            std::fs::write(&path, "").unwrap();
            for (how, run) in runs {
                let outcome = soon("an outcome", run).await.unwrap();
                assert!(is_right(how, &outcome), "{how}: {outcome:?}");
            }
            for (how, process) in opened {
                let outcome = soon("an outcome", process.wait()).await;
                assert!(is_right(how, &outcome), "{how}: {outcome:?}");
                is_exit_right(how, &process).await;
            }
            recovered(&zygote, &before).await;
            assert_eq!(count(), 4 * usize::from(WAYS), "none began twice");
            eventually("all are gone", || zygote.metrics().alive == 0).await;
            assert_eq!(zygote.metrics().zygotes_lost, 1);
            std::fs::remove_file(begun).unwrap();
            std::fs::remove_file(path).unwrap();
        });
    }
}

/// Its end is its tracer's to see first. Those of its workers are its ancestor's at once.
fn e61_exits_are_exact_while_a_tracer_holds_the_dead_zygote() {
    let zygote = Zygote::builder().warm(0).start().unwrap();
    multi_thread().block_on(async {
        let path = scratch("held");
        let mut processes = Vec::new();
        for how in 0..WAYS {
            processes.push((how, zygote.open_blocking_in_process(end, (path.clone(), how)).await.unwrap()));
        }
        let last = zygote.open_blocking_in_process(end, (format!("{path}-last"), 0)).await.unwrap();
        let before = both(&zygote);
        let (release, tracer) = trace(before.serving.pid);
        kill(before.serving).await;
        recovered(&zygote, &before).await;
        std::fs::write(&path, "").unwrap();
        for (how, process) in &processes {
            let outcome = soon("an outcome", process.wait()).await;
            assert!(is_right(*how, &outcome), "{how}: {outcome:?}");
            is_exit_right(*how, process).await;
        }
        assert!(before.serving.state().is_some(), "its tracer holds it");
        drop(release);
        tracer.join().unwrap();
        if inherits() {
            eventually("it is reaped", || before.serving.state().is_none()).await;
        }
        // One that lives on is taken over.
        std::fs::write(format!("{path}-last"), "").unwrap();
        let outcome = soon("an outcome", last.wait()).await;
        assert!(is_right(0, &outcome), "{outcome:?}");
        is_exit_right(0, &last).await;
        eventually("all are gone", || zygote.metrics().alive == 0).await;
        for name in ["", "-begun", "-last", "-last-begun"] {
            std::fs::remove_file(format!("{path}{name}")).unwrap();
        }
    });
}

/// The zygote is stopped, so that it reaps none of them; or it is not, and dies among them.
fn e61_a_worker_that_ended_as_its_zygote_died_is_reported() {
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        let mut random = Random::new(63);
        for round in 0..30 {
            let before = both(&zygote);
            let path = scratch(&format!("zombies-{round}"));
            let mut processes = Vec::new();
            for how in 0..WAYS {
                processes.push((how, zygote.open_blocking_in_process(end, (path.clone(), how)).await.unwrap()));
            }
            let lives: Vec<_> = processes.iter().map(|(_, process)| Life::of(process.pid())).collect();
            if round % 3 == 0 {
                stop(before.serving.pid).await;
                std::fs::write(&path, "").unwrap();
                eventually("all ended", || lives.iter().all(|life| life.is_over())).await;
            } else {
                std::fs::write(&path, "").unwrap();
                std::thread::sleep(Duration::from_micros(random.below(4000)));
            }
            before.serving.kill();
            for (how, process) in &processes {
                let outcome = soon("an outcome", process.wait()).await;
                assert!(is_right(*how, &outcome), "{how}: {outcome:?}");
                is_exit_right(*how, process).await;
            }
            recovered(&zygote, &before).await;
            std::fs::remove_file(format!("{path}-begun")).unwrap();
            std::fs::remove_file(path).unwrap();
        }
    });
}
