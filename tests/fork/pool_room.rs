//! The processes that there may be, shared by tasks, pools and generations: nobody waits for ever behind an idle worker.

use std::time::Duration;

use tokio_run_in_process::{Error, Phase, Zygote};

use crate::{
    harness::{begin, eventually, is_alive, multi_thread, send_signal},
    lost_zygote::soon,
    oracle::undisturbed_with,
    pool::{double, nap},
    tools::poll_once,
};

crate::cases![
    a_task_of_another_generation_waits_for_a_worker_that_becomes_idle,
    a_lane_that_is_kept_for_a_task_that_gives_up_makes_room,
    a_lane_that_was_kept_for_one_who_took_another_makes_room,
    an_idle_worker_that_is_dead_makes_no_room,
    a_pool_with_too_much_to_do_gives_others_a_turn,
    a_pool_of_more_workers_than_can_be_counted,
    so_many_may_wait_and_one_more_is_refused,
    where_none_may_wait_a_pool_goes_on,
    a_zygote_says_how_long_tasks_may_wait,
];

fn so_many_may_wait_and_one_more_is_refused() {
    undisturbed_with(Zygote::builder().max_processes(1).max_queued(2), |zygote| async move {
        let next = zygote.preload(|| (), ()).await.unwrap();
        let refused = async |zygote: &Zygote| match zygote.run_in_process(double, 1).await {
            Err(error @ Error::Saturated { limit: 2, .. }) => {
                assert!(error.is_retryable() && error.task().unwrap().name().ends_with("double"), "{error}");
            }
            other => panic!("{other:?}"),
        };
        let busy = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        let (first, second) =
            (begin(zygote.run_in_process(double, 2)).await, begin(next.run_in_process(double, 3)).await);
        refused(&zygote).await;
        refused(&next).await;
        // One that gives up makes room for another.
        drop(first);
        let third = begin(zygote.run_in_process(double, 4)).await;
        refused(&zygote).await;
        drop(busy);
        assert_eq!((second.await.unwrap(), third.await.unwrap()), (6, 8));
        assert_eq!(zygote.run_in_process(double, 5).await.unwrap(), 10);
        assert_eq!(zygote.metrics().queued + next.metrics().queued, 0);
        drop(next);
    });
}

fn where_none_may_wait_a_pool_goes_on() {
    let zygote = Zygote::builder().max_processes(1).max_queued(0).start().unwrap();
    multi_thread().block_on(async {
        // An idle worker of a pool is in nobody's way, and a pool's own tasks wait for its workers.
        let pool = zygote.pool().workers(2).build().unwrap();
        let (one, two) = tokio::join!(pool.run(nap, 30), pool.run(nap, 20));
        assert_eq!((one.unwrap(), two.unwrap()), (30, 20));
        assert_eq!(soon("its turn", zygote.run_in_process(double, 5)).await.unwrap(), 10);
    });
}

fn a_zygote_says_how_long_tasks_may_wait() {
    let limit = Duration::from_millis(30);
    undisturbed_with(Zygote::builder().max_processes(1).queue_timeout(limit), |zygote| async move {
        let busy = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        let error = zygote.run_in_process(double, 1).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { phase: Phase::Queued, limit: had, .. } if had == limit), "{error:?}");
        let patient = zygote.task().queue_timeout(Duration::from_secs(600));
        let waits = begin(patient.run(double, 2)).await;
        tokio::time::sleep(3 * limit).await;
        drop(busy);
        assert_eq!(waits.await.unwrap(), 4);
    });
}

fn a_task_of_another_generation_waits_for_a_worker_that_becomes_idle() {
    undisturbed_with(Zygote::builder().max_processes(1), |zygote| async move {
        let next = zygote.preload(|| (), ()).await.unwrap();
        for (pooled, plain) in [(&zygote, &next), (&next, &zygote)] {
            eventually("the process is free", || zygote.available_processes() == 1).await;
            let pool = pooled.pool().workers(1).build().unwrap();
            let busy = begin(pool.run(nap, 300)).await;
            let waits = tokio::spawn(plain.run_in_process(double, 4));
            eventually("it waits", || plain.metrics().queued == 1).await;
            assert_eq!(pooled.metrics().queued, 0, "each counts its own");
            assert_eq!(busy.await.unwrap(), 300);
            assert_eq!(soon("its turn", waits).await.unwrap().unwrap(), 8);
        }
    });
}

