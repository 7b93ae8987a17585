//! What happens to a task that nobody waits for any more and that does not end by itself.

use std::time::{Duration, Instant};

use tokio_run_in_process::{Signal, Stdio, Task, worker};

use crate::{
    harness::{eventually, is_alive},
    oracle::{scratch, undisturbed},
    seed::{hear, never, note, notes, open_everywhere, plain_never, runtimes, say, sleep_for_ever},
};

crate::cases![s17_a_cancelled_caller_is_free_at_once, s28_a_warning_tells_of_a_worker_that_had_to_be_killed,];

/// Notes every signal that can be noted and stays; only SIGKILL ends it without a note.
async fn stays(path: String) {
    let signals = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT];
    let mut taken = signals.map(|signal| worker::signal(signal).unwrap());
    note(&path, &format!("pid {}", std::process::id()));
    std::future::poll_fn(|context| {
        for (signal, taken) in signals.iter().zip(&mut taken) {
            while std::pin::pin!(taken.recv()).poll(context).is_ready() {
                note(&path, &signal.to_string());
            }
        }
        std::task::Poll::Pending
    })
    .await
}

fn plain_stays(path: String) {
    let mut terminated = worker::signal(Signal::TERM).unwrap();
    note(&path, &format!("pid {}", std::process::id()));
    loop {
        terminated.recv_blocking();
        note(&path, "SIGTERM");
    }
}

fn s17_a_cancelled_caller_is_free_at_once() {
    undisturbed(|| async {
        let grace = Duration::from_secs(3);
        let task = Task::new().grace_period(grace);
        let path = |runtime: &str| scratch(&format!("stays-{runtime}"));
        let mut callers = Vec::new();
        for (runtime, task) in runtimes(&task) {
            callers.push((runtime, tokio::spawn(task.run(stays, path(runtime)))));
        }
        callers.push(("blocking", tokio::spawn(task.run_blocking(plain_stays, path("blocking")))));
        let mut left = Vec::new();
        for (runtime, caller) in callers {
            let path = path(runtime);
            eventually("it is ready", || notes(&path).len() == 1).await;
            let pid: u32 = notes(&path)[0].strip_prefix("pid ").unwrap().parse().unwrap();
            let start = Instant::now();
            caller.abort();
            assert!(caller.await.unwrap_err().is_cancelled(), "{runtime}");
            assert!(is_alive(pid), "{runtime}: it has its grace period, which its caller does not wait for");
            left.push((runtime, path, pid, start));
        }
        for (runtime, path, pid, start) in left {
            eventually("it is asked politely", || notes(&path).len() == 2).await;
            eventually("it is killed", || !is_alive(pid)).await;
            assert!(start.elapsed() >= grace, "{runtime}: {:?}", start.elapsed());
            assert_eq!(notes(&path)[1..], ["SIGTERM"], "{runtime}: once, and nothing else that it could note");
            std::fs::remove_file(path).unwrap();
        }
    });
}

#[cfg(feature = "tracing")]
mod log {
    use std::sync::Mutex;

    use tracing::{Event, Level, Metadata, Subscriber, field, span};

    static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

    pub(super) fn install() {
        tracing::subscriber::set_global_default(Log).unwrap();
    }

    /// How many warnings and errors there were since the last time.
    pub(super) fn count() -> usize {
        WARNINGS.lock().unwrap().len()
    }

    /// The warnings and errors since the last time, each with all its fields.
    pub(super) fn take() -> Vec<String> {
        std::mem::take(&mut *WARNINGS.lock().unwrap())
    }

    struct Log;

    struct Fields(String);

    impl field::Visit for Fields {
        fn record_debug(&mut self, field: &field::Field, value: &dyn std::fmt::Debug) {
            self.0 += &format!("{field}={value:?} ");
        }
    }

    impl Subscriber for Log {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= Level::WARN && metadata.target().starts_with("tokio_run_in_process")
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut fields = Fields(String::new());
            event.record(&mut fields);
            WARNINGS.lock().unwrap().push(fields.0);
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }
}

#[cfg(not(feature = "tracing"))]
mod log {
    pub(super) fn install() {
        crate::harness::skip("built without tracing");
    }

    pub(super) fn count() -> usize {
        0
    }

    pub(super) fn take() -> Vec<String> {
        Vec::new()
    }
}

fn s28_a_warning_tells_of_a_worker_that_had_to_be_killed() {
    log::install();
    undisturbed(|| async {
        let task = Task::new().name("stubborn").grace_period(Duration::from_millis(200));
        let polled = async || {
            say("ready");
            sleep_for_ever();
        };
        let plain = || {
            let _ignored = worker::signal(Signal::TERM).unwrap();
            say("ready");
            sleep_for_ever();
        };
        for (runtime, process) in open_everywhere(&task.clone().stdout(Stdio::piped()), polled, plain, ()).await {
            hear(&mut process.take_stdout().unwrap(), "ready").await;
            let pid = process.pid();
            drop(process);
            eventually("it is killed", || !is_alive(pid)).await;
            eventually("it is told", || log::count() > 0).await;
            let found = log::take();
            assert_eq!(found.len(), 1, "{runtime}: {found:?}");
            for part in ["the worker did not end by itself and is killed", "stubborn", &format!("pid={pid} ")] {
                assert!(found[0].contains(part), "{runtime}: no {part:?} in {found:?}");
            }
        }
        // One that ends when it is asked to, or that its user kills, is none to warn of.
        for (_, process) in open_everywhere(&task, never, plain_never, ()).await {
            process.shutdown().await;
        }
        for (_, process) in open_everywhere(&task, never, plain_never, ()).await {
            process.kill().unwrap();
            process.exited().await;
        }
        assert_eq!(log::take(), [""; 0]);
    });
}
