//! The end of a zygote's work, in order; what the kernel gives; the process-wide zygote and the next one.

use std::time::Duration;

use tokio_run_in_process::{
    Error, Receiver, Signal, Zygote, channel, default_zygote, init, run_in_process, set_default_zygote, worker,
};

use crate::{
    harness::{begin, capabilities, children, eventually, is_alive, multi_thread, parent_of},
    lost_zygote::soon,
    oracle::threads,
    orphans::{Life, stubborn},
    recovery::{Both, both, kill},
    tools::{poll_once, stop},
};

crate::cases![
    tasks_under_way_may_finish,
    tasks_that_do_not_finish_are_ended,
    tasks_that_wait_for_their_turn_are_shut_down,
    a_task_that_has_its_turn_but_does_not_know_it_is_shut_down,
    a_pool_is_shut_down_with_its_zygote,
    a_pool_of_another_generation_is_left_alone,
    shut_down_twice_and_while_tasks_come,
    shut_down_by_a_signal,
    shut_down_leaves_the_other_zygotes_alone,
    a_stopped_zygote_does_not_hold_the_shutdown_up,
    tasks_of_a_stopped_zygote_do_not_hold_the_shutdown_up,
    a_task_that_waits_for_another_zygote_is_shut_down,
    the_kernels_capabilities_are_told,
    the_process_wide_zygote_is_replaced,
];

async fn patient(mut go: Receiver<()>) -> u32 {
    go.recv().await.unwrap();
    42
}

/// The zygote, its ancestor and all that they forked.
struct Family(Vec<u32>);

impl Family {
    fn of(zygote: &Zygote) -> Self {
        let serving = zygote.pid();
        let mut all = children(serving);
        all.extend([serving, parent_of(serving).unwrap()]);
        Self(all)
    }

    async fn is_gone(&self) {
        eventually("all are gone", || !self.0.iter().any(|&pid| is_alive(pid))).await;
    }
}

/// A shutdown that has begun: no task starts from here on.
fn being_shut_down(zygote: &Zygote) -> tokio::task::JoinHandle<usize> {
    let zygote = zygote.clone();
    let mut end = Box::pin(async move { zygote.shutdown(Duration::from_secs(60)).await });
    assert!(poll_once(&mut end).is_pending());
    tokio::spawn(end)
}

fn tasks_under_way_may_finish() {
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        let (mut go, wait) = channel().unwrap();
        let process = zygote.open_in_process(patient, wait).await.unwrap();
        let family = Family::of(&zygote);
        let end = being_shut_down(&zygote);
        assert!(matches!(zygote.run_in_process(async || 1, ()).await, Err(Error::ShutDown)));
        assert!(matches!(zygote.open_in_process(async || 1, ()).await, Err(Error::ShutDown)));
        assert!(!end.is_finished());
        go.send(()).await.unwrap();
        assert_eq!(end.await.unwrap(), 0);
        assert_eq!(process.wait().await.unwrap(), 42);
        family.is_gone().await;
    });
}

fn tasks_that_do_not_finish_are_ended() {
    let zygote = Zygote::builder().grace_period(Duration::from_millis(100)).start().unwrap();
    multi_thread().block_on(async {
        let asleep = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        let polite = zygote.open_in_process(
            async || {
                worker::cancelled().await;
                7
            },
            (),
        );
        let polite = polite.await.unwrap();
        let stubborn = zygote.open_blocking_in_process(stubborn, ()).await.unwrap();
        let family = Family::of(&zygote);
        assert_eq!(zygote.shutdown(Duration::from_millis(20)).await, 3);
        assert!(asleep.wait().await.unwrap_err().is_cancelled());
        assert_eq!(polite.wait().await.unwrap(), 7);
        assert!(stubborn.wait().await.unwrap_err().is_cancelled());
        assert_eq!(stubborn.exited().await.0.signal(), Some(Signal::KILL));
        family.is_gone().await;
    });
}

fn tasks_that_wait_for_their_turn_are_shut_down() {
    let zygote = Zygote::builder().max_processes(1).start().unwrap();
    multi_thread().block_on(async {
        let busy = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        let waiting = tokio::spawn(zygote.run_in_process(async || 1, ()));
        eventually("it waits", || zygote.metrics().queued == 1).await;
        assert_eq!(zygote.shutdown(Duration::ZERO).await, 1);
        assert!(matches!(waiting.await.unwrap(), Err(Error::ShutDown)));
        assert!(busy.wait().await.unwrap_err().is_cancelled());
    });
}

