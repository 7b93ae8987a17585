//! What the counters say of tasks whose course is known.

use std::time::Duration;

use tokio_run_in_process::{Latency, Metrics, Zygote, worker};

use crate::{
    harness::{begin, children, eventually, multi_thread},
    oracle::no_core_files,
    orphans::Life,
};

crate::cases![
    a_fresh_handle_counts_nothing,
    each_outcome_is_counted_as_what_it_is,
    what_is_alive_queued_and_warm,
    every_stage_is_measured_once_for_each_task,
    a_task_carried_over_is_counted_once,
    handles_of_one_zygote_share_their_numbers,
];

fn sum(metrics: &Metrics) -> u64 {
    let finished = metrics.finished;
    finished.returned
        + finished.panicked
        + finished.cancelled
        + finished.timed_out
        + finished.exited
        + finished.signaled
        + finished.failed
}

fn stages(metrics: &Metrics) -> [&Latency; 5] {
    let m = metrics;
    [&m.time_queued, &m.time_dispatched, &m.time_executing, &m.time_result, &m.time_exited]
}

fn a_fresh_handle_counts_nothing() {
    let zygote = Zygote::builder().warm(0).start().unwrap();
    let metrics = zygote.metrics();
    let now = (metrics.alive, metrics.warm, metrics.queued, metrics.started, metrics.started_warm);
    assert_eq!((now, sum(&metrics)), ((0, 0, 0, 0, 0), 0));
    for latency in stages(&metrics) {
        assert_eq!((latency.count(), latency.total(), latency.mean()), (0, Duration::ZERO, Duration::ZERO));
        assert!([0.0, 0.5, 1.0].iter().all(|&q| latency.quantile(q) == Duration::ZERO));
    }
    // Nothing but the spares.
    let metrics = Zygote::builder().warm(3).start().unwrap().metrics();
    assert_eq!((metrics.warm, metrics.alive, metrics.started, sum(&metrics)), (3, 0, 0, 0));
}

/// Runs one task of each way to end, started by `run` or by `open`.
async fn end_in_every_way(zygote: &Zygote, open: bool) {
    macro_rules! run {
        ($task:expr, $function:expr) => {
            if open { $task.open($function, ()).await.unwrap().wait().await } else { $task.run($function, ()).await }
        };
    }
    let task = || zygote.task();
    for _ in 0..3 {
        run!(task(), async || ()).unwrap();
    }
    assert!(run!(task(), async || panic!("on purpose")).map(|()| ()).unwrap_err().is_panic());
    assert!(
        run!(task(), async || {
            worker::cancel().await;
        })
        .unwrap_err()
        .is_cancelled()
    );
    let hasty = task().timeout(Duration::from_millis(20)).grace_period(Duration::ZERO);
    assert!(run!(hasty, std::future::pending::<()>).unwrap_err().is_timeout());
    assert_eq!(
        run!(task(), async || {
            std::process::exit(3);
        })
        .map(|()| ())
        .unwrap_err()
        .exit_code(),
        Some(3)
    );
    assert!(
        run!(task(), async || {
            std::process::abort();
        })
        .map(|()| ())
        .unwrap_err()
        .signal()
        .is_some()
    );
    run!(task().result_limit(10), async || "x".repeat(100)).unwrap_err();
}

fn each_outcome_is_counted_as_what_it_is() {
    no_core_files();
    // Both before there is a runtime.
    let zygotes = [0, 3].map(|warm| (warm, Zygote::builder().warm(warm).start().unwrap()));
    for (warm, zygote) in zygotes {
        multi_thread().block_on(async {
            for (open, times) in [(false, 1), (true, 2)] {
                end_in_every_way(&zygote, open).await;
                let m = zygote.metrics();
                let f = m.finished;
                let found = [f.returned, f.panicked, f.cancelled, f.timed_out, f.exited, f.signaled, f.failed];
                assert_eq!(found, [3, 1, 1, 1, 1, 1, 1].map(|n| n * times), "open: {open}");
                assert_eq!(m.started, 9 * times);
                assert!(if warm == 0 { m.started_warm == 0 } else { m.started_warm > 0 });
            }
            // Dropped, before and after it began.
            drop(begin(zygote.run_in_process(std::future::pending::<()>, ())).await);
            drop(zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap());
            eventually("all are gone", || zygote.metrics().alive == 0).await;
            eventually("both are counted", || zygote.metrics().finished.cancelled == 4).await;
            assert_eq!((zygote.metrics().started, sum(&zygote.metrics())), (20, 20));
        });
    }
}

