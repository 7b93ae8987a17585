//! What runs a task in its worker: the default runtime and what works on it, and runtimes of one's own, good and bad.

use std::{
    future::pending,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_run_in_process::{Runtime, Signal, Stdio, Task, WorkerTask, run_in_process, worker};

use crate::{
    options::{leaves, ready, spawn_error},
    oracle::{scratch, undisturbed},
};

crate::cases![
    a_runtime_of_ones_own,
    a_runtime_that_returns_too_soon,
    a_runtime_that_panics,
    local_tasks_and_futures_that_are_not_send,
    sockets_timers_and_blocking_threads,
];

struct TwoThreads;

impl Runtime for TwoThreads {
    fn run(task: WorkerTask) {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().unwrap().block_on(task);
    }
}

fn a_runtime_of_ones_own() {
    undisturbed(|| async {
        let task = Task::new().runtime::<TwoThreads>().env("OPTION", "1").stdout(Stdio::piped());
        let work = async |n: u64| {
            assert_eq!(tokio::runtime::Handle::current().metrics().num_workers(), 2);
            assert_eq!(std::env::var("OPTION").unwrap(), "1");
            // Both run at once, or neither ends.
            let both = std::sync::Arc::new(std::sync::Barrier::new(2));
            let parts = [both.clone(), both].map(|both| tokio::spawn(async move { both.wait().is_leader() }));
            let mut leaders = 0;
            for part in parts {
                leaders += u64::from(part.await.unwrap());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            n + leaders
        };
        assert_eq!(task.run(work, 1).await.unwrap(), 2);
        // Cancellation, timeouts and panics as with the default one.
        let path = scratch("two-threads");
        let process = task.open(leaves, path.clone()).await.unwrap();
        ready(&process).await;
        assert_eq!(process.shutdown().await.0.signal(), Some(Signal::TERM));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "dropped");
        std::fs::remove_file(&path).unwrap();
        let hasty = task.clone().timeout(Duration::from_millis(50));
        assert!(hasty.run(pending::<()>, ()).await.unwrap_err().is_timeout());
        let error = task.run(async || -> u8 { panic!("there") }, ()).await.unwrap_err();
        assert_eq!(error.panic().unwrap().message(), "there");
        let polite = async || {
            println!("ready");
            worker::cancelled().await;
            9
        };
        let process = task.open(polite, ()).await.unwrap();
        ready(&process).await;
        process.shutdown().await;
        assert_eq!(process.wait().await.unwrap(), 9);
        assert!(task.run(async || -> u8 { match worker::cancel().await {} }, ()).await.unwrap_err().is_cancelled());
    });
}

pub(crate) struct NeverRuns;

impl Runtime for NeverRuns {
    fn run(task: WorkerTask) {
        drop(task);
    }
}

struct PollsOnce;

impl Runtime for PollsOnce {
    fn run(mut task: WorkerTask) {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let _ = std::pin::Pin::new(&mut task).poll(&mut context);
    }
}

struct Leaks;

impl Runtime for Leaks {
    fn run(task: WorkerTask) {
        std::mem::forget(task);
    }
}

fn a_runtime_that_returns_too_soon() {
    undisturbed(|| async {
        let task = Task::new().name("unfinished");
        for task in
            [task.clone().runtime::<NeverRuns>(), task.clone().runtime::<PollsOnce>(), task.clone().runtime::<Leaks>()]
        {
            for error in [
                task.run(pending::<()>, ()).await.unwrap_err(),
                match task.open(pending::<()>, ()).await {
                    Ok(process) => process.wait().await.unwrap_err(),
                    Err(error) => error,
                },
            ] {
                let (step, source) = spawn_error(&error);
                let found = (step, source.to_string());
                assert_eq!(found, ("run the task", "the runtime returned before the task was done".to_owned()));
                assert!(error.to_string().contains("`unfinished`") && !error.is_retryable(), "{error}");
            }
        }
        // What is ready at its first poll needs no more.
        assert_eq!(task.runtime::<PollsOnce>().run(async |n: u8| n, 5).await.unwrap(), 5);
    });
}

struct Panics;

impl Runtime for Panics {
    fn run(_task: WorkerTask) {
        panic!("no runtime today");
    }
}

fn a_runtime_that_panics() {
    undisturbed(|| async {
        let task = Task::new().runtime::<Panics>();
        let error = task.run(async || 1, ()).await.unwrap_err();
        let report = error.panic().unwrap();
        assert_eq!(report.message(), "no runtime today");
        assert!(report.location().unwrap().contains("hosts.rs:"), "{report:?}");
    });
}

fn local_tasks_and_futures_that_are_not_send() {
    undisturbed(|| async {
        let spawns = async |n: u64| {
            let shared = Rc::new(std::cell::Cell::new(n));
            let theirs = shared.clone();
            tokio::task::spawn_local(async move {
                tokio::task::yield_now().await;
                theirs.set(theirs.get() + 1);
            })
            .await
            .unwrap();
            let local = tokio::task::LocalSet::new();
            let theirs = shared.clone();
            local.spawn_local(async move { theirs.set(theirs.get() + 10) });
            local.await;
            let local = tokio::task::LocalSet::new();
            let theirs = shared.clone();
            local
                .run_until(async move { tokio::task::spawn_local(async move { theirs.set(theirs.get() + 100) }).await })
                .await
                .unwrap();
            shared.get()
        };
        assert_eq!(run_in_process(spawns, 1).await.unwrap(), 112);
        assert_eq!(tokio::spawn(run_in_process(spawns, 2)).await.unwrap().unwrap(), 113);
        // Its destructor runs with the task's.
        let path = scratch("local");
        let leaves_local = async |path: String| {
            tokio::task::spawn_local(leaves(path));
            pending::<()>().await;
        };
        let process = Task::new().stdout(Stdio::piped()).open(leaves_local, path.clone()).await.unwrap();
        ready(&process).await;
        process.shutdown().await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "dropped");
        std::fs::remove_file(&path).unwrap();
    });
}

fn sockets_timers_and_blocking_threads() {
    undisturbed(|| async {
        let work = async || {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).await.unwrap();
                text
            });
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(b"over tcp").await.unwrap();
            drop(stream);
            let text = server.await.unwrap();
            let start = Instant::now();
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(start.elapsed() >= Duration::from_millis(20));
            let late = tokio::time::timeout(Duration::from_millis(5), pending::<()>()).await.is_err();
            let blocking = tokio::task::spawn_blocking(|| {
                std::thread::sleep(Duration::from_millis(5));
                7
            });
            let file = tokio::fs::read_to_string("/proc/self/comm").await.unwrap();
            let child = tokio::process::Command::new("echo").arg("child").output().await.unwrap();
            (text, late, blocking.await.unwrap(), !file.is_empty(), child.stdout)
        };
        let found = run_in_process(work, ()).await.unwrap();
        assert_eq!(found, ("over tcp".to_owned(), true, 7, true, b"child\n".to_vec()));
        // A server outside.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let client = tokio::spawn(run_in_process(
            async |address: String| tokio::net::TcpStream::connect(address).await.unwrap().read_u8().await.unwrap(),
            address,
        ));
        listener.accept().await.unwrap().0.write_all(&[9]).await.unwrap();
        assert_eq!(client.await.unwrap().unwrap(), 9);
    });
}
