//! What tasks print, line by line as `tracing` events of the program.

use std::{
    cell::RefCell,
    fmt::Write as _,
    io::Write as _,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use tokio_run_in_process::{Error, Stdio, Task, Zygote, flush_traced, run_in_process, worker};
use tracing::{Event, Level, Metadata, Subscriber, field, span};
use tracing_core::span::Current;

use crate::{
    harness::{eventually, helper, is_alive, multi_thread},
    oracle::{scratch, undisturbed},
    orphans::Life,
    runtimes::{block_on, current_thread, elsewhere},
    seed::{runtimes, sleep_for_ever},
};

crate::cases![
    every_line_is_an_event,
    lines_of_every_kind,
    lines_of_a_task_that_does_not_end_well,
    the_span_and_the_subscriber_are_the_callers,
    a_subscriber_that_panics,
    d60_a_subscriber_that_blocks_holds_nothing_up,
    d60_a_flood_of_lines_is_told_or_counted,
    a_subscriber_that_blocks_on_a_warning_of_the_library,
    stdin_has_no_lines,
    traced_beside_captured,
    traced_without_tokio,
    d58_a_grandchild_that_keeps_a_traced_stream,
    lines_when_the_zygote_is_lost,
    flushing_does_not_wait_for_tasks_that_run,
    the_last_words_before_the_end_of_the_program;
    60 => many_traced_tasks,
];

crate::helpers![ends_at_once];

const SECOND: Duration = Duration::from_secs(1);

/// One event, as the subscriber had it.
#[derive(Clone, Debug, Default)]
struct Seen {
    level: String,
    target: String,
    message: String,
    task: String,
    stream: String,
    pid: u64,
    cut: bool,
    dropped: u64,
    parent: Option<u64>,
}

impl field::Visit for Seen {
    fn record_debug(&mut self, field: &field::Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => write!(self.message, "{value:?}").unwrap(),
            "reason" | "error" => {}
            other => panic!("a field {other}"),
        }
    }

    fn record_str(&mut self, field: &field::Field, value: &str) {
        match field.name() {
            "task" => self.task = value.to_owned(),
            "stream" => self.stream = value.to_owned(),
            other => panic!("a field {other}"),
        }
    }

    fn record_u64(&mut self, field: &field::Field, value: u64) {
        match field.name() {
            "pid" => self.pid = value,
            "dropped" => self.dropped = value,
            other => panic!("a field {other}"),
        }
    }

    fn record_bool(&mut self, field: &field::Field, value: bool) {
        assert_eq!(field.name(), "cut");
        self.cut = value;
    }
}

static SEEN: Mutex<Vec<Seen>> = Mutex::new(Vec::new());
/// Events wait for it to be false.
static BLOCKED: AtomicBool = AtomicBool::new(false);
static WAITING: AtomicBool = AtomicBool::new(false);

static SPANS: Mutex<Vec<&'static Metadata<'static>>> = Mutex::new(Vec::new());
/// How many handles to spans were dropped.
static CLOSES: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static ENTERED: RefCell<Vec<span::Id>> = const { RefCell::new(Vec::new()) };
}

/// Notes what comes, in `SEEN` or in a list of its own.
struct Log(Option<&'static Mutex<Vec<Seen>>>);

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tokio_run_in_process") || metadata.is_span()
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        let mut spans = SPANS.lock().unwrap();
        spans.push(attributes.metadata());
        span::Id::from_u64(spans.len() as u64)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut seen = Seen {
            level: event.metadata().level().to_string(),
            target: event.metadata().target().to_owned(),
            parent: event.parent().map(span::Id::into_u64),
            ..Seen::default()
        };
        event.record(&mut seen);
        while BLOCKED.load(SeqCst) {
            WAITING.store(true, SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!seen.message.starts_with("please panic"), "as asked");
        self.0.unwrap_or(&SEEN).lock().unwrap().push(seen);
    }

    fn enter(&self, id: &span::Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(id.clone()));
    }

    fn exit(&self, _: &span::Id) {
        ENTERED.with_borrow_mut(Vec::pop);
    }

    fn try_close(&self, _: span::Id) -> bool {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        assert_ne!(thread, "run-in-process", "the driver runs no code of the program");
        CLOSES.fetch_add(1, SeqCst);
        false
    }

    fn current_span(&self) -> Current {
        let Some(id) = ENTERED.with_borrow(|entered| entered.last().cloned()) else { return Current::none() };
        let metadata = SPANS.lock().unwrap()[usize::try_from(id.into_u64()).unwrap() - 1];
        Current::new(id, metadata)
    }
}

