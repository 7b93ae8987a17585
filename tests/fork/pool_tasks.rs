//! Tasks of a pool in the background, and items that come as a stream.

use std::{future::Future, time::Duration};

use tokio_run_in_process::{Coded, Error, Phase, Pool, Signal, Zygote};

use crate::{
    harness::{begin, eventually, multi_thread, send_signal},
    oracle::{undisturbed, undisturbed_with},
    orphans::Life,
    runtimes::block_on,
    tools::{Notes, note},
};

crate::cases![
    an_opened_task_runs_beside_its_handle,
    opened_tasks_wait_for_a_worker,
    a_handle_that_is_dropped_ends_its_task,
    however_an_opened_task_ends_its_handle_hears_of_it,
    an_opened_task_needs_no_runtime,
    a_task_waits_no_longer_for_a_worker_than_it_may,
    a_pool_needs_no_more_processes_than_there_may_be,
    an_idle_worker_makes_room_for_whoever_waits,
];
#[cfg(feature = "stream")]
pub(crate) use stream::CASES as STREAM_CASES;

fn pool(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

async fn pid() -> u32 {
    std::process::id()
}

async fn never() {
    std::future::pending().await
}

fn an_opened_task_runs_beside_its_handle() {
    undisturbed(|| async {
        let pool = pool(2);
        for _ in 0..20 {
            let task = pool.open(pid, ()).await.unwrap();
            let (first, second) = tokio::join!(task.wait(), task.wait());
            assert_eq!((first.unwrap(), second.unwrap()), (task.pid(), task.pid()));
            assert_eq!(task.try_wait().unwrap().unwrap(), task.pid());
            assert!(task.name().contains("pid"), "{}", task.name());
        }
        let plain = pool.open_blocking(|a: u8, b: u8| a + b, (1, 2)).await.unwrap();
        assert_eq!(plain.wait().await.unwrap(), 3);
        // Two workers, used again.
        let (a, b) = (pool.open(never, ()).await.unwrap(), pool.open(never, ()).await.unwrap());
        assert_ne!(a.pid(), b.pid());
        assert!(a.try_wait().is_none() && b.try_wait().is_none());
    });
}

fn opened_tasks_wait_for_a_worker() {
    undisturbed(|| async {
        let pool = pool(1);
        let first = pool.open(never, ()).await.unwrap();
        let mut second = begin(pool.open(pid, ())).await;
        let third = begin(pool.open(pid, ())).await;
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut second).await.is_err());
        // One that gives up in the queue leaves nothing there.
        drop(third);
        first.cancel();
        let second = second.await.unwrap();
        assert_eq!(second.wait().await.unwrap(), second.pid());
        assert_ne!(first.pid(), second.pid());
        assert_eq!(pool.run(pid, ()).await.unwrap(), second.pid());
    });
}

fn a_handle_that_is_dropped_ends_its_task() {
    undisturbed_with(Zygote::builder().grace_period(Duration::from_millis(300)), |zygote| async move {
        let pool = zygote.pool().workers(1).build().unwrap();
        for cancel in [false, true] {
            let task = pool.open(never, ()).await.unwrap();
            let life = Life::of(task.pid());
            if cancel {
                task.cancel();
                match task.wait().await {
                    Err(Error::Cancelled { task: id, .. }) => assert_eq!(id.pid(), Some(task.pid())),
                    other => panic!("{other:?}"),
                }
            }
            drop(task);
            eventually("its worker is gone", || life.is_over()).await;
            assert_eq!(pool.run(async |n: u8| n, 5).await.unwrap(), 5);
        }
        // One that is done costs nobody his worker.
        let task = pool.open(pid, ()).await.unwrap();
        let worker = task.wait().await.unwrap();
        drop(task);
        assert_eq!(pool.run(pid, ()).await.unwrap(), worker);
        // The pool lives as long as its tasks.
        let task = pool.open(async |n: u8| n, 7).await.unwrap();
        drop(pool);
        assert_eq!(task.wait().await.unwrap(), 7);
    });
}