fn a_task_that_has_its_turn_but_does_not_know_it_is_shut_down() {
    let zygote = Zygote::builder().max_processes(2).start().unwrap();
    multi_thread().block_on(async {
        let (mut go, wait) = channel().unwrap();
        let process = zygote.open_in_process(patient, wait).await.unwrap();
        let busy = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        let waiting = begin(zygote.run_in_process(async || 1, ())).await;
        assert_eq!(zygote.metrics().queued, 1);
        busy.shutdown().await;
        let end = being_shut_down(&zygote);
        let outcome = waiting.await;
        assert!(matches!(outcome, Err(Error::ShutDown)), "{outcome:?}");
        go.send(()).await.unwrap();
        assert_eq!(process.wait().await.unwrap(), 42);
        assert_eq!(end.await.unwrap(), 0);
    });
}

fn a_pool_is_shut_down_with_its_zygote() {
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        let pool = zygote.pool().workers(3).build().unwrap();
        assert_eq!(pool.run(async || 1, ()).await.unwrap(), 1);
        let (mut go, wait) = channel().unwrap();
        let task = pool.open(patient, wait).await.unwrap();
        let family = Family::of(&zygote);
        let end = being_shut_down(&zygote);
        assert!(matches!(pool.run(async || 1, ()).await, Err(Error::ShutDown)));
        go.send(()).await.unwrap();
        assert_eq!(task.wait().await.unwrap(), 42);
        assert_eq!(end.await.unwrap(), 0);
        family.is_gone().await;
    });
}

fn a_pool_of_another_generation_is_left_alone() {
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        let next = zygote.preload(|| (), ()).await.unwrap();
        let (old, new) = (zygote.pool().build().unwrap(), next.pool().build().unwrap());
        let worker = async || std::process::id();
        old.run(worker, ()).await.unwrap();
        let kept = new.run(worker, ()).await.unwrap();
        assert_eq!((old.idle_workers(), new.idle_workers()), (1, 1));
        assert_eq!(zygote.shutdown(Duration::from_secs(60)).await, 0);
        assert_eq!((old.idle_workers(), new.idle_workers()), (0, 1));
        assert_eq!(new.run(worker, ()).await.unwrap(), kept);
    });
}

fn shut_down_twice_and_while_tasks_come() {
    let zygote = Zygote::builder().max_processes(8).start().unwrap();
    multi_thread().block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let zygote = zygote.clone();
            tasks.spawn(async move {
                let mut count = 0;
                loop {
                    match zygote.run_in_process(async |n: u32| n + 1, count).await {
                        Ok(next) => count = next,
                        Err(Error::ShutDown) => return count,
                        Err(other) => panic!("{other:?}"),
                    }
                }
            });
        }
        eventually("they are at it", || zygote.metrics().finished.returned > 50).await;
        let family = Family::of(&zygote);
        let (one, two) =
            tokio::join!(zygote.shutdown(Duration::from_secs(60)), zygote.shutdown(Duration::from_secs(60)));
        assert_eq!((one, two), (0, 0));
        tasks.join_all().await;
        family.is_gone().await;
        assert_eq!(zygote.shutdown(Duration::ZERO).await, 0);
    });
}

fn shut_down_by_a_signal() {
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        let mut signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let process = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        let family = Family::of(&zygote);
        Life::of(std::process::id()).signal(libc::SIGTERM);
        signals.recv().await.unwrap();
        assert_eq!(zygote.shutdown(Duration::from_millis(10)).await, 1);
        assert!(process.wait().await.unwrap_err().is_cancelled());
        family.is_gone().await;
    });
}

fn shut_down_leaves_the_other_zygotes_alone() {
    let first = Zygote::builder().start().unwrap();
    let second = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        assert_eq!(first.run_in_process(async || 1, ()).await.unwrap(), 1);
        assert_eq!(first.shutdown(Duration::from_secs(5)).await, 0);
        assert_eq!(second.run_in_process(async || 2, ()).await.unwrap(), 2);
        let third = tokio::task::spawn_blocking(|| Zygote::builder().start()).await.unwrap().unwrap();
        assert_eq!(third.run_in_process(async || 3, ()).await.unwrap(), 3);
        // The ancestor is still there to replace it.
        let pid = second.pid();
        Life::of(pid).kill();
        eventually("another one serves", || second.pid() != pid).await;
        assert_eq!(second.run_in_process(async || 4, ()).await.unwrap(), 4);
    });
}

