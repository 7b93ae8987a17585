//! Who may poll: every kind of runtime, several, one that goes away, none.

use std::{
    future::Future,
    path::Path,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::{Builder, Runtime},
};
use tokio_run_in_process::{
    Error, Open, Phase, Process, Run, Stdio, Task, Wait, Zygote, ZygoteBuilder, default_zygote,
    open_blocking_in_process, open_in_process, run_blocking_in_process, run_in_process,
};

use crate::{
    harness::{begin, children, eventually},
    misuse::{answer, poll_once},
    oracle::{scratch, undisturbed, undisturbed_with},
};

crate::cases![
    f81_every_kind_of_runtime_will_do,
    f81_runtimes_in_turn_and_at_once,
    f81_a_handle_goes_where_it_likes,
    f80_a_runtime_that_is_dropped_ends_its_tasks,
    f80_a_future_of_a_runtime_that_is_gone,
    f80_a_process_outlives_the_runtime_that_opened_it,
    f80_a_large_result_in_the_shadow_of_a_runtime_that_is_gone,
    a_runtime_without_io_is_a_typed_error,
    no_tokio_at_all_will_do,
    futures_and_handles_are_send,
    c40_a_caller_that_does_not_poll_does_not_lose_its_task,
];

pub(crate) fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn multi_thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// On a thread where there is no runtime.
pub(crate) fn elsewhere<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(body).join().unwrap())
}

async fn uses_everything() {
    assert_eq!(run_in_process(answer, ()).await.unwrap(), 42);
    assert_eq!(run_blocking_in_process(|n: u8| n + 1, 1).await.unwrap(), 2);
    let process = open_in_process(answer, ()).await.unwrap();
    assert_eq!(process.wait().await.unwrap(), 42);
    assert!(process.exited().await.0.success());
    let hasty = Task::new().timeout(Duration::from_millis(50)).grace_period(Duration::ZERO);
    assert!(hasty.run(std::future::pending::<()>, ()).await.unwrap_err().is_timeout());
    let large = run_in_process(async |text: String| text, "x".repeat(1 << 20)).await.unwrap();
    assert_eq!(large.len(), 1 << 20);
    let process = Task::new().stdout(Stdio::piped()).open(async || println!("hello"), ()).await.unwrap();
    let mut text = String::new();
    process.take_stdout().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello\n");
}

fn f81_every_kind_of_runtime_will_do() {
    undisturbed(|| async {
        uses_everything().await;
        tokio::spawn(uses_everything()).await.unwrap();
        elsewhere(|| {
            current_thread().block_on(uses_everything());
            multi_thread().block_on(uses_everything());
            let local = tokio::task::LocalSet::new();
            current_thread().block_on(local.run_until(async {
                tokio::task::spawn_local(uses_everything()).await.unwrap();
            }));
            // No timers there.
            Builder::new_current_thread().enable_io().build().unwrap().block_on(uses_everything());
            let paused = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            paused.block_on(run_in_process(answer, ())).unwrap();
        });
    });
}

fn f81_runtimes_in_turn_and_at_once() {
    undisturbed(|| async {
        elsewhere(|| {
            for n in 0..10 {
                let runtime = if n % 2 == 0 { multi_thread() } else { current_thread() };
                assert_eq!(runtime.block_on(run_in_process(async |n: u8| n, n)).unwrap(), n);
            }
        });
        std::thread::scope(|scope| {
            for n in 0..8_u8 {
                scope.spawn(move || {
                    for m in 0..5 {
                        let both = current_thread().block_on(run_in_process(async |n: u8, m: u8| (n, m), (n, m)));
                        assert_eq!(both.unwrap(), (n, m));
                    }
                });
            }
        });
    });
}

fn f81_a_handle_goes_where_it_likes() {
    undisturbed(|| async {
        let zygote = default_zygote().unwrap();
        let process = elsewhere(|| current_thread().block_on(zygote.open_in_process(answer, ())).unwrap());
        assert_eq!(process.wait().await.unwrap(), 42);
        elsewhere(|| {
            assert_eq!(multi_thread().block_on(process.wait()).unwrap(), 42);
            assert_eq!(block_on(process.wait()).unwrap(), 42);
            assert_eq!(process.try_wait().unwrap().unwrap(), 42);
        });
        // The pipes as well.
        let task = zygote.task().stdin(Stdio::piped()).stdout(Stdio::piped());
        let cat = || std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()).unwrap();
        let process = elsewhere(|| current_thread().block_on(task.open_blocking(cat, ())).unwrap());
        let mut stdin = process.take_stdin().unwrap();
        elsewhere(move || {
            block_on(async {
                stdin.write_all(b"across").await.unwrap();
                stdin.shutdown().await.unwrap();
            });
        });
        let mut text = String::new();
        process.take_stdout().unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!((&*text, process.wait().await.unwrap()), ("across", 6));
    });
}

struct Leaves(String);

impl Drop for Leaves {
    fn drop(&mut self) {
        std::fs::write(&self.0, "dropped").unwrap();
    }
}