fn install() {
    tracing::subscriber::set_global_default(Log(None)).unwrap();
}

fn seen() -> MutexGuard<'static, Vec<Seen>> {
    SEEN.lock().unwrap()
}

/// All that was told since the last time, once it has all been told.
fn take() -> Vec<Seen> {
    assert!(flush_traced(10 * SECOND));
    std::mem::take(&mut *seen())
}

/// The lines of one stream.
fn lines(seen: &[Seen], stream: &str) -> Vec<String> {
    seen.iter().filter(|seen| seen.stream == stream).map(|seen| seen.message.clone()).collect()
}

fn traced() -> Task {
    Task::new().stdout(Stdio::traced()).stderr(Stdio::traced())
}

fn talks() -> u32 {
    println!("one");
    eprintln!("two");
    println!("three");
    std::process::id()
}

fn every_line_is_an_event() {
    install();
    undisturbed(|| async {
        let task = traced().name("talker");
        let mut pids = vec![task.run_blocking(talks, ()).await.unwrap()];
        for (_, task) in runtimes(&task) {
            pids.push(task.run(async || talks(), ()).await.unwrap());
            pids.push(task.open(async || talks(), ()).await.unwrap().await.unwrap());
        }
        let seen = take();
        for pid in pids {
            let seen: Vec<_> = seen.iter().filter(|seen| seen.pid == u64::from(pid)).cloned().collect();
            assert_eq!(seen.len(), 3);
            assert_eq!(
                (lines(&seen, "stdout"), lines(&seen, "stderr")),
                (vec!["one".into(), "three".into()], vec!["two".into()])
            );
            for seen in seen {
                assert_eq!((&*seen.target, &*seen.task), ("tokio_run_in_process::stdio", "talker"));
                assert_eq!(seen.level, if seen.stream == "stdout" { "INFO" } else { "WARN" });
                assert!(!seen.cut && seen.dropped == 0 && seen.parent.is_none());
            }
        }
        for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE] {
            let task = Task::new().stdout(Stdio::traced_at(level)).stderr(Stdio::traced_at(level));
            task.run_blocking(talks, ()).await.unwrap();
            let seen = take();
            assert_eq!(seen.len(), 3);
            assert!(seen.iter().all(|seen| seen.level == level.to_string()), "{level}");
        }
        // Who is let go of is heard as well.
        task.open_blocking(talks, ()).await.unwrap().detach();
        eventually("it is told", || self::seen().len() == 3).await;
    });
}

fn lines_of_every_kind() {
    install();
    undisturbed(|| async {
        let writes = || {
            let mut stdout = std::io::stdout();
            stdout.write_all(b"unix\nwindows\r\n\nno \xff text\n\xc3\xa9\n").unwrap();
            stdout.write_all("y".repeat(40_000).as_bytes()).unwrap();
            stdout.write_all(b"\nlast").unwrap();
        };
        traced().run_blocking(writes, ()).await.unwrap();
        let seen = take();
        let (long, short): (Vec<_>, Vec<_>) = seen.iter().partition(|seen| seen.message.starts_with('y'));
        let short: Vec<_> = short.iter().map(|seen| &*seen.message).collect();
        assert_eq!(short, ["unix", "windows", "", "no \u{fffd} text", "é", "last"]);
        let long: Vec<_> = long.iter().map(|seen| (seen.message.len(), seen.cut)).collect();
        assert_eq!(long, [(16_384, true), (16_384, true), (40_000 - 2 * 16_384, false)]);
        // Nothing printed is nothing to tell.
        traced().run_blocking(|| (), ()).await.unwrap();
        assert!(take().is_empty());
    });
}