fn a_stopped_zygote_does_not_hold_the_shutdown_up() {
    let zygote = Zygote::builder().grace_period(Duration::from_millis(100)).start().unwrap();
    multi_thread().block_on(async {
        assert_eq!(zygote.run_in_process(async || 1, ()).await.unwrap(), 1);
        eventually("its worker is gone", || zygote.metrics().alive == 0).await;
        let life = Life::of(zygote.pid());
        life.signal(libc::SIGSTOP);
        eventually("it is stopped", || life.state() == Some('T')).await;
        assert_eq!(zygote.shutdown(Duration::from_millis(10)).await, 0);
        // Its ancestor ends it: no handle needs them any more.
        eventually("it is gone", || life.is_over()).await;
    });
}

fn tasks_of_a_stopped_zygote_do_not_hold_the_shutdown_up() {
    let zygote = Zygote::builder().grace_period(Duration::from_millis(100)).start().unwrap();
    multi_thread().block_on(async {
        let asleep = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        let stubborn = zygote.open_blocking_in_process(stubborn, ()).await.unwrap();
        let lives = [asleep.pid(), stubborn.pid(), zygote.pid()].map(Life::of);
        stop(zygote.pid()).await;
        assert_eq!(soon("the end", zygote.shutdown(Duration::from_millis(10))).await, 2);
        for process in [asleep, stubborn] {
            assert!(soon("an outcome", process.wait()).await.is_err());
            soon("an exit", process.exited()).await;
        }
        eventually("all are gone", || lives.iter().all(|life| life.is_over())).await;
    });
}

fn a_task_that_waits_for_another_zygote_is_shut_down() {
    let zygote = Zygote::builder().startup_timeout(Duration::from_secs(60)).start().unwrap();
    multi_thread().block_on(async {
        assert_eq!(zygote.run_in_process(async || 1, ()).await.unwrap(), 1);
        eventually("its worker is gone", || zygote.metrics().alive == 0).await;
        let Both { ancestor, serving } = both(&zygote);
        stop(ancestor.pid).await;
        kill(serving).await;
        eventually("its loss is known", || zygote.metrics().zygotes_lost == 1).await;
        let run = tokio::spawn(zygote.run_in_process(async || 1, ()));
        let open = tokio::spawn(zygote.open_in_process(async || 1, ()));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!run.is_finished() && !open.is_finished());
        assert_eq!(soon("the end", zygote.shutdown(Duration::ZERO)).await, 0);
        let (run, open) = (soon("an outcome", run).await.unwrap(), soon("an outcome", open).await.unwrap());
        assert!(matches!(run, Err(Error::ShutDown)), "{run:?}");
        assert!(matches!(open, Err(Error::ShutDown)), "{open:?}");
        // It forks the one that was ordered, which is not wanted any more.
        ancestor.signal(libc::SIGCONT);
        eventually("nothing is left", || ancestor.is_over()).await;
        assert_eq!(zygote.pid(), serving.pid);
    });
}

fn the_kernels_capabilities_are_told() {
    let zygote = Zygote::builder().start().unwrap();
    let found = zygote.capabilities();
    assert!(found.to_string().starts_with("pidfd: "), "{found}");
    match capabilities().as_str() {
        "none" => assert!(!found.to_string().contains("yes"), "{found}"),
        "pidfd" => assert_eq!(found.to_string().matches("yes").count(), 1, "{found}"),
        _ => assert!(found.pidfd && found.close_range && found.sealed_memory && found.subreaper, "{found}"),
    }
}

fn the_process_wide_zygote_is_replaced() {
    init().unwrap();
    multi_thread().block_on(async {
        let (mut go, wait) = channel().unwrap();
        let process = tokio_run_in_process::open_in_process(patient, wait).await.unwrap();
        let next = default_zygote().unwrap().preload(|| 5_u8, ()).await.unwrap();
        let before = set_default_zygote(next).unwrap();
        let family = Family::of(&before);
        drop(before);
        assert_eq!(run_in_process(async || worker::preloaded::<u8>().copied(), ()).await.unwrap(), Some(5));
        go.send(()).await.unwrap();
        assert_eq!(process.wait().await.unwrap(), 42);
        drop(process);
        // Not the ancestor, which the next one came from.
        eventually("the first is gone", || !is_alive(family.0[family.0.len() - 2])).await;
        assert!(threads() > 1);
    });
}
