//! The user's function that a zygote runs before it serves. What it makes stays, in this process and in all that are
//! forked from here on.
//!
//! It is the one exception from the rule that nothing of the user's runs in a zygote, and only an ancestor that was forked for
//! it does. It runs on a thread of its own, which ends: the thread-locals from which every worker's hash keys and random
//! numbers come stay untouched.

use std::{
    os::fd::{AsFd, OwnedFd, RawFd},
    time::Duration,
};

use crate::{
    model::{Failure, Terminal},
    sys::{self, fd, process, reserved},
    wire::{frame, rope::Rope},
    worker::{self, Job},
};

/// Reads the job from `line`, runs it, and answers there. The descriptors that it opened, which every worker will have.
pub(super) fn run(line: OwnedFd) -> Vec<RawFd> {
    let before = fd::numbers();
    let Ok(mut job) = Job::read(&line) else {
        // The parent does not want it any more, and will say so.
        return Vec::new();
    };
    let terminal = match job.arguments() {
        Ok(arguments) => on_a_thread(move || worker::call(job.header.entry, arguments)),
        Err(failure) => Terminal::Failed(failure),
    };
    let left = threads_left();
    let terminal = match left {
        0 => terminal,
        left => failed(format!(
            "preload: it left {left} threads running, which no worker would have. Let it join them before it returns"
        )),
    };
    let mut opened = fd::numbers();
    opened.retain(|number| !before.contains(number));
    opened.sort_unstable();
    if left == 0 {
        reserve_signal_pair(&mut opened);
    }
    let (header, body) = frame::encode(terminal, Duration::ZERO);
    // A parent that is gone is noticed by the one who serves.
    let _ = worker::send(line.as_fd(), &header, &body);
    opened
}

/// A runtime that the function used and dropped leaves the pair of `parent/inherited.rs`: every worker is to have one of
/// its own, or one would read what another is to be told.
fn reserve_signal_pair(opened: &mut Vec<RawFd>) {
    let sockets: Vec<_> = fd::sockets().into_iter().filter(|(number, _)| opened.contains(number)).collect();
    if sockets.len() < 2 {
        return;
    }
    let Some(pair) = reserved::find(worker::build_runtime) else { return };
    // A runtime that is still there has a copy of one end, and would be left alone with it.
    let has_copy =
        |end: RawFd| sockets.iter().any(|&(number, identity)| number != end && sockets.contains(&(end, identity)));
    if pair.into_iter().all(|end| opened.contains(&end) && !has_copy(end)) {
        reserved::reserve(pair);
        opened.retain(|number| !pair.contains(number));
    }
}

fn on_a_thread(run: impl FnOnce() -> Terminal<Rope> + Send) -> Terminal<Rope> {
    process::on_fresh_thread(|_| run()).unwrap_or_else(|e| failed(format!("preload: {e}")))
}

fn failed(what: String) -> Terminal<Rope> {
    Terminal::Failed(Failure::Setup { what, errno: 0 })
}

/// Threads but this one. The one that was joined may be listed for a moment.
fn threads_left() -> usize {
    let mut left = 0;
    for _ in 0..100 {
        left = sys::thread_count().unwrap_or(1).saturating_sub(1);
        if left == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    left
}