/// Says that it runs, and then that it was dropped, by files.
async fn leaves_a_mark(path: String) {
    let _leaves = Leaves(format!("{path}.dropped"));
    std::fs::write(&path, "runs").unwrap();
    std::future::pending::<()>().await;
}

fn f80_a_runtime_that_is_dropped_ends_its_tasks() {
    undisturbed(|| async {
        let zygote = default_zygote().unwrap();
        let ways: [fn(Runtime); 3] =
            [drop, Runtime::shutdown_background, |runtime| runtime.shutdown_timeout(Duration::from_secs(5))];
        for (n, (make, way)) in
            [multi_thread, current_thread].iter().flat_map(|make| ways.map(|way| (make, way))).enumerate()
        {
            let path = scratch(&format!("mark-{n}"));
            elsewhere(|| {
                let runtime = make();
                let task = zygote.task().grace_period(Duration::from_secs(20));
                runtime.spawn(task.run(leaves_a_mark, path.clone()));
                let opened = format!("{path}.open");
                let open = task.open(leaves_a_mark, opened.clone());
                runtime.spawn(async { open.await.unwrap().wait().await });
                runtime.block_on(eventually("they run", || Path::new(&path).exists() && Path::new(&opened).exists()));
                let start = Instant::now();
                way(runtime);
                assert!(start.elapsed() < Duration::from_secs(5), "a blocked thread: {:?}", start.elapsed());
            });
            // Politely: their destructors ran.
            crate::harness::nothing_is_left(&zygote).await;
            for path in [&path, &format!("{path}.open")] {
                assert!(Path::new(&format!("{path}.dropped")).exists(), "way {n}");
                std::fs::remove_file(path).unwrap();
                std::fs::remove_file(format!("{path}.dropped")).unwrap();
            }
        }
    });
}

fn f80_a_future_of_a_runtime_that_is_gone() {
    undisturbed(|| async {
        let zygote = default_zygote().unwrap();
        for make in [multi_thread, current_thread] {
            let path = scratch("moved");
            let task = zygote.task().grace_period(Duration::from_secs(20));
            let mut moved = Box::pin(task.run(leaves_a_mark, path.clone()));
            let opening = zygote.open_in_process(answer, ());
            let unpolled = zygote.run_in_process(answer, ());
            let (opening,) = elsewhere(|| {
                let runtime = make();
                runtime.block_on(async {
                    assert!(std::future::poll_fn(|cx| Poll::Ready(moved.as_mut().poll(cx).is_pending())).await);
                    let opening = begin(opening).await;
                    eventually("it runs", || Path::new(&path).exists()).await;
                    (opening,)
                })
            });
            let error = moved.await.unwrap_err();
            assert!(matches!(error, Error::ShutDown), "{error:?}");
            assert!(!error.is_retryable());
            // These have nothing to do with that runtime.
            assert_eq!(unpolled.await.unwrap(), 42);
            assert_eq!(opening.await.unwrap().wait().await.unwrap(), 42);
            crate::harness::nothing_is_left(&zygote).await;
            for path in [path.clone(), format!("{path}.dropped")] {
                std::fs::remove_file(path).unwrap();
            }
        }
    });
}

fn f80_a_process_outlives_the_runtime_that_opened_it() {
    undisturbed(|| async {
        let nap = async || tokio::time::sleep(Duration::from_millis(200)).await;
        for make in [multi_thread, current_thread] {
            let process = elsewhere(|| make().block_on(open_in_process(nap, ())).unwrap());
            process.wait().await.unwrap();
        }
    });
}

fn f80_a_large_result_in_the_shadow_of_a_runtime_that_is_gone() {
    undisturbed(|| async {
        let process = open_in_process(async || "x".repeat(200_000), ()).await.unwrap();
        process.wait().await.unwrap();
        elsewhere(|| {
            let runtime = current_thread();
            let handle = runtime.handle().clone();
            let _inside = handle.enter();
            drop(runtime);
            match block_on(process.wait()) {
                Ok(text) => assert_eq!(text.len(), 200_000),
                Err(error) => assert!(matches!(error, Error::ShutDown), "{error:?}"),
            }
            let error = block_on(run_in_process(answer, ())).unwrap_err();
            assert!(matches!(error, Error::ShutDown), "{error:?}");
        });
    });
}