fn however_an_opened_task_ends_its_handle_hears_of_it() {
    undisturbed(|| async {
        let pool = pool(1);
        let notes = Notes::new("begun");
        let says_so = async |path: String| {
            note(&path, "begun");
            never().await
        };
        let task = pool.open(says_so, notes.path()).await.unwrap();
        eventually("it has begun", || !notes.text().is_empty()).await;
        send_signal(task.pid(), libc::SIGKILL);
        for _ in 0..2 {
            match task.wait().await {
                Err(Error::Signaled { signal, task: id, .. }) => {
                    assert_eq!((signal, id.pid()), (Signal::KILL, Some(task.pid())));
                }
                other => panic!("{other:?}"),
            }
        }
        let panics = async || -> u8 { panic!("on purpose") };
        let task = pool.open(panics, ()).await.unwrap();
        assert!(task.wait().await.unwrap_err().is_panic());
        let exits = async || -> u8 { std::process::exit(3) };
        let task = pool.open(exits, ()).await.unwrap();
        assert!(matches!(task.wait().await, Err(Error::Exited { code: 3, .. })));
        let large = pool.open(async || vec![0_u8; 100], ()).await.unwrap();
        assert_eq!(large.wait().await.unwrap().len(), 100);
        let undecodable = pool.open(async || std::num::NonZeroU8::new(1), ()).await.unwrap();
        assert_eq!(undecodable.wait().await.unwrap().map(u8::from), Some(1));
        let refuses = pool.open(async || Refuses, ()).await.unwrap();
        assert!(matches!(refuses.wait().await, Err(Error::Decode { what: Coded::ResultInWorker, .. })));
        assert_eq!(pool.run(async |n: u8| n, 5).await.unwrap(), 5);
    });
}

/// Does not encode.
#[derive(serde::Deserialize)]
struct Refuses;

impl serde::Serialize for Refuses {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("on purpose"))
    }
}

fn a_task_waits_no_longer_for_a_worker_than_it_may() {
    undisturbed_with(Zygote::builder().max_processes(1), |zygote| async move {
        let limit = Duration::from_millis(500);
        let pool = zygote.pool().workers(2).queue_timeout(limit).build().unwrap();
        let queued = |error: Error| match error {
            Error::TimedOut { phase: Phase::Queued, limit: found, .. } => assert_eq!(found, limit),
            other => panic!("{other:?}"),
        };
        // It is the process that lacks, then the pool's turn.
        let busy = zygote.open_in_process(never, ()).await.unwrap();
        queued(pool.run(pid, ()).await.unwrap_err());
        queued(pool.open(pid, ()).await.unwrap_err());
        busy.shutdown().await;
        eventually("its process is gone", || zygote.available_processes() == 1).await;
        let task = pool.open(never, ()).await.unwrap();
        queued(pool.run(pid, ()).await.unwrap_err());
        // What has a worker may take its time.
        assert!(task.try_wait().is_none());
        task.cancel();
        eventually("its process is gone", || zygote.available_processes() == 1).await;
        assert_eq!(pool.run(async |n: u8| n, 5).await.unwrap(), 5);
    });
}

fn a_pool_needs_no_more_processes_than_there_may_be() {
    for_each_zygote(&[1, 2, 5], |zygote, most| async move {
        let nap = async |n: u64| {
            tokio::time::sleep(Duration::from_millis(5)).await;
            n
        };
        for workers in [2, 7, 12] {
            let pool = zygote.pool().workers(workers).build().unwrap();
            assert_eq!(pool.map(nap, 0..40).collect().await.unwrap(), (0..40).collect::<Vec<_>>());
            let tasks: Vec<_> = (0..40).map(|n| tokio::spawn(pool.run(nap, n))).collect();
            for (n, task) in (0..).zip(tasks) {
                assert_eq!(task.await.unwrap().unwrap(), n);
            }
            assert!((1..=most).contains(&pool.idle_workers()), "{}", pool.idle_workers());
        }
    });
}

