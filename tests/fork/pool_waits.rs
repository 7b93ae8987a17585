//! What a task of a pool waits for, and how long: its turn, a worker, the worker's initializer.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use tokio_run_in_process::{Error, ExitStatus, Phase, Pool, Task, Zygote, open_in_process};

use crate::{
    harness::{eventually, is_alive, multi_thread, send_signal},
    oracle::{undisturbed, undisturbed_with},
};

crate::cases![
    the_time_of_a_task_is_not_that_of_the_initializer,
    an_initializer_that_hangs_is_waited_for_no_longer_than_for_a_turn,
    the_time_to_wait_is_not_begun_anew_when_an_idle_worker_is_gone,
    tasks_that_wait_hear_of_a_shutdown_at_once,
    a_shutdown_counts_what_it_had_to_end,
    a_handle_that_is_kept_keeps_no_worker,
    a_worker_that_is_done_is_not_killed_for_want_of_grace,
];

const MS: Duration = Duration::from_millis(1);
/// Longer than anything takes here that does not wait for it.
const LONG: Duration = Duration::from_secs(8);

async fn id() -> u32 {
    std::process::id()
}

fn the_time_of_a_task_is_not_that_of_the_initializer() {
    undisturbed(|| async {
        let initialize = async || tokio::time::sleep(600 * MS).await;
        let pool = Pool::builder().workers(1).initializer(initialize).task_timeout(400 * MS).build().unwrap();
        let worker = pool.run(id, ()).await.unwrap();
        let error = pool.run(pending::<()>, ()).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { phase: Phase::Running, .. }), "{error:?}");
        assert_ne!(pool.open(id, ()).await.unwrap().wait().await.unwrap(), worker);
    });
}

fn an_initializer_that_hangs_is_waited_for_no_longer_than_for_a_turn() {
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).initializer(pending::<()>).queue_timeout(300 * MS).build().unwrap();
        let outcomes = [pool.run(id, ()).await.err(), pool.open(id, ()).await.err()];
        for error in outcomes.map(Option::unwrap) {
            assert!(matches!(error, Error::TimedOut { phase: Phase::Queued, .. }), "{error:?}");
            assert!(error.is_retryable());
        }
    });
}

fn the_time_to_wait_is_not_begun_anew_when_an_idle_worker_is_gone() {
    undisturbed_with(Zygote::builder().max_processes(1), |zygote| async move {
        let pool = zygote.pool().workers(1).queue_timeout(300 * MS).build().unwrap();
        let worker = pool.run(id, ()).await.unwrap();
        send_signal(worker, libc::SIGKILL);
        let _other = zygote.open_in_process(pending::<()>, ()).await.unwrap();
        let error = pool.run(id, ()).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { phase: Phase::Queued, .. }), "{error:?}");
    });
}

fn tasks_that_wait_hear_of_a_shutdown_at_once() {
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        let pool = zygote.pool().workers(1).build().unwrap();
        let running = pool.open(async || tokio::time::sleep(LONG).await, ()).await.unwrap();
        let (waits, also) = (pool.clone(), pool.clone());
        let waits = tokio::spawn(async move { waits.run(id, ()).await });
        let also = tokio::spawn(async move { also.open(id, ()).await.map(drop) });
        tokio::time::sleep(50 * MS).await;
        let start = Instant::now();
        let zygote = zygote.clone();
        let shutdown = tokio::spawn(async move { zygote.shutdown(LONG).await });
        assert!(matches!(waits.await.unwrap(), Err(Error::ShutDown)));
        assert!(matches!(also.await.unwrap(), Err(Error::ShutDown)));
        assert!(start.elapsed() < LONG / 2);
        running.cancel();
        shutdown.await.unwrap();
    });
}

fn a_shutdown_counts_what_it_had_to_end() {
    let zygotes = [0, 2].map(|busy| (busy, Zygote::builder().start().unwrap()));
    multi_thread().block_on(async {
        for (busy, zygote) in zygotes {
            let pool = zygote.pool().workers(3).build().unwrap();
            let ids = pool.map(async |n: u32| n, 0..100).concurrency(3).collect().await.unwrap();
            assert_eq!(ids.len(), 100);
            // It takes a while to be gone.
            let large = zygote.run_in_process(async || vec![7_u8; 100 << 20].iter().filter(|&&n| n == 7).count(), ());
            assert_eq!(large.await.unwrap(), 100 << 20);
            let mut under_way = Vec::new();
            for _ in 0..busy {
                under_way.push(zygote.open_in_process(pending::<()>, ()).await.unwrap());
            }
            assert_eq!(zygote.shutdown(Duration::ZERO).await, busy);
        }
    });
}

fn a_handle_that_is_kept_keeps_no_worker() {
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        let kept = pool.open(id, ()).await.unwrap();
        let worker = kept.wait().await.unwrap();
        assert!(is_alive(worker));
        drop(pool);
        eventually("its worker is gone", || !is_alive(worker)).await;
        assert_eq!(kept.wait().await.unwrap(), worker);

        let pool = Pool::builder().workers(1).build().unwrap();
        let worker = pool.run(id, ()).await.unwrap();
        assert_eq!(pool.idle_workers(), 1);
        send_signal(worker, libc::SIGKILL);
        eventually("it does not stand idle", || pool.idle_workers() == 0).await;
    });
}

fn a_worker_that_is_done_is_not_killed_for_want_of_grace() {
    undisturbed(|| async {
        let task = Task::new().grace_period(Duration::ZERO);
        for _ in 0..40 {
            let process = task.open(id, ()).await.unwrap();
            process.wait().await.unwrap();
            assert_eq!(process.exited().await.0, ExitStatus::Exited(0));
        }
        let process = task.open(pending::<()>, ()).await.unwrap();
        drop(process);
        open_in_process(id, ()).await.unwrap().wait().await.unwrap();
    });
}
