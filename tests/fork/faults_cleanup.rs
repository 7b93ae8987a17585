//! A task that is cancelled cleans up in its own way, and what its outcome is then.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use tokio_run_in_process::{Error, ExitStatus, Process, Signal, Task, default_zygote, worker};

use crate::{
    harness::{children, eventually, without_warm_workers},
    oracle::undisturbed,
    tools::{Notes, asleep, note, signal},
};

crate::cases![
    c39_a_task_that_cleans_up_gives_its_value,
    c39_cleaning_up_ends_with_the_grace_period,
    c39_a_limit_wins_over_the_value_but_not_over_the_cleaning_up,
    c39_signals_that_were_taken_over_and_given_back,
];

const GRACE: Duration = Duration::from_millis(400);
/// Longer than any case: what ends before it, ended politely.
const LONG: Duration = Duration::from_secs(600);

/// Cleans up, which takes a while and is done in steps.
async fn polite(path: String, takes: u64) -> u64 {
    let mut cancelled = std::pin::pin!(worker::cancelled());
    note(&path, "ready ");
    tokio::select! {
        () = &mut cancelled => {}
        () = pending() => {}
    }
    assert!(worker::is_cancelled());
    for _ in 0..takes {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    note(&path, "clean ");
    takes
}

/// Waits until a task awaits `cancelled()`: it said so just before.
async fn awaits(notes: &Notes, process: &Process<u64>) {
    notes.say("ready").await;
    asleep(process.pid()).await;
}

fn c39_a_task_that_cleans_up_gives_its_value() {
    without_warm_workers();
    undisturbed(|| async {
        let zygote = default_zygote().unwrap();
        let task = Task::new().grace_period(LONG);
        for way in 0..5 {
            let notes = Notes::new(&format!("c39-{way}"));
            let process = task.open(polite, (notes.path(), 50)).await.unwrap();
            awaits(&notes, &process).await;
            match way {
                0 => process.terminate().unwrap(),
                1 => process.send_signal(Signal::INT).unwrap(),
                2 => signal(process.pid(), libc::SIGTERM),
                3 => assert_eq!(process.shutdown().await.0, ExitStatus::Exited(0)),
                _ => {
                    drop(process);
                    notes.say("clean").await;
                    continue;
                }
            }
            assert_eq!(process.wait().await.unwrap(), 50);
            assert_eq!((process.exited().await.0, &*notes.text()), (ExitStatus::Exited(0), "ready clean "));
        }
        // A second signal does not cut the cleaning up.
        let notes = Notes::new("c39-twice");
        let process = task.open(polite, (notes.path(), 200)).await.unwrap();
        awaits(&notes, &process).await;
        process.terminate().unwrap();
        process.terminate().unwrap();
        process.send_signal(Signal::INT).unwrap();
        process.shutdown().await;
        assert_eq!(process.wait().await.unwrap(), 200);
        // What is spawned may await it too, and more than one.
        let beside = async |path: String| -> u64 {
            let both = [tokio::spawn(polite(path.clone(), 1)), tokio::spawn(polite(path, 2))];
            let mut sum = 0;
            for one in both {
                sum += one.await.unwrap();
            }
            sum
        };
        let notes = Notes::new("c39-both");
        let process = task.open(beside, notes.path()).await.unwrap();
        notes.say("ready ready").await;
        asleep(process.pid()).await;
        process.terminate().unwrap();
        assert_eq!(process.wait().await.unwrap(), 3);
        eventually("all are gone", || children(zygote.pid()).is_empty()).await;
    });
}

fn c39_cleaning_up_ends_with_the_grace_period() {
    undisturbed(|| async {
        let notes = Notes::new("c39");
        let process = Task::new().grace_period(GRACE).open(polite, (notes.path(), 600_000)).await.unwrap();
        awaits(&notes, &process).await;
        let start = Instant::now();
        assert_eq!(process.shutdown().await.0.signal(), Some(Signal::KILL));
        assert!(start.elapsed() >= GRACE);
        assert!(process.wait().await.unwrap_err().is_cancelled());
        assert_eq!(notes.text(), "ready ");
    });
}

fn c39_a_limit_wins_over_the_value_but_not_over_the_cleaning_up() {
    undisturbed(|| async {
        let task = Task::new().grace_period(LONG).timeout(Duration::from_millis(1500));
        let notes = [Notes::new("c39-run"), Notes::new("c39-open")];
        let start = Instant::now();
        // It has much longer to clean up than its caller waits.
        let error = task.run(polite, (notes[0].path(), 1000)).await.unwrap_err();
        assert!(error.is_timeout() && start.elapsed() >= Duration::from_millis(1500), "{error:?}");
        let process = task.open(polite, (notes[1].path(), 1000)).await.unwrap();
        assert!(process.wait().await.unwrap_err().is_timeout());
        assert_eq!(process.exited().await.0, ExitStatus::Exited(0));
        assert!(process.wait().await.unwrap_err().is_timeout(), "the outcome stays");
        for notes in notes {
            notes.say("ready clean ").await;
        }
    });
}

fn c39_signals_that_were_taken_over_and_given_back() {
    undisturbed(|| async {
        let counts = async |path: String| -> u64 {
            let (mut terms, mut ints) = (worker::signal(Signal::TERM).unwrap(), worker::signal(Signal::INT).unwrap());
            note(&path, "ready ");
            for n in 0..3 {
                terms.recv().await;
                note(&path, &format!("TERM{n} "));
            }
            ints.recv().await;
            drop(terms);
            note(&path, "back ");
            // The other one is still taken over.
            ints.recv().await;
            note(&path, "INT ");
            pending().await
        };
        let notes = Notes::new("c39");
        let process = Task::new().grace_period(LONG).open(counts, notes.path()).await.unwrap();
        notes.say("ready").await;
        for n in 0..3 {
            process.terminate().unwrap();
            notes.say(&format!("TERM{n}")).await;
        }
        process.send_signal(Signal::INT).unwrap();
        notes.say("back").await;
        process.send_signal(Signal::INT).unwrap();
        notes.say("INT").await;
        process.terminate().unwrap();
        let error = process.wait().await.unwrap_err();
        assert!(matches!(error, Error::Signaled { signal: Signal::TERM, .. }), "{error:?}");
    });
}
