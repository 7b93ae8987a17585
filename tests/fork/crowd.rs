//! Warm workers where many tasks share few processors.

use std::time::{Duration, Instant};

use tokio_run_in_process::{Zygote, worker};

use crate::{harness::eventually, oracle::undisturbed_with};

crate::cases![none_is_made_ready_where_no_processor_is_free, long_tasks_keep_no_worker_from_being_ready];

const STANDING: usize = 4;

/// Everything on one processor.
fn on_one_processor() {
    // SAFETY: a set of processors is plain bits.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: it has room for the first ones.
    unsafe { libc::CPU_SET(0, &mut set) };
    // SAFETY: a live set of that size.
    assert_eq!(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) }, 0);
    assert_eq!(std::thread::available_parallelism().unwrap().get(), 1);
}

fn none_is_made_ready_where_no_processor_is_free() {
    on_one_processor();
    undisturbed_with(Zygote::builder().warm(STANDING), |zygote| async move {
        let stand = || zygote.metrics().warm == STANDING;
        eventually("they stand", stand).await;
        let until = Instant::now() + Duration::from_secs(1);
        let callers = (0..16).map(|_| {
            let zygote = zygote.clone();
            tokio::spawn(async move {
                while Instant::now() < until {
                    assert!(zygote.run_in_process(async || worker::is_worker(), ()).await.unwrap());
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
        let metrics = zygote.metrics();
        assert!(metrics.started_warm < metrics.started / 2, "{metrics:?}");
        // When there is time again.
        eventually("they stand again", || zygote.metrics().warm >= STANDING).await;
        let before = zygote.metrics().started_warm;
        zygote.run_in_process(async || (), ()).await.unwrap();
        assert_eq!(zygote.metrics().started_warm, before + 1);
        eventually("no more than before", stand).await;
    });
}

fn long_tasks_keep_no_worker_from_being_ready() {
    on_one_processor();
    undisturbed_with(Zygote::builder().warm(STANDING), |zygote| async move {
        let mut open = Vec::new();
        for _ in 0..8 {
            open.push(zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap());
        }
        // Beside them as many at a time as make some of them late.
        for _ in 0..5 {
            let callers = (0..10).map(|_| tokio::spawn(zygote.run_in_process(async || (), ())));
            for caller in callers.collect::<Vec<_>>() {
                caller.await.unwrap().unwrap();
            }
        }
        eventually("they stand all the same", || zygote.metrics().warm >= STANDING).await;
        for process in open {
            process.kill().unwrap();
            process.exited().await;
        }
        eventually("no more than before", || zygote.metrics().warm == STANDING).await;
    });
}