fn lines_of_a_task_that_does_not_end_well() {
    install();
    undisturbed(|| async {
        let fails = |how: String| {
            println!("to be {how}");
            match how.as_str() {
                "panicked" => panic!("no"),
                "aborted" => std::process::abort(),
                _ => sleep_for_ever(),
            }
        };
        let task = traced().timeout(SECOND / 4).grace_period(SECOND / 4);
        for how in ["panicked", "aborted", "late"] {
            task.run_blocking(fails, how.to_owned()).await.unwrap_err();
            let seen = take();
            assert_eq!(lines(&seen, "stdout"), [format!("to be {how}")]);
            assert_eq!(lines(&seen, "stderr").iter().any(|line| line.contains("panicked at")), how == "panicked");
        }
        let dropped = tokio::spawn(traced().run_blocking(fails, "dropped".to_owned()));
        eventually("it began", || !self::seen().is_empty()).await;
        dropped.abort();
        assert!(dropped.await.unwrap_err().is_cancelled());
        assert_eq!(lines(&take(), "stdout"), ["to be dropped"]);
    });
}

fn the_span_and_the_subscriber_are_the_callers() {
    static OTHERS: Mutex<Vec<Seen>> = Mutex::new(Vec::new());
    install();
    tokio_run_in_process::init().unwrap();
    current_thread().block_on(async {
        let other = tracing::subscriber::set_default(Log(Some(&OTHERS)));
        let span = tracing::info_span!("request");
        let within = span.in_scope(|| traced().run_blocking(talks, ()));
        let without = traced().run_blocking(talks, ());
        drop(other);
        within.await.unwrap();
        let others = || OTHERS.lock().unwrap().clone();
        assert!(take().is_empty());
        assert_eq!(others().len(), 3);
        assert!(others().iter().all(|seen| seen.parent == span.id().map(|id| id.into_u64())), "{:?}", others());
        without.await.unwrap();
        assert!(take().is_empty());
        assert!(others().len() == 6 && others()[3..].iter().all(|seen| seen.parent.is_none()), "{:?}", others());
        traced().run_blocking(talks, ()).await.unwrap();
        assert_eq!((take().len(), others().len()), (3, 6));
        // One for each stream.
        eventually("the span is let go", || CLOSES.load(SeqCst) == 2).await;
    });
}

fn a_subscriber_that_panics() {
    install();
    undisturbed(|| async {
        let talks = || {
            for n in 0..10 {
                println!("{}{n}", if n % 3 == 0 { "please panic " } else { "" });
            }
        };
        for _ in 0..3 {
            traced().run_blocking(talks, ()).await.unwrap();
            assert_eq!(lines(&take(), "stdout"), ["1", "2", "4", "5", "7", "8"]);
        }
        assert_eq!(run_in_process(async || 1, ()).await.unwrap(), 1);
    });
}

const LINE: &str = "0123456789012345678901234567890123456789012345678901234567890";

/// Prints so many megabytes of lines to both streams.
fn floods(megabytes: usize) {
    let text = format!("{LINE}\n").repeat((1 << 20) / (LINE.len() + 1));
    std::thread::scope(|scope| {
        scope.spawn(|| (0..megabytes).for_each(|_| std::io::stdout().write_all(text.as_bytes()).unwrap()));
        scope.spawn(|| (0..megabytes).for_each(|_| std::io::stderr().write_all(text.as_bytes()).unwrap()));
    });
}

fn flooded(megabytes: usize) -> usize {
    megabytes * ((1 << 20) / (LINE.len() + 1) * (LINE.len() + 1))
}

/// How many bytes the events of a stream stand for: told, and dropped.
fn told(seen: &[Seen], stream: &str) -> (usize, usize) {
    let of_it = seen.iter().filter(|seen| seen.stream == stream);
    of_it.fold((0, 0), |(told, dropped), seen| match usize::try_from(seen.dropped).unwrap() {
        0 => {
            assert!(LINE.contains(&seen.message), "{seen:?}");
            (told + seen.message.len() + usize::from(!seen.cut), dropped)
        }
        more => (told, dropped + more),
    })
}

