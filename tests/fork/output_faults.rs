//! Captured output of tasks that write too much, leave somebody behind, or lose somebody.

use std::{io::Write, os::unix::process::CommandExt, process::Command, time::Duration};

use tokio_run_in_process::{Captured, Task, Zygote};

use crate::{
    harness::{eventually, is_alive, multi_thread},
    oracle::{scratch, undisturbed},
    orphans::Life,
    output::texts,
    seed::say,
    tools::Notes,
};

crate::cases![
    d60_a_flood_on_both_streams_is_capped,
    d60_a_flood_that_is_cut_off,
    d58_a_grandchild_that_keeps_the_streams_is_not_waited_for,
    output_that_nobody_waits_for_any_more,
    output_when_the_zygote_is_lost,
];

pub(crate) const MB: u64 = 1 << 20;

/// Writes so many megabytes to both streams at once: where each byte belongs can be told.
pub(crate) fn floods(megabytes: u64) {
    let flood = |mut stream: Box<dyn Write>| {
        let megabyte: Vec<u8> = (0..MB).map(|n| u8::try_from(n % 251).unwrap()).collect();
        (0..megabytes).for_each(|_| stream.write_all(&megabyte).unwrap());
        stream.flush().unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| flood(Box::new(std::io::stdout())));
        scope.spawn(|| flood(Box::new(std::io::stderr())));
    });
}

/// Whether it is the beginning of a flood.
fn is_beginning(captured: &Captured, kept: u64) {
    assert_eq!(captured.bytes.len() as u64, kept);
    let fits = captured.bytes.iter().enumerate().all(|(n, &byte)| usize::from(byte) == n % MB as usize % 251);
    assert!(fits, "other bytes");
}

/// How much memory this program has mapped at most so far, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn d60_a_flood_on_both_streams_is_capped() {
    undisturbed(|| async {
        let before = peak();
        let output = Task::new().output_blocking(floods, 200).await;
        output.result.unwrap();
        for captured in [output.stdout, output.stderr] {
            is_beginning(&captured, MB);
            assert_eq!((captured.dropped, captured.total()), (199 * MB, 200 * MB));
        }
        let grown = peak() - before;
        assert!(grown < 64 * MB, "{grown} bytes more for two megabytes that are kept");
        for (limit, kept) in [(0, 0), (1, 1), (100_000, 100_000), (3 * MB, 3 * MB), (u64::MAX, 3 * MB)] {
            let output = Task::new().output_limit(limit).output_blocking(floods, 3).await;
            output.result.unwrap();
            for captured in [output.stdout, output.stderr] {
                is_beginning(&captured, kept);
                assert_eq!(captured.total(), 3 * MB);
            }
        }
    });
}

fn d60_a_flood_that_is_cut_off() {
    undisturbed(|| async {
        let task = Task::new().timeout(Duration::from_millis(300)).output_limit(100);
        let output = task.output_blocking(floods, u64::MAX).await;
        assert!(output.result.unwrap_err().is_timeout());
        for captured in [output.stdout, output.stderr] {
            is_beginning(&captured, 100);
            assert!(captured.dropped > 0);
        }
    });
}

/// Starts a program in a session of its own that holds the streams, and gives its pid.
fn leave_behind(script: String) -> u32 {
    let mut command = Command::new("sh");
    let own_session = || {
        // SAFETY: touches no memory; async-signal-safe.
        unsafe { libc::setsid() };
        Ok(())
    };
    // SAFETY: only async-signal-safe calls.
    unsafe { command.pre_exec(own_session) };
    // Before anything of the program's.
    say("left");
    eprintln!("behind");
    command.args(["-c", &script]).spawn().unwrap().id()
}

fn d58_a_grandchild_that_keeps_the_streams_is_not_waited_for() {
    undisturbed(|| async {
        // The second one never lets the streams run empty.
        for script in ["exec sleep 60", "yes >&2 & exec yes"] {
            let output = Task::new().output_blocking(leave_behind, script.to_owned()).await;
            let left = *output.result.as_ref().unwrap();
            // One that writes ends when nobody reads it any more.
            assert!(is_alive(left) || script.contains("yes"));
            assert!(output.stdout.bytes.starts_with(b"left\n"));
            assert!(output.stderr.bytes.starts_with(b"behind\n"));
            // SAFETY: touches no memory.
            let _ = unsafe { libc::kill(-i32::try_from(left).unwrap(), libc::SIGKILL) };
            eventually("it is gone", || !is_alive(left)).await;
        }
    });
}

fn output_that_nobody_waits_for_any_more() {
    undisturbed(|| async {
        let notes = Notes::new("dropped");
        let path = notes.path();
        let begins = async |path: String| {
            println!("some");
            std::fs::write(path, format!(" pid={} ", std::process::id())).unwrap();
            std::future::pending::<()>().await;
        };
        let waiting = tokio::spawn(Task::new().output(begins, path));
        notes.say("pid=").await;
        let pid = notes.pids()[0];
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        eventually("the task is ended", || !is_alive(pid)).await;
    });
}

fn output_when_the_zygote_is_lost() {
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        let path = scratch("lost");
        let waits = |path: String, how: String| {
            println!("begun");
            std::fs::write(format!("{path}-{how}"), "").unwrap();
            while !std::path::Path::new(&path).exists() {
                std::thread::sleep(Duration::from_millis(2));
            }
            println!("went on");
            if how == "aborts" {
                std::io::stdout().flush().unwrap();
                std::process::abort();
            }
        };
        let run = |how: &str| tokio::spawn(zygote.task().output_blocking(waits, (path.clone(), how.to_owned())));
        let (returns, aborts) = (run("returns"), run("aborts"));
        for how in ["returns", "aborts"] {
            let begun = format!("{path}-{how}");
            eventually("it has begun", || std::path::Path::new(&begun).exists()).await;
            std::fs::remove_file(begun).unwrap();
        }
        let life = Life::of(zygote.pid());
        life.kill();
        eventually("the zygote is gone", || life.is_over()).await;
        std::fs::write(&path, "").unwrap();
        let output = returns.await.unwrap();
        output.result.as_ref().unwrap();
        assert_eq!(texts(&output), ("begun\nwent on\n", ""));
        let output = aborts.await.unwrap();
        output.result.as_ref().unwrap_err();
        assert_eq!(texts(&output), ("begun\nwent on\n", ""));
        std::fs::remove_file(&path).unwrap();
    });
}
