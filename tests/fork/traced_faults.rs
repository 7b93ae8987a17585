//! Lines of tasks as events, with a subscriber that misbehaves, too many lines, or somebody who is gone.

use std::{io::Write as _, sync::atomic::Ordering::SeqCst, time::Duration};

use tokio_run_in_process::{Stdio, Task, Zygote, flush_traced, run_in_process, worker};

use crate::{
    harness::{eventually, is_alive, multi_thread},
    oracle::{scratch, undisturbed},
    orphans::Life,
    seed::sleep_for_ever,
    traced_log::{BLOCKED, SECOND, Seen, WAITING, install, lines, seen, take, talks, traced},
};

crate::cases![
    a_subscriber_that_panics,
    d60_a_subscriber_that_blocks_holds_nothing_up,
    d60_a_flood_of_lines_is_told_or_counted,
    a_subscriber_that_blocks_on_a_warning_of_the_library,
    d58_a_grandchild_that_keeps_a_traced_stream,
    lines_when_the_zygote_is_lost,
];

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
        let waits = async || {
            talks();
            std::future::pending::<()>().await;
        };
        let process = traced().open(waits, ()).await.unwrap();
        eventually("it blocks", || WAITING.load(SeqCst)).await;
        // What it is told of is not locked meanwhile.
        process.shutdown().await;
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