fn d60_a_subscriber_that_blocks_holds_nothing_up() {
    install();
    undisturbed(|| async {
        BLOCKED.store(true, SeqCst);
        traced().run_blocking(talks, ()).await.unwrap();
        eventually("it blocks", || WAITING.load(SeqCst)).await;
        // More than all that is kept of them.
        for _ in 0..20 {
            traced().name("flood").run_blocking(floods, 5).await.unwrap();
        }
        let late = traced().timeout(SECOND / 4).grace_period(SECOND / 4).run_blocking(sleep_for_ever, ()).await;
        assert!(late.unwrap_err().is_timeout());
        assert_eq!(run_in_process(async || 1, ()).await.unwrap(), 1);
        assert!(!flush_traced(SECOND / 10), "it is blocked");
        assert!(seen().is_empty());
        BLOCKED.store(false, SeqCst);
        let seen = take();
        let floods: Vec<_> = seen.iter().filter(|seen| seen.task == "flood").cloned().collect();
        let mut kept = 0;
        for stream in ["stdout", "stderr"] {
            let (told, dropped) = told(&floods, stream);
            assert_eq!(told + dropped, 20 * flooded(5), "{stream}");
            assert!(told > 1 << 19, "{told} bytes of {stream} were kept");
            kept += told;
        }
        assert!(kept < 17 << 20, "{kept} bytes were kept");
        // And all is as before.
        traced().run_blocking(talks, ()).await.unwrap();
        assert_eq!(take().len(), 3);
    });
}

fn d60_a_flood_of_lines_is_told_or_counted() {
    install();
    undisturbed(|| async {
        traced().run_blocking(floods, 20).await.unwrap();
        let seen = take();
        for stream in ["stdout", "stderr"] {
            let (told, dropped) = told(&seen, stream);
            assert_eq!(told + dropped, flooded(20), "{stream}: {told} bytes told");
        }
        for seen in seen.iter().filter(|seen| seen.dropped > 0) {
            assert_eq!((&*seen.level, &*seen.target), ("WARN", "tokio_run_in_process::stdio"));
            assert!(seen.message.starts_with("output was dropped"), "{}", seen.message);
        }
    });
}

fn a_subscriber_that_blocks_on_a_warning_of_the_library() {
    install();
    undisturbed(|| async {
        let deaf = || {
            let _ignored = worker::signal(tokio_run_in_process::Signal::TERM).unwrap();
            sleep_for_ever();
        };
        BLOCKED.store(true, SeqCst);
        let task = Task::new().timeout(SECOND / 4).grace_period(SECOND / 4);
        let process = task.open_blocking(deaf, ()).await.unwrap();
        let pid = process.pid();
        eventually("it warns", || WAITING.load(SeqCst)).await;
        eventually("it is killed", || !is_alive(pid)).await;
        process.exited().await;
        assert!(task.run_blocking(deaf, ()).await.unwrap_err().is_timeout());
        assert_eq!(run_in_process(async || 1, ()).await.unwrap(), 1);
        BLOCKED.store(false, SeqCst);
        eventually("both warnings are told", || seen().len() == 2).await;
    });
}

fn stdin_has_no_lines() {
    undisturbed(|| async {
        match Task::new().stdin(Stdio::traced()).run_blocking(talks, ()).await {
            Err(Error::InvalidOption { reason, .. }) => assert!(reason.contains("stdin"), "{reason}"),
            other => panic!("{other:?}"),
        }
    });
}

fn traced_beside_captured() {
    install();
    undisturbed(|| async {
        let output = Task::new().stderr(Stdio::traced()).output_blocking(talks, ()).await;
        output.result.unwrap();
        assert_eq!((output.stdout.text().as_ref(), output.stderr.total()), ("one\nthree\n", 0));
        let seen = take();
        assert_eq!((lines(&seen, "stderr"), seen.len()), (vec!["two".to_owned()], 1));
        let process = traced().open_blocking(talks, ()).await.unwrap();
        assert!(process.take_stdout().is_none() && process.take_stderr().is_none());
        process.wait().await.unwrap();
        assert_eq!(take().len(), 3);
    });
}

