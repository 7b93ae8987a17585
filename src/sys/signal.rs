//! Signal masks, dispositions and the two handlers of a worker.
//!
//! # Safety
//!
//! Handlers do only what signal-safety(7) allows: atomics, `write`, `shutdown`, `poll`, `kill`, `_exit`.

use std::{
    io, mem,
    os::fd::RawFd,
    ptr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::check;
use crate::model::Signal;

/// A set of signals.
#[derive(Clone, Copy)]
pub(crate) struct SignalSet(libc::sigset_t);

impl SignalSet {
    pub(crate) fn empty() -> Self {
        // SAFETY: an all-zero sigset_t is valid storage.
        let mut set = Self(unsafe { mem::zeroed() });
        // SAFETY: the pointer is live; the call initialises the set.
        let _ = unsafe { libc::sigemptyset(&raw mut set.0) };
        set
    }

    pub(crate) fn all() -> Self {
        let mut set = Self::empty();
        // SAFETY: the pointer is live.
        let _ = unsafe { libc::sigfillset(&raw mut set.0) };
        set
    }

    pub(crate) fn without(mut self, signal: Signal) -> Self {
        // SAFETY: the pointer is live.
        let _ = unsafe { libc::sigdelset(&raw mut self.0, signal.number()) };
        self
    }

    fn with(mut self, signal: Signal) -> Self {
        // SAFETY: the pointer is live.
        let _ = unsafe { libc::sigaddset(&raw mut self.0, signal.number()) };
        self
    }

    /// Makes this the mask of the calling thread and gives the one before.
    pub(crate) fn apply(&self) -> Self {
        let mut before = Self::empty();
        // SAFETY: both pointers are live.
        let _ = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, &raw mut before.0) };
        before
    }
}

/// Runs `body` with every signal blocked in this thread: what it starts inherits that.
pub(crate) fn with_all_blocked<T>(body: impl FnOnce() -> T) -> T {
    /// Also if it panics: the thread may be one of a runtime, which catches that and goes on.
    struct Restore(SignalSet);
    impl Drop for Restore {
        fn drop(&mut self) {
            self.0.apply();
        }
    }
    let _before = Restore(SignalSet::all().apply());
    body()
}

/// Runs `body`, which may write to a pipe that nobody reads any more, without the SIGPIPE that comes of it: the error is
/// enough, and the program may have that signal at its default.
pub(crate) fn without_sigpipe<T>(body: impl FnOnce() -> T) -> T {
    if disposition(Signal::PIPE) == Disposition::Ignored {
        return body();
    }
    let pipe = SignalSet::empty().with(Signal::PIPE);
    let mut before = SignalSet::empty();
    // SAFETY: both pointers are live.
    let _ = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const pipe.0, &raw mut before.0) };
    let theirs = is_pending(Signal::PIPE);
    let value = body();
    if !theirs && is_pending(Signal::PIPE) {
        let mut signal = 0;
        // SAFETY: both pointers are live. The signal is pending, so this takes it and does not wait.
        let _ = unsafe { libc::sigwait(&raw const pipe.0, &raw mut signal) };
    }
    before.apply();
    value
}

/// Whether a signal that this thread blocks has arrived.
fn is_pending(signal: Signal) -> bool {
    let mut pending = SignalSet::empty();
    // SAFETY: the pointer is live.
    let _ = unsafe { libc::sigpending(&raw mut pending.0) };
    // SAFETY: the pointer is live.
    unsafe { libc::sigismember(&raw const pending.0, signal.number()) == 1 }
}

/// A handler, as the kernel calls it.
pub(crate) type Handler = extern "C" fn(libc::c_int);

/// What a signal did before it was taken over.
#[derive(Clone, Copy)]
pub(crate) struct Action(libc::sigaction);

/// Sets what a signal does, and gives what it did.
fn set_action(signal: libc::c_int, action: libc::sighandler_t) -> io::Result<Action> {
    // SAFETY: an all-zero sigaction is valid; the fields that matter are set below.
    let mut new: libc::sigaction = unsafe { mem::zeroed() };
    let mut before = Action(new);
    new.sa_sigaction = action;
    // A handler must not make a task's blocking calls fail with EINTR.
    new.sa_flags = libc::SA_RESTART;
    // SAFETY: the pointers are live for the call; the handlers given here are async-signal-safe.
    check(unsafe { libc::sigaction(signal, &raw const new, &raw mut before.0) })?;
    Ok(before)
}

/// Gives a signal its default action again.
pub(crate) fn reset(signal: Signal) {
    let _ = set_action(signal.number(), libc::SIG_DFL);
}

/// Lets `handler` handle a signal.
pub(crate) fn handle(signal: Signal, handler: Handler) -> io::Result<()> {
    take_over(signal, handler).map(drop)
}

/// The same, and gives what to [`restore`] when that is over.
pub(crate) fn take_over(signal: Signal, handler: Handler) -> io::Result<Action> {
    set_action(signal.number(), handler as *const () as libc::sighandler_t)
}

/// Lets a signal do again what it did.
pub(crate) fn restore(signal: Signal, before: &Action) {
    // SAFETY: the pointer is live for the call; this action was in force already.
    let _ = unsafe { libc::sigaction(signal.number(), &raw const before.0, ptr::null_mut()) };
}