fn a_lane_that_is_kept_for_a_task_that_gives_up_makes_room() {
    undisturbed_with(Zygote::builder().max_processes(1), |zygote| async move {
        let pool = zygote.pool().workers(2).build().unwrap();
        let busy = pool.run(nap, 300);
        let other = pool.run(nap, 0);
        let plain = zygote.clone();
        let waits = tokio::spawn(async move {
            eventually("the pool has the process", || plain.available_processes() == 0).await;
            plain.run_in_process(double, 4).await
        });
        // `busy` is polled first: when it gives its lane back, `other` waits for it, and is dropped before it hears of that.
        tokio::select! {
            biased;
            done = busy => assert_eq!(done.unwrap(), 300),
            _ = other => panic!("there is one process"),
        }
        assert_eq!(soon("its turn", waits).await.unwrap().unwrap(), 8);
    });
}

fn a_lane_that_was_kept_for_one_who_took_another_makes_room() {
    undisturbed_with(Zygote::builder().max_processes(3), |zygote| async move {
        let pool = zygote.pool().workers(4).build().unwrap();
        let mut busy = Vec::new();
        for _ in 0..3 {
            busy.push(begin(pool.run(nap, 300)).await);
        }
        let mut fourth = begin(pool.run(nap, 60_000)).await;
        let waits = [4, 5].map(|n| tokio::spawn(zygote.run_in_process(double, n)));
        eventually("all wait", || zygote.metrics().queued == 3).await;
        // One lane goes, as others wait, too. The rest is kept for the fourth task, which hears of it later.
        for busy in busy {
            assert_eq!(busy.await.unwrap(), 300);
        }
        assert!(poll_once(&mut fourth).is_pending());
        for (n, waits) in (4..).zip(waits) {
            assert_eq!(soon("its turn", waits).await.unwrap().unwrap(), n * 2);
        }
    });
}

fn an_idle_worker_that_is_dead_makes_no_room() {
    undisturbed_with(Zygote::builder().max_processes(2), |zygote| async move {
        let pool = zygote.pool().workers(2).build().unwrap();
        let slow_pid = async |millis: u64| (nap(millis).await, std::process::id()).1;
        let (first, second) = tokio::join!(pool.run(slow_pid, 20), pool.run(slow_pid, 300));
        let (oldest, other) = (first.unwrap(), second.unwrap());
        assert_ne!(oldest, other);
        send_signal(oldest, libc::SIGKILL);
        eventually("its place is free", || zygote.available_processes() == 1).await;
        // It is still in the pool's list, where nobody has looked.
        eventually("it does not count", || pool.idle_workers() == 1).await;
        let stays = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        assert_eq!(soon("its turn", zygote.run_in_process(double, 4)).await.unwrap(), 8);
        assert!(stays.try_wait().is_none());
        eventually("the other made room", || !is_alive(other)).await;
        assert_eq!(pool.run(double, 5).await.unwrap(), 10);
    });
}

fn a_pool_with_too_much_to_do_gives_others_a_turn() {
    undisturbed_with(Zygote::builder().max_processes(1), |zygote| async move {
        let pool = zygote.pool().workers(3).build().unwrap();
        let mut endless = pool.map(nap, std::iter::repeat(1)).unordered();
        let busy = tokio::spawn(async move {
            while let Some(done) = endless.next().await {
                done.unwrap();
            }
        });
        eventually("the pool has the process", || zygote.available_processes() == 0).await;
        for n in 0..3 {
            assert_eq!(soon("its turn", zygote.run_in_process(double, n)).await.unwrap(), n * 2);
            assert!(!busy.is_finished());
        }
        busy.abort();
    });
}

fn a_pool_of_more_workers_than_can_be_counted() {
    undisturbed_with(Zygote::builder(), |zygote| async move {
        let pool = zygote.pool().workers(usize::MAX).build().unwrap();
        assert_eq!(pool.map(double, 0..4).collect().await.unwrap(), [0, 2, 4, 6]);
    });
}