fn what_is_alive_queued_and_warm() {
    let zygote = Zygote::builder().max_processes(2).warm(3).start().unwrap();
    multi_thread().block_on(async {
        let first = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        let second = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        let mut waiting = Vec::new();
        for n in 0..3_u8 {
            waiting.push(begin(zygote.run_in_process(async |n: u8| n, n)).await);
        }
        let m = zygote.metrics();
        assert_eq!((m.alive, m.queued, m.started, m.started_warm, sum(&m)), (2, 3, 2, 2, 0));
        assert_eq!(m.time_queued.count(), 2);
        drop(waiting.pop());
        assert_eq!(zygote.metrics().queued, 2);
        drop(first);
        for (n, task) in (0..).zip(waiting) {
            assert_eq!(task.await.unwrap(), n);
        }
        drop(second);
        let idle = || {
            let m = zygote.metrics();
            (m.alive, m.queued, m.started, m.finished.returned, m.finished.cancelled, m.warm) == (0, 0, 4, 2, 2, 3)
        };
        eventually("all is quiet", idle).await;
        eventually("the numbers are true", || children(zygote.pid()).len() == 3).await;
    });
}

fn every_stage_is_measured_once_for_each_task() {
    let zygotes = [0, 4].map(|warm| Zygote::builder().warm(warm).max_processes(8).start().unwrap());
    for zygote in zygotes {
        multi_thread().block_on(async {
            let napping = async |n: u64| {
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert!(n % 10 != 9, "on purpose");
                n
            };
            let tasks: Vec<_> = (0..100).map(|n| tokio::spawn(zygote.run_in_process(napping, n))).collect();
            for (n, task) in (0..).zip(tasks) {
                assert_eq!(task.await.unwrap().is_ok(), n % 10 != 9);
            }
            eventually("all are gone", || zygote.metrics().alive == 0).await;
            let metrics = zygote.metrics();
            assert_eq!((metrics.finished.returned, metrics.finished.panicked), (90, 10));
            for (n, latency) in stages(&metrics).into_iter().enumerate() {
                assert_eq!(latency.count(), 100, "stage {n}");
                let quantiles = [0.0, 0.1, 0.5, 0.9, 0.99, 1.0].map(|q| latency.quantile(q));
                assert!(quantiles.is_sorted() && !quantiles[0].is_zero(), "stage {n}: {quantiles:?}");
                assert!(latency.mean() <= quantiles[5] && latency.total() >= latency.mean() * 99, "stage {n}");
                assert!(latency.total() < Duration::from_secs(100), "stage {n}: {:?}", latency.total());
            }
            // What the task does is in these two; where one ends and the other begins is when we hear of it.
            assert!(metrics.time_executing.total() + metrics.time_result.total() >= Duration::from_secs(2));
            assert!(metrics.time_result.quantile(1.0) >= Duration::from_millis(5));
            // The last of a hundred waits for the naps of eleven before it.
            assert!(metrics.time_queued.quantile(1.0) >= Duration::from_millis(220));
            assert!(metrics.time_queued.quantile(0.0) < metrics.time_queued.quantile(1.0));
        });
    }
}

fn a_task_carried_over_is_counted_once() {
    let zygote = Zygote::builder().warm(6).start().unwrap();
    multi_thread().block_on(async {
        let stand = async || {
            eventually("all stand", || children(zygote.pid()).len() == 6 && zygote.metrics().warm == 6).await;
            children(zygote.pid()).into_iter().map(Life::of).collect::<Vec<_>>()
        };
        let mut count = 0;
        for round in 0..20_u64 {
            // Not killed one by one: a stopped one is handed out before anybody can know.
            let signal = if round % 2 == 0 { libc::SIGKILL } else { libc::SIGSTOP };
            stand().await.iter().for_each(|life| life.signal(signal));
            assert_eq!(zygote.run_in_process(async |n: u64| n, round).await.unwrap(), round);
            let process = zygote.open_in_process(async |n: u64| n, round).await.unwrap();
            assert_eq!(process.wait().await.unwrap(), round);
            count += 2;
            eventually("all are gone", || zygote.metrics().alive == 0).await;
            let m = zygote.metrics();
            assert_eq!((m.finished.returned, sum(&m), m.started), (count, count, count), "round {round}");
        }
    });
}

fn handles_of_one_zygote_share_their_numbers() {
    let first = Zygote::builder().warm(1).start().unwrap();
    let other = Zygote::builder().warm(1).start().unwrap();
    multi_thread().block_on(async {
        let copy = first.clone();
        first.run_in_process(async || (), ()).await.unwrap();
        copy.run_in_process(async || (), ()).await.unwrap();
        assert_eq!((first.metrics().started, copy.metrics().started, other.metrics().started), (2, 2, 0));
        // A pool's worker is one task of the zygote's.
        let pool = first.pool().workers(1).build().unwrap();
        for n in 0..10_u8 {
            assert_eq!(pool.run(async |n: u8| n, n).await.unwrap(), n);
        }
        assert_eq!(first.metrics().started, 3);
        // The others come to their values before they exit.
        eventually("only the pool's is left", || first.metrics().alive == 1).await;
    });
}