/// Gives every signal but SIGPIPE its default action. SIGPIPE stays as the program had it: a worker that writes to a
/// closed pipe must not die of what the parent ignores.
pub(crate) fn reset_all() {
    for signal in 1..=super::os::MAX_SIGNAL {
        if signal != libc::SIGPIPE {
            // SIGKILL, SIGSTOP and the two that the C library keeps answer EINVAL.
            let _ = set_action(signal, libc::SIG_DFL);
        }
    }
}

/// What `disposition` finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    Default,
    Ignored,
    Handled,
}

/// What a signal does now.
pub(crate) fn disposition(signal: Signal) -> Disposition {
    // SAFETY: an all-zero sigaction is valid storage.
    let mut now: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: the pointer is live; a null new action changes nothing.
    let _ = unsafe { libc::sigaction(signal.number(), ptr::null(), &raw mut now) };
    match now.sa_sigaction {
        libc::SIG_DFL => Disposition::Default,
        libc::SIG_IGN => Disposition::Ignored,
        _ => Disposition::Handled,
    }
}

static CHILD_ENDED: AtomicBool = AtomicBool::new(true);

/// The zygote's handler for SIGCHLD, which gets through only while `wait` waits.
pub(crate) extern "C" fn child_ended(_signal: libc::c_int) {
    CHILD_ENDED.store(true, Ordering::Relaxed);
}

/// Whether a child may have ended since this was asked last.
pub(crate) fn take_child_ended() -> bool {
    CHILD_ENDED.swap(false, Ordering::Relaxed)
}

/// Which of the descriptors that were waited for are ready.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ready {
    pub(crate) control: bool,
    pub(crate) watch: bool,
}

/// Waits for the control socket (to read, and to write), for the watch on the parent, or for a child's end, so long at most.
///
/// `pselect(2)` lets SIGCHLD through only while it waits, so a child that ends just before is not missed. It is used
/// and not `signalfd` or `kqueue`, because Linux and macOS both have it; the zygote's few descriptors have small numbers.
pub(crate) fn wait(
    control: RawFd,
    read: bool,
    write: bool,
    watch: Option<RawFd>,
    limit: Option<Duration>,
) -> io::Result<Ready> {
    assert!(control < 64 && watch.is_none_or(|fd| fd < 64), "the zygote keeps its descriptors low");
    // SAFETY: an all-zero fd_set is the empty set.
    let mut reads: libc::fd_set = unsafe { mem::zeroed() };
    let mut writes = reads;
    if read {
        // SAFETY: the number is below FD_SETSIZE (checked above) and the set is live.
        unsafe { libc::FD_SET(control, &raw mut reads) };
    }
    if write {
        // SAFETY: as above.
        unsafe { libc::FD_SET(control, &raw mut writes) };
    }
    if let Some(watch) = watch {
        // SAFETY: as above.
        unsafe { libc::FD_SET(watch, &raw mut reads) };
    }
    let mask = SignalSet::all().without(Signal::CHLD);
    let highest = control.max(watch.unwrap_or(0)) + 1;
    // Below a second, so both fit.
    let limit = limit.map(|limit| libc::timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos() as _ });
    let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the sets, the limit and the mask are live for the call; null sets and no limit are allowed.
    let n = check(unsafe {
        libc::pselect(highest, &raw mut reads, &raw mut writes, ptr::null_mut(), limit, &raw const mask.0)
    });
    match n {
        Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(Ready::default()),
        Err(e) => return Err(e),
        Ok(_) => {}
    }
    let is_set = |fd| {
        // SAFETY: the number is below FD_SETSIZE (checked above) and the set is live.
        unsafe { libc::FD_ISSET(fd, &raw const reads) }
    };
    Ok(Ready { control: is_set(control), watch: watch.is_some_and(is_set) })
}

/// Waits until a descriptor is readable or `timeout` is over. `false` on timeout.
pub(crate) fn wait_readable(fd: RawFd, timeout: Option<Duration>) -> io::Result<bool> {
    wait_for([(fd, libc::POLLIN)], timeout)
}

/// Waits until a descriptor can be written to or `timeout` is over. `false` on timeout.
pub(crate) fn wait_writable(fd: RawFd, timeout: Option<Duration>) -> io::Result<bool> {
    wait_for([(fd, libc::POLLOUT)], timeout)
}

/// Waits until the one can be read or the other written to.
pub(crate) fn wait_either(read: RawFd, write: RawFd) -> io::Result<()> {
    wait_for([(read, libc::POLLIN), (write, libc::POLLOUT)], None).map(drop)
}

fn wait_for<const N: usize>(what: [(RawFd, libc::c_short); N], timeout: Option<Duration>) -> io::Result<bool> {
    let mut polls = what.map(|(fd, events)| libc::pollfd { fd, events, revents: 0 });
    // A time that the clock cannot hold is no limit.
    let deadline = timeout.and_then(|timeout| std::time::Instant::now().checked_add(timeout));
    loop {
        let left = match deadline {
            None => -1,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(std::time::Instant::now());
                i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
            }
        };
        // SAFETY: so many live pollfds.
        match check(unsafe { libc::poll(polls.as_mut_ptr(), N as libc::nfds_t, left) }) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(n) => return Ok(n > 0),
        }
    }
}