fn an_idle_worker_makes_room_for_whoever_waits() {
    for_each_zygote(&[4], |zygote, most| async move {
        let pool = |workers| zygote.pool().workers(workers).build().unwrap();
        let (a, b) = (pool(most), pool(most + 1));
        let nap = async |n: u64| {
            tokio::time::sleep(Duration::from_millis(5)).await;
            n
        };
        for _ in 0..3 {
            a.map(nap, 0..20).collect().await.unwrap();
            assert_eq!(a.idle_workers(), most);
            // All the processes there may be stand idle in a pool that has nothing to do.
            assert_eq!(zygote.run_in_process(nap, 1).await.unwrap(), 1);
            assert_eq!(b.map(nap, 0..20).collect().await.unwrap().len(), 20);
            // One that is busy all the time lets others have a turn, too.
            let busy = tokio::spawn(a.map(nap, 0..200).collect());
            let others: Vec<_> = (0..8).map(|n| tokio::spawn(zygote.run_in_process(nap, n))).collect();
            for (n, other) in (0..).zip(others) {
                assert_eq!(other.await.unwrap().unwrap(), n);
            }
            assert_eq!(busy.await.unwrap().unwrap().len(), 200);
        }
    });
}

fn for_each_zygote<F: Future<Output = ()>>(most: &[usize], body: impl Fn(Zygote, usize) -> F) {
    // Before the first of them has made a second thread.
    let zygotes: Vec<_> = most.iter().map(|&n| (Zygote::builder().max_processes(n).start().unwrap(), n)).collect();
    for (zygote, most) in zygotes {
        multi_thread().block_on(body(zygote, most));
    }
}

fn an_opened_task_needs_no_runtime() {
    tokio_run_in_process::init().unwrap();
    let pool = pool(1);
    let task = block_on(pool.open(async |n: u8| n, 3)).unwrap();
    assert_eq!(block_on(task.wait()).unwrap(), 3);
}

#[cfg(feature = "stream")]
mod stream {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::{Duration, Life, eventually, never, pid, pool, undisturbed};

    crate::cases![
        items_are_taken_as_they_come,
        results_do_not_wait_for_more_items,
        a_dropped_map_over_a_stream_ends_its_tasks,
    ];

    struct Items<T>(UnboundedReceiver<T>);

    impl<T> futures_core::Stream for Items<T> {
        type Item = T;

        fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
            self.0.poll_recv(context)
        }
    }

    fn items_are_taken_as_they_come() {
        undisturbed(|| async {
            let (send, items) = unbounded_channel();
            let mut map = pool(2).map_stream(async |n: u64| n * 3, Items(items));
            let producer = tokio::spawn(async move {
                for n in 0..40 {
                    send.send(n).unwrap();
                    if n % 7 == 0 {
                        tokio::time::sleep(Duration::from_millis(3)).await;
                    }
                }
            });
            for n in 0..40 {
                assert_eq!(map.next().await.unwrap().unwrap(), n * 3);
            }
            assert!(map.next().await.is_none() && map.next().await.is_none());
            producer.await.unwrap();
        });
    }

    fn results_do_not_wait_for_more_items() {
        undisturbed(|| async {
            let (send, items) = unbounded_channel();
            let mut map = pool(3).map_stream(async |n: u64| n + 1, Items(items)).unordered();
            for n in 0..5 {
                send.send(n).unwrap();
                assert_eq!(map.next().await.unwrap().unwrap(), n + 1);
            }
            let nothing = tokio::time::timeout(Duration::from_millis(50), map.next()).await;
            assert!(nothing.is_err(), "more may come");
            drop(send);
            assert!(map.next().await.is_none());
        });
    }

    fn a_dropped_map_over_a_stream_ends_its_tasks() {
        undisturbed(|| async {
            let pool = pool(1);
            let worker = Life::of(pool.run(pid, ()).await.unwrap());
            let (send, items) = unbounded_channel();
            send.send(()).unwrap();
            let mut map = pool.map_stream(|()| never(), Items(items));
            assert!(tokio::time::timeout(Duration::from_millis(50), map.next()).await.is_err());
            drop(map);
            eventually("its worker is gone", || worker.is_over()).await;
        });
    }
}