fn a_runtime_without_io_is_a_typed_error() {
    undisturbed(|| async {
        elsewhere(|| {
            let runtimes = [
                Builder::new_current_thread().build().unwrap(),
                Builder::new_current_thread().enable_time().build().unwrap(),
                Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap(),
            ];
            // tokio's own panic is caught, but not before its message is printed.
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(|_| {}));
            let task = Task::new().name("reactorless");
            for runtime in &runtimes {
                let error = runtime.block_on(task.run(answer, ())).unwrap_err();
                assert!(matches!(error, Error::NoReactor { .. }), "{error:?}");
                assert!(error.to_string().contains("`reactorless`"), "{error}");
                assert!(error.to_string().contains("enable_all()"), "{error}");
                // The driver's own reactor serves these.
                let process = runtime.block_on(task.open(answer, ())).unwrap();
                assert_eq!(runtime.block_on(process.wait()).unwrap(), 42);
                let piped = task.clone().stdout(Stdio::piped());
                assert_eq!(runtime.block_on(piped.run(answer, ())).unwrap(), 42);
            }
            std::panic::set_hook(hook);
        });
    });
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The smallest executor there is.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    assert!(tokio::runtime::Handle::try_current().is_err() || std::thread::current().name() != Some("main"));
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    let start = Instant::now();
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(15), "nobody woke it");
        std::thread::park_timeout(Duration::from_secs(16));
    }
}

fn no_tokio_at_all_will_do() {
    undisturbed_with(Zygote::builder().max_processes(1), |zygote| async move {
        elsewhere(|| {
            assert_eq!(block_on(zygote.run_in_process(answer, ())).unwrap(), 42);
            let process = block_on(zygote.open_in_process(std::future::pending::<()>, ())).unwrap();
            let hasty = zygote.task().queue_timeout(Duration::from_millis(50));
            let error = block_on(hasty.run(answer, ())).unwrap_err();
            assert!(matches!(error, Error::TimedOut { phase: Phase::Queued, .. }), "{error:?}");
            let mut queued = Box::pin(zygote.run_in_process(answer, ()));
            assert!(poll_once(&mut queued).is_pending());
            block_on(process.shutdown());
            assert!(block_on(process.wait()).unwrap_err().is_cancelled());
            assert_eq!(block_on(queued).unwrap(), 42);
            let hasty = zygote.task().timeout(Duration::from_millis(50));
            assert!(block_on(hasty.run(std::future::pending::<()>, ())).unwrap_err().is_timeout());
            let large = block_on(zygote.run_in_process(async |text: String| text, "x".repeat(1 << 20))).unwrap();
            assert_eq!(large.len(), 1 << 20);
            let error = block_on(zygote.run_in_process(async || -> u8 { panic!("there") }, ())).unwrap_err();
            assert_eq!(error.panic().unwrap().message(), "there");
            let process = block_on(zygote.task().stdout(Stdio::piped()).open(async || println!("hi"), ())).unwrap();
            let mut text = String::new();
            block_on(process.take_stdout().unwrap().read_to_string(&mut text)).unwrap();
            assert_eq!(text, "hi\n");
            // Dropped half-way.
            let mut dropped = Box::pin(zygote.run_in_process(std::future::pending::<()>, ()));
            let start = Instant::now();
            while children(zygote.pid()).is_empty() {
                assert!(poll_once(&mut dropped).is_pending() && start.elapsed() < Duration::from_secs(10));
            }
        });
    });
}

fn futures_and_handles_are_send() {
    fn send<T: Send>(value: T) -> T {
        value
    }
    fn send_and_sync<T: Send + Sync>() {}
    send_and_sync::<Process<std::cell::Cell<u8>>>();
    send_and_sync::<Zygote>();
    send_and_sync::<ZygoteBuilder>();
    send_and_sync::<Task>();
    send_and_sync::<Stdio>();
    send_and_sync::<tokio_run_in_process::PipeReader>();
    send_and_sync::<tokio_run_in_process::PipeWriter>();
    fn is_send<T: Send>() {}
    is_send::<Run<u8>>();
    is_send::<Open<u8>>();
    is_send::<Wait<u8>>();
    undisturbed(|| async {
        // Arguments that are not, and a future in the worker that is not.
        let shared = std::rc::Rc::new(());
        let not_send = async |pointer: Option<Box<u8>>| {
            let here = std::rc::Rc::new(pointer);
            tokio::task::yield_now().await;
            here.as_deref().copied()
        };
        let task = tokio::spawn(send(run_in_process(not_send, Some(Box::new(7)))));
        assert_eq!(task.await.unwrap().unwrap(), Some(7));
        drop(shared);
        let process = open_in_process(answer, ()).await.unwrap();
        let waiting: Pin<Box<dyn Future<Output = Result<u8, Error>> + Send>> = Box::pin(process.wait());
        assert_eq!(waiting.await.unwrap(), 42);
        drop(process);
        open_blocking_in_process(|| (), ()).await.unwrap().wait().await.unwrap();
    });
}

/// The task runs, and only its caller does not look: that is no failure to start.
fn c40_a_caller_that_does_not_poll_does_not_lose_its_task() {
    undisturbed(|| async {
        let nap = async || {
            tokio::time::sleep(Duration::from_secs(6)).await;
            7
        };
        let mut run = Box::pin(Task::new().startup_timeout(Duration::from_secs(2)).run(nap, ()));
        assert!(std::future::poll_fn(|context| Poll::Ready(run.as_mut().poll(context).is_pending())).await);
        std::thread::sleep(Duration::from_secs(4));
        assert_eq!(run.await.unwrap(), 7);
    });
}
