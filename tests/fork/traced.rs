//! What tasks print, line by line as `tracing` events of the program.

use std::{
    io::Write as _,
    sync::{Mutex, atomic::Ordering::SeqCst},
    time::Instant,
};

use tokio_run_in_process::{Error, Pool, Stdio, Task, flush_traced};
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::{
    harness::{eventually, helper},
    oracle::undisturbed,
    runtimes::{block_on, current_thread, elsewhere},
    seed::{runtimes, sleep_for_ever},
    traced_log::{CLOSES, Log, SECOND, Seen, install, lines, seen, take, talks, traced},
};

crate::cases![
    every_line_is_an_event,
    lines_of_every_kind,
    lines_of_a_task_that_does_not_end_well,
    lines_of_a_pools_tasks,
    the_span_and_the_subscriber_are_the_callers,
    stdin_has_no_lines,
    traced_beside_captured,
    traced_without_tokio,
    flushing_does_not_wait_for_tasks_that_run,
    the_last_words_before_the_end_of_the_program;
    60 => many_traced_tasks,
];

crate::helpers![ends_at_once];

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

fn lines_of_a_pools_tasks() {
    install();
    undisturbed(|| async {
        let pool = Pool::builder().name("talkers").worker(traced()).build().unwrap();
        let pid = pool.run_blocking(talks, ()).await.unwrap();
        // While its worker goes on.
        eventually("it is told", || seen().len() == 3).await;
        assert_eq!(pool.run_blocking(talks, ()).await.unwrap(), pid);
        drop(pool);
        eventually("it is told", || seen().len() == 6).await;
        let seen = take();
        assert!(seen.iter().all(|seen| &*seen.task == "talkers" && seen.pid == u64::from(pid)));
        assert_eq!(lines(&seen, "stdout"), ["one", "three", "one", "three"]);
        assert_eq!(lines(&seen, "stderr"), ["two", "two"]);
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