fn traced_without_tokio() {
    install();
    undisturbed(|| async {
        elsewhere(|| {
            block_on(async { traced().run_blocking(talks, ()).await.unwrap() });
            assert_eq!(take().len(), 3);
        });
    });
}

fn d58_a_grandchild_that_keeps_a_traced_stream() {
    install();
    undisturbed(|| async {
        for script in ["echo mine; exec sleep 60", "exec yes"] {
            let starts = |script: String| {
                println!("before");
                let mut command = std::process::Command::new("setsid");
                command.args(["sh", "-c", &script]).spawn().unwrap().id()
            };
            let left = traced().run_blocking(starts, script.to_owned()).await.unwrap();
            assert!(lines(&take(), "stdout").contains(&"before".to_owned()));
            // SAFETY: touches no memory.
            let _ = unsafe { libc::kill(-i32::try_from(left).unwrap(), libc::SIGKILL) };
            eventually("it is gone", || !is_alive(left)).await;
        }
    });
}

fn lines_when_the_zygote_is_lost() {
    install();
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        let path = scratch("lost");
        let waits = |path: String| {
            println!("begun");
            while !std::path::Path::new(&path).exists() {
                std::thread::sleep(Duration::from_millis(2));
            }
            print!("went on");
        };
        let running = tokio::spawn(zygote.task().stdout(Stdio::traced()).run_blocking(waits, path.clone()));
        eventually("it has begun", || seen().len() == 1).await;
        let life = Life::of(zygote.pid());
        life.kill();
        eventually("the zygote is gone", || life.is_over()).await;
        std::fs::write(&path, "").unwrap();
        running.await.unwrap().unwrap();
        let seen: Vec<_> = take().into_iter().filter(|seen| seen.stream == "stdout").collect();
        assert_eq!(lines(&seen, "stdout"), ["begun", "went on"]);
        std::fs::remove_file(&path).unwrap();
    });
}

fn flushing_does_not_wait_for_tasks_that_run() {
    install();
    undisturbed(|| async {
        let waits = async || {
            println!("begun");
            std::future::pending::<()>().await;
        };
        let process = traced().open(waits, ()).await.unwrap();
        eventually("it has begun", || seen().len() == 1).await;
        let start = Instant::now();
        assert!(flush_traced(20 * SECOND));
        assert!(start.elapsed() < 15 * SECOND);
        process.shutdown().await;
        assert!(flush_traced(10 * SECOND));
    });
}

/// Prints its events itself; nothing in it waits for them.
fn ends_at_once() {
    struct Prints;

    impl Subscriber for Prints {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut seen = Seen::default();
            event.record(&mut seen);
            println!("{}: {}", seen.stream, seen.message);
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    tracing::subscriber::set_global_default(Prints).unwrap();
    let last = || {
        println!("last words");
        eprintln!("the very last words");
    };
    tokio_run_in_process::block_on(async { traced().run_blocking(last, ()).await.unwrap() }).unwrap();
}

fn the_last_words_before_the_end_of_the_program() {
    for _ in 0..10 {
        let output = helper("ends_at_once").output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["stderr: the very last words", "stdout: last words"]);
    }
}

fn many_traced_tasks() {
    install();
    undisturbed(|| async {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..200_u64 {
            let counts = |n: u64| (0..10).for_each(|line| println!("{n} says {line}"));
            tasks.spawn(traced().name(n.to_string()).run_blocking(counts, n));
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap().unwrap();
        }
        let seen = take();
        for n in 0..200 {
            let n = n.to_string();
            let lines: Vec<_> = seen.iter().filter(|seen| seen.task == n).map(|seen| seen.message.clone()).collect();
            assert_eq!(lines, (0..10).map(|line| format!("{n} says {line}")).collect::<Vec<_>>());
        }
    });
}
