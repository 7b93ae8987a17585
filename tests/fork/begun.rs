//! When a task counts as begun. The worker of one whose caller waits for the outcome only does not say so.

use std::{future::Future, time::Duration};

use tokio_run_in_process::{Error, Signal, Zygote};

use crate::{
    harness::{eventually, multi_thread},
    oracle::scratch,
    orphans::Life,
    seed::{note, notes},
};

crate::cases![
    a_task_may_take_longer_than_its_start,
    a_task_that_is_stopped_goes_on_where_it_was,
    a_task_that_was_killed_is_not_done_again,
    a_task_killed_after_its_zygote_had_begun,
];

/// For a zygote without warm workers, and for one with some.
fn for_both<F: Future<Output = ()>>(body: impl Fn(Zygote) -> F) {
    let zygotes = [0, 2].map(|warm| Zygote::builder().warm(warm).startup_timeout(SHORT).start().unwrap());
    for zygote in zygotes {
        multi_thread().block_on(async {
            body(zygote.clone()).await;
            eventually("all are gone", || zygote.metrics().alive == 0).await;
        });
    }
}

const SHORT: Duration = Duration::from_secs(1);

/// Writes its pid and waits until it may go on.
async fn patient(path: String) -> u32 {
    note(&path, &std::process::id().to_string());
    while notes(&path).last().is_none_or(|word| word != "go") {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    std::process::id()
}

fn plain_patient(path: String) -> u32 {
    note(&path, &std::process::id().to_string());
    while notes(&path).last().is_none_or(|word| word != "go") {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::process::id()
}

/// The process that wrote its pid.
async fn begun(path: &str) -> (u32, Life) {
    let read = || std::fs::read_to_string(path).ok()?.lines().next()?.parse().ok();
    eventually("it has begun", || read().is_some()).await;
    let pid = read().unwrap();
    (pid, Life::of(pid))
}

fn a_task_may_take_longer_than_its_start() {
    for_both(|zygote| async move {
        let nap = async |n: u8| {
            tokio::time::sleep(2 * SHORT).await;
            n
        };
        let plain_nap = |n: u8| {
            std::thread::sleep(2 * SHORT);
            n
        };
        let (a, b) = tokio::join!(zygote.run_in_process(nap, 1), zygote.run_blocking_in_process(plain_nap, 2));
        assert_eq!((a.unwrap(), b.unwrap()), (1, 2));
    });
}

fn a_task_that_is_stopped_goes_on_where_it_was() {
    for_both(|zygote| async move {
        let path = scratch("stopped");
        for plain in [false, true] {
            let run = if plain {
                tokio::spawn(zygote.run_blocking_in_process(plain_patient, path.clone()))
            } else {
                tokio::spawn(zygote.run_in_process(patient, path.clone()))
            };
            let (pid, life) = begun(&path).await;
            life.signal(libc::SIGSTOP);
            eventually("it is stopped", || life.state() == Some('T')).await;
            tokio::time::sleep(2 * SHORT).await;
            note(&path, "go");
            assert!(!run.is_finished());
            life.signal(libc::SIGCONT);
            assert_eq!(run.await.unwrap().unwrap(), pid);
            assert_eq!(notes(&path).len(), 2, "it began once");
            std::fs::remove_file(&path).unwrap();
        }
    });
}

fn a_task_that_was_killed_is_not_done_again() {
    for_both(|zygote| async move {
        let path = scratch("killed");
        let run = tokio::spawn(zygote.run_in_process(patient, path.clone()));
        let (_, life) = begun(&path).await;
        life.kill();
        match run.await.unwrap() {
            Err(Error::Signaled { signal, .. }) => assert_eq!(signal, Signal::KILL),
            other => panic!("{other:?}"),
        }
        assert_eq!(notes(&path).len(), 1, "it began once");
        std::fs::remove_file(&path).unwrap();
    });
}

fn a_task_killed_after_its_zygote_had_begun() {
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        let path = scratch("lost");
        let run = tokio::spawn(zygote.run_in_process(patient, path.clone()));
        let (_, life) = begun(&path).await;
        let zygote = Life::of(zygote.pid());
        zygote.kill();
        eventually("the zygote is gone", || zygote.is_over()).await;
        life.kill();
        match run.await.unwrap() {
            Err(Error::ZygoteLost { started: Some(true), .. } | Error::Signaled { .. }) => {}
            other => panic!("{other:?}"),
        }
        std::fs::remove_file(&path).unwrap();
    });
}
