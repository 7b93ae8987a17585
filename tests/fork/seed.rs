//! The promises of the page that this library answers: one case or more for each row, named for it. What its tests
//! check is in the modules `seed_*`.

use std::{
    io::Write,
    rc::Rc,
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_run_in_process::{
    AsyncTask, BlockingTask, Error, ExitStatus, PipeReader, Process, Runtime, Signal, State, Stdio, Task, WorkerTask,
    default_zygote, open_blocking_in_process, open_in_process, run_blocking_in_process, run_in_process, worker,
};

use crate::{
    harness::parent_of,
    oracle::{threads, undisturbed},
};

crate::cases![
    p01_run_in_process_gives_55,
    p01_the_process_is_another_one,
    p02_open_in_process_runs_in_the_background,
    p03_a_task_has_a_tokio_runtime_of_its_own,
    p03_a_task_has_a_smol_runtime_of_its_own,
    p04_the_worker_runs_what_it_was_asked_for,
    p04_a_runtime_of_the_users_own,
    p06_code_that_ignores_cancellation_is_ended,
    p06_a_finished_task_never_waits_for_a_stray_thread,
];

/// The task on each runtime that polls.
pub(crate) fn runtimes(task: &Task) -> Vec<(&'static str, Task)> {
    Vec::from([
        ("tokio", task.clone()),
        #[cfg(feature = "smol")]
        ("smol", task.clone().runtime::<tokio_run_in_process::Smol>()),
    ])
}

/// Opens an async function on each runtime that polls, and a plain one that does the same without a runtime.
pub(crate) async fn open_everywhere<F, G, A, M, N>(
    task: &Task,
    polled: F,
    plain: G,
    arguments: A,
) -> Vec<(&'static str, Process<F::Output>)>
where
    F: AsyncTask<A, M>,
    G: BlockingTask<A, N, Output = F::Output>,
    A: Serialize + DeserializeOwned + Clone + 'static,
    F::Output: Serialize + DeserializeOwned + Send + 'static,
{
    let mut processes = Vec::new();
    for (runtime, task) in runtimes(task) {
        processes.push((runtime, task.open(polled, arguments.clone()).await.unwrap()));
    }
    processes.push(("blocking", task.open_blocking(plain, arguments).await.unwrap()));
    processes
}

/// The same with `run`, one after the other.
pub(crate) async fn run_everywhere<F, G, A, M, N>(
    task: &Task,
    polled: F,
    plain: G,
    arguments: A,
) -> Vec<(&'static str, Result<F::Output, Error>)>
where
    F: AsyncTask<A, M>,
    G: BlockingTask<A, N, Output = F::Output>,
    A: Serialize + DeserializeOwned + Clone + 'static,
    F::Output: Serialize + DeserializeOwned + Send + 'static,
{
    let mut results = Vec::new();
    for (runtime, task) in runtimes(task) {
        results.push((runtime, task.run(polled, arguments.clone()).await));
    }
    results.push(("blocking", task.run_blocking(plain, arguments).await));
    results
}

/// In a task: tells who reads its stdout where it is.
pub(crate) fn say(word: &str) {
    println!("{word}");
    std::io::stdout().flush().unwrap();
}

/// Waits until the task has said the word.
pub(crate) async fn hear(stdout: &mut PipeReader, word: &str) {
    let mut text = vec![0; word.len() + 1];
    stdout.read_exact(&mut text).await.unwrap();
    assert_eq!(text, format!("{word}\n").into_bytes());
}

/// Polls a future once.
pub(crate) async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| match std::pin::Pin::new(&mut *future).poll(context) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

pub(crate) async fn never() {
    std::future::pending().await
}

pub(crate) fn plain_never() {
    loop {
        std::thread::park();
    }
}

/// In a task: leaves a word for who watches the file.
pub(crate) fn note(path: &str, word: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(format!("{word}\n").as_bytes()).unwrap();
}

/// The words noted so far.
pub(crate) fn notes(path: &str) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

pub(crate) fn sleep_for_ever() {
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

async fn fib(n: u64) -> u64 {
    if n <= 1 { n } else { Box::pin(fib(n - 1)).await + Box::pin(fib(n - 2)).await }
}

fn plain_fib(n: u64) -> u64 {
    if n <= 1 { n } else { plain_fib(n - 1) + plain_fib(n - 2) }
}

fn p01_run_in_process_gives_55() {
    undisturbed(|| async {
        assert_eq!(run_in_process(fib, 10).await.unwrap(), 55);
        assert_eq!(run_blocking_in_process(plain_fib, 10).await.unwrap(), 55);
        for (runtime, result) in run_everywhere(&Task::new(), fib, plain_fib, 10).await {
            assert_eq!(result.unwrap(), 55, "{runtime}");
        }
    });
}

fn own_pids() -> (u32, u32) {
    (std::process::id(), std::os::unix::process::parent_id())
}

fn p01_the_process_is_another_one() {
    undisturbed(|| async {
        let zygote = default_zygote().unwrap().pid();
        let mut seen = vec![std::process::id(), zygote];
        for _ in 0..3 {
            for (runtime, result) in run_everywhere(&Task::new(), async || own_pids(), own_pids, ()).await {
                let (pid, parent) = result.unwrap();
                assert!(!seen.contains(&pid), "{runtime}: {pid} was {seen:?}");
                assert_eq!(parent, zygote, "{runtime}");
                seen.push(pid);
            }
        }
    });
}

fn read_word() {
    let mut word = String::new();
    std::io::stdin().read_line(&mut word).unwrap();
    assert_eq!(word, "go\n");
}

fn p02_open_in_process_runs_in_the_background() {
    undisturbed(|| async {
        // It cannot be done before its caller has done other things.
        let polled = async |n: u64| {
            say("ready");
            read_word();
            fib(n).await
        };
        let plain = |n: u64| {
            say("ready");
            read_word();
            plain_fib(n)
        };
        let task = Task::new().stdin(Stdio::piped()).stdout(Stdio::piped());
        for (runtime, process) in open_everywhere(&task, polled, plain, 10).await {
            let (mut stdin, mut stdout) = (process.take_stdin().unwrap(), process.take_stdout().unwrap());
            hear(&mut stdout, "ready").await;
            assert_eq!(run_in_process(fib, 9).await.unwrap(), 34);
            assert_eq!(process.state(), State::Executing, "{runtime}");
            assert!(process.try_wait().is_none(), "{runtime}");
            stdin.write_all(b"go\n").await.unwrap();
            assert_eq!(process.wait().await.unwrap(), 55, "{runtime}");
            assert_eq!(process.try_wait().unwrap().unwrap(), 55, "{runtime}: the result can be read");
            assert_eq!(process.exited().await.0, ExitStatus::Exited(0), "{runtime}");
            assert_eq!(process.wait().await.unwrap(), 55, "{runtime}: and still when the process is gone");
        }
        assert_eq!(open_in_process(fib, 10).await.unwrap().await.unwrap(), 55);
        assert_eq!(open_blocking_in_process(plain_fib, 10).await.unwrap().await.unwrap(), 55);
    });
}

fn p03_a_task_has_a_tokio_runtime_of_its_own() {
    undisturbed(|| async {
        let task = async || {
            let runtime = tokio::runtime::Handle::current();
            assert_eq!(runtime.runtime_flavor(), tokio::runtime::RuntimeFlavor::CurrentThread);
            assert_eq!(threads(), 1);

            let start = Instant::now();
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(start.elapsed() >= Duration::from_millis(5));
            assert!(tokio::time::timeout(Duration::from_millis(1), never()).await.is_err());

            assert_eq!(tokio::spawn(async { 1 }).await.unwrap(), 1);
            let not_send = Rc::new(2);
            assert_eq!(*tokio::task::spawn_local(async move { not_send }).await.unwrap(), 2);
            assert_eq!(tokio::task::spawn_blocking(|| 3).await.unwrap(), 3);

            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = tokio::spawn(async move { listener.accept().await.unwrap().0.write_u8(4).await.unwrap() });
            let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
            let read = client.read_u8().await.unwrap();
            server.await.unwrap();
            read
        };
        assert_eq!(run_in_process(task, ()).await.unwrap(), 4);
        assert_eq!(open_in_process(task, ()).await.unwrap().await.unwrap(), 4);
    });
}

#[cfg(feature = "smol")]
fn p03_a_task_has_a_smol_runtime_of_its_own() {
    use std::{
        io::Read,
        net::{TcpListener, TcpStream},
    };

    use async_io::{Async, Timer};
    use tokio_run_in_process::Smol;

    undisturbed(|| async {
        let task = async || {
            assert!(tokio::runtime::Handle::try_current().is_err());

            let start = Instant::now();
            Timer::after(Duration::from_millis(5)).await;
            assert!(start.elapsed() >= Duration::from_millis(5));

            let not_send = Rc::new(1);
            assert_eq!(*Smol::spawn(async move { not_send }).await, 1);
            let cancelled = Smol::spawn(never());
            assert_eq!(cancelled.cancel().await, None);

            let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
            let address = listener.get_ref().local_addr().unwrap();
            let server = Smol::spawn(async move {
                let (peer, _) = listener.accept().await.unwrap();
                assert_eq!(peer.write_with(|mut peer| peer.write(&[4])).await.unwrap(), 1);
            });
            let client = Async::<TcpStream>::connect(address).await.unwrap();
            let mut read = [0];
            assert_eq!(client.read_with(|mut client| client.read(&mut read)).await.unwrap(), 1);
            server.await;
            read[0]
        };
        let smol = Task::new().runtime::<Smol>();
        assert_eq!(smol.run(task, ()).await.unwrap(), 4);
        assert_eq!(smol.open(task, ()).await.unwrap().await.unwrap(), 4);
    });
}

#[cfg(not(feature = "smol"))]
fn p03_a_task_has_a_smol_runtime_of_its_own() {
    crate::harness::skip("built without smol");
}

/// Whether this is polled, or called, in a tokio runtime.
fn in_tokio() -> bool {
    tokio::runtime::Handle::try_current().is_ok()
}

fn p04_the_worker_runs_what_it_was_asked_for() {
    undisturbed(|| async {
        for (runtime, result) in run_everywhere(&Task::new(), async || in_tokio(), in_tokio, ()).await {
            assert_eq!(result.unwrap(), runtime == "tokio", "{runtime}");
        }
        for (runtime, process) in open_everywhere(&Task::new(), async || in_tokio(), in_tokio, ()).await {
            assert_eq!(process.wait().await.unwrap(), runtime == "tokio", "{runtime}");
        }
    });
}

struct TwoThreads;

impl Runtime for TwoThreads {
    fn run(task: WorkerTask) {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(task);
    }
}

fn p04_a_runtime_of_the_users_own() {
    undisturbed(|| async {
        let workers = async || {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let spawned = tokio::spawn(async { std::thread::current().name().map(str::to_owned) });
            (tokio::runtime::Handle::current().metrics().num_workers(), spawned.await.unwrap())
        };
        let task = Task::new().runtime::<TwoThreads>();
        let (workers_of_run, thread) = task.run(workers, ()).await.unwrap();
        assert_eq!((workers_of_run, thread.as_deref()), (2, Some("tokio-rt-worker")));
        assert_eq!(task.open(workers, ()).await.unwrap().await.unwrap().0, 2);
        // Signals reach a task there as they do elsewhere.
        let process = task.open(never, ()).await.unwrap();
        process.terminate().unwrap();
        assert_eq!(process.wait().await.unwrap_err().signal(), Some(Signal::TERM));
        let error = task.run(async || -> u8 { panic!("there") }, ()).await.unwrap_err();
        assert_eq!(error.panic().unwrap().message(), "there");
    });
}

fn p06_code_that_ignores_cancellation_is_ended() {
    undisturbed(|| async {
        // The page's own: blocking work that is awaited. It is not waited for.
        let executor = async || {
            say("ready");
            tokio::task::spawn_blocking(sleep_for_ever).await.unwrap();
        };
        let task = Task::new().stdout(Stdio::piped()).grace_period(Duration::from_millis(300));
        let process = task.open(executor, ()).await.unwrap();
        hear(&mut process.take_stdout().unwrap(), "ready").await;
        assert_eq!(process.shutdown().await.0.signal(), Some(Signal::TERM));
        assert!(process.wait().await.unwrap_err().is_cancelled());

        // Worse: it blocks the runtime itself, or has taken SIGTERM over and does nothing about it.
        let polled = async || {
            say("ready");
            sleep_for_ever();
        };
        let plain = || {
            let _ignored = worker::signal(Signal::TERM).unwrap();
            say("ready");
            sleep_for_ever();
        };
        for (runtime, process) in open_everywhere(&task, polled, plain, ()).await {
            hear(&mut process.take_stdout().unwrap(), "ready").await;
            let start = Instant::now();
            assert_eq!(process.shutdown().await.0.signal(), Some(Signal::KILL), "{runtime}");
            assert!(start.elapsed() >= Duration::from_millis(300), "{runtime}: {:?}", start.elapsed());
            assert!(process.wait().await.unwrap_err().is_cancelled(), "{runtime}");
        }
    });
}

fn p06_a_finished_task_never_waits_for_a_stray_thread() {
    undisturbed(|| async {
        let executor = async || {
            drop(tokio::task::spawn_blocking(sleep_for_ever));
            5
        };
        // If it waited it would be killed in the end, which its exit would tell.
        let process = open_in_process(executor, ()).await.unwrap();
        assert_eq!(process.wait().await.unwrap(), 5);
        assert_eq!(process.exited().await.0, ExitStatus::Exited(0));
        let strays = || {
            drop(std::thread::spawn(sleep_for_ever));
            6
        };
        for (runtime, process) in open_everywhere(&Task::new(), async move || strays(), strays, ()).await {
            let pid = process.pid();
            assert_eq!(process.wait().await.unwrap(), 6, "{runtime}");
            assert_eq!(process.exited().await.0, ExitStatus::Exited(0), "{runtime}");
            assert_eq!(parent_of(pid), None, "{runtime}");
        }
    });
}
