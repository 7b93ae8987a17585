//! How cases follow a task that nobody may hear of any more: what it wrote to a file, and what /proc says.

use std::{
    future::Future,
    io::Write,
    pin::Pin,
    process::{Command, Stdio},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio_run_in_process::{Signal, worker};

pub(crate) use crate::harness::send_signal as signal;
use crate::{
    harness::{eventually, helper, is_alive, skip},
    oracle::scratch,
};

/// Appends to a file, at once and whole, whatever process does it.
pub(crate) fn note(path: &str, text: &str) {
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    file.unwrap().write_all(text.as_bytes()).unwrap();
}

/// A file that tasks write to. It goes with the value.
pub(crate) struct Notes(pub(crate) String);

impl Notes {
    pub(crate) fn new(name: &str) -> Self {
        Self(scratch(name))
    }

    pub(crate) fn path(&self) -> String {
        self.0.clone()
    }

    pub(crate) fn text(&self) -> String {
        std::fs::read_to_string(&self.0).unwrap_or_default()
    }

    pub(crate) async fn say(&self, text: &str) {
        eventually(text, || self.text().contains(text)).await;
    }

    /// The pids that were noted, each as ` pid=N `.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.text().split_whitespace().filter_map(|word| word.strip_prefix("pid=")?.parse().ok()).collect()
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Notes a word when it is dropped.
pub(crate) struct Says(pub(crate) String, pub(crate) &'static str);

impl Drop for Says {
    fn drop(&mut self) {
        note(&self.0, self.1);
    }
}

/// A task that takes SIGTERM over, notes each one it gets, and goes on.
pub(crate) async fn stubborn(path: String) {
    let mut terms = worker::signal(Signal::TERM).unwrap();
    note(&path, &format!(" pid={} ready ", std::process::id()));
    loop {
        terms.recv().await;
        note(&path, "TERM ");
    }
}

/// The same without a runtime.
pub(crate) fn stubborn_blocking(path: String) {
    let mut terms = worker::signal(Signal::TERM).unwrap();
    note(&path, &format!(" pid={} ready ", std::process::id()));
    loop {
        terms.recv_blocking();
        note(&path, "TERM ");
    }
}

/// A field of /proc/PID/status.
pub(crate) fn status(pid: u32, field: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned()))
}

/// Stops a process and waits until it stands.
pub(crate) async fn stop(pid: u32) {
    signal(pid, libc::SIGSTOP);
    stopped(pid).await;
}

/// Waits until a process stands.
pub(crate) async fn stopped(pid: u32) {
    eventually("it is stopped", || status(pid, "State").is_some_and(|state| state.starts_with('T'))).await;
}

/// How often a process has waited, once it waits: while nobody wakes it, the number stays.
pub(crate) async fn asleep(pid: u32) -> String {
    eventually("it sleeps", || status(pid, "State").is_some_and(|state| state.starts_with('S'))).await;
    status(pid, "voluntary_ctxt_switches").unwrap()
}

/// Waits until a process is dead, and says how long after `start` it was first seen so.
pub(crate) async fn dead(pid: u32, start: Instant) -> Duration {
    eventually("it is dead", || !is_alive(pid)).await;
    start.elapsed()
}

/// Polls a future a single time, without waking anybody later.
pub(crate) fn poll_once<F: Future + ?Sized>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// Numbers that are the same in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// A helper, run through `unshare` with these options. Skips where that is not allowed.
pub(crate) fn unshared(options: &[&str], name: &str) -> Command {
    let probe = Command::new("unshare").args(options).arg("true").stderr(Stdio::piped()).output();
    match probe {
        Err(e) => skip(&format!("no unshare: {e}")),
        Ok(output) if !output.status.success() => {
            skip(&format!("unshare {}: {}", options.join(" "), String::from_utf8_lossy(&output.stderr)))
        }
        Ok(_) => {}
    }
    let program = helper(name);
    let mut command = Command::new("unshare");
    command.args(options).arg(program.get_program()).env("CASE", name);
    command
}

pub(crate) fn must_succeed(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
