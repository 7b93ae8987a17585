//! Birth, signals and death of processes.
//!
//! # Safety
//!
//! `fork` is plain `fork(2)` of the C library: it keeps the library's own locks and thread ids right, which the raw
//! system calls do not. What may run in a child of a process with several threads is only what POSIX calls
//! async-signal-safe, so `fork` asks for the proof that there is one thread.

use std::{
    convert::Infallible,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use super::{
    caps::{Capability, has},
    check, os,
};
use crate::model::{ExitStatus, Signal, Usage};

/// A time of this machine's, as processes are dated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Since(pub(super) Duration);

impl Since {
    pub(crate) fn now() -> Self {
        Self(os::uptime())
    }
}

/// The proof that the process has one thread, or that its other threads wait and hold nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SingleThreaded(());

impl SingleThreaded {
    /// Counts the threads. `Err` has the number if there are more than one.
    pub(crate) fn check() -> io::Result<Result<Self, usize>> {
        Ok(match super::thread_count()? {
            1 => Ok(Self(())),
            more => Err(more),
        })
    }

    /// For a process that was just forked and has started no thread since.
    pub(crate) fn just_forked() -> Self {
        Self(())
    }

    /// For a fresh thread whose only sibling is blocked in `join` for it (see [`on_fresh_thread`]).
    fn siblings_wait() -> Self {
        Self(())
    }
}

/// `fork(2)`: the child runs `child` and never returns; the parent gets the child's pid.
pub(crate) fn fork(_proof: SingleThreaded, child: impl FnOnce() -> Infallible) -> io::Result<i32> {
    // SAFETY: the caller proved that no other thread holds anything the child could need.
    match check(unsafe { libc::fork() })? {
        0 => {
            let _guard = AbortOnUnwind;
            // By way of a generic, or some compilers see that nothing follows, and some do not.
            call(child);
            exit(70)
        }
        pid => Ok(pid),
    }
}

fn call<T>(child: impl FnOnce() -> T) {
    child();
}

/// Keeps a panic of the child's code from unwinding into the parent's copy of the caller.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// Runs `body` on a new thread, with thread-locals that nobody has touched, while this thread waits for it.
///
/// A zygote is forked from such a thread so that what the program's main thread had in its thread-locals (hash keys,
/// random generators) is not what all workers start from.
pub(crate) fn on_fresh_thread<T: Send>(body: impl FnOnce(SingleThreaded) -> T + Send) -> io::Result<T> {
    use std::sync::atomic::{AtomicBool, Ordering};
    const STACK: usize = 8 << 20;
    let waits = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || {
            // The spawning thread may still be inside the C library; from here on it only joins.
            while !waits.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            body(SingleThreaded::siblings_wait())
        })?;
        waits.store(true, Ordering::Release);
        thread.join().map_err(|_| io::Error::other("the thread that forks panicked"))
    })
}

/// `sched_yield(2)`: lets another process go first that waits for this processor.
pub(crate) fn yield_now() {
    // SAFETY: touches no memory.
    let _ = unsafe { libc::sched_yield() };
}

/// `_exit(2)`: at once, without flushing or destroying anything that was inherited.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: ends the process; there is no state left to be unsound.
    unsafe { libc::_exit(code) }
}

pub(crate) fn pid() -> i32 {
    // SAFETY: getpid cannot fail and touches no memory.
    unsafe { libc::getpid() }
}

/// The process that forked this one, or who took it over since.
pub(crate) fn parent_pid() -> i32 {
    // SAFETY: cannot fail and touches no memory.
    unsafe { libc::getppid() }
}

/// From now on this process is the parent of its descendants whose parent dies (`PR_SET_CHILD_SUBREAPER`, prctl(2)).
/// `false` where there is no such thing.
pub(crate) fn become_subreaper() -> bool {
    has(Capability::Subreaper) && os::become_subreaper().is_ok()
}

/// Whether a zygote inherits the workers of one that it forked.
pub(crate) fn can_inherit() -> bool {
    has(Capability::Subreaper)
}

/// The children of this process, which has one thread: also those that ended and were not reaped. `None` where nobody
/// says so.
pub(crate) fn children() -> Option<Vec<i32>> {
    os::children()
}

/// Whether a child has ended, or is none of ours. It is not reaped.
pub(crate) fn has_ended(pid: i32) -> bool {
    let id = libc::id_t::try_from(pid).unwrap_or(0);
    match wait_id(libc::P_PID, id, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) {
        // SAFETY: waitid fills si_pid, or leaves the zero that was put there.
        Ok(info) => unsafe { info.si_pid() == pid },
        Err(_) => true,
    }
}

/// Whether a process is a child of this one that was not reaped.
pub(crate) fn is_child(pid: i32) -> bool {
    let id = libc::id_t::try_from(pid).unwrap_or(0);
    wait_id(libc::P_PID, id, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT).is_ok()
}

/// `setsid(2)`: a session and a process group of one's own, away from any terminal.
pub(crate) fn new_session() -> io::Result<()> {
    // SAFETY: touches no memory.
    check(unsafe { libc::setsid() }).map(drop)
}

/// Signals a child that was not reaped yet: only its own parent may use this, or the pid could be somebody else's.
pub(crate) fn signal_child(pid: i32, signal: Signal) -> io::Result<()> {
    assert!(pid > 1, "a pid of a child");
    // SAFETY: touches no memory.
    check(unsafe { libc::kill(pid, signal.number()) }).map(drop)
}

/// Signals the process group that an unreaped child leads. ESRCH if it has none, or not yet.
pub(crate) fn signal_group(pid: i32, signal: Signal) -> io::Result<()> {
    assert!(pid > 1, "a pid of a child");
    // SAFETY: touches no memory.
    check(unsafe { libc::kill(-pid, signal.number()) }).map(drop)
}

/// Signals this process.
pub(crate) fn raise(signal: Signal) {
    // SAFETY: touches no memory; kill reaches the process, raise only the thread.
    let _ = unsafe { libc::kill(pid(), signal.number()) };
}

/// What happened to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It ended and was not reaped. It stays a zombie, so its pid and group still mean it.
    Ended(i32),
    /// It was stopped by a signal.
    Stopped(i32),
}

/// What happened to a child, if anything did.
pub(crate) fn changed_child() -> io::Result<Option<Change>> {
    let info = wait_id(libc::P_ALL, 0, libc::WEXITED | libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT)?;
    // SAFETY: waitid fills si_pid, or leaves the zero that was put there.
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(None);
    }
    if [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED].contains(&info.si_code) {
        return Ok(Some(Change::Ended(pid)));
    }
    // Told once: without WNOWAIT it is not reported again.
    wait_id(libc::P_PID, libc::id_t::try_from(pid).unwrap_or(0), libc::WSTOPPED | libc::WNOHANG)?;
    Ok(Some(Change::Stopped(pid)))
}

fn wait_id(kind: libc::idtype_t, id: libc::id_t, flags: libc::c_int) -> io::Result<libc::siginfo_t> {
    // SAFETY: an all-zero siginfo_t is valid; it is plain data.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a live siginfo_t.
    check(unsafe { libc::waitid(kind, id, &raw mut info, flags) })?;
    Ok(info)
}

/// What `reap` will give of a child that has ended, before it is done. `None` if the system does not say so.
pub(crate) fn look_at_ended(pid: i32) -> Option<(i32, Usage)> {
    // SAFETY: an all-zero rusage is valid; it is plain data.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let info = os::wait_for_usage(pid, &mut usage).ok()?;
    // SAFETY: waitid fills si_pid, or leaves the zero that was put there.
    let found = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    let word = match info.si_code {
        _ if found != pid => return None,
        libc::CLD_EXITED => (status & 0xff) << 8,
        libc::CLD_DUMPED => status | 0x80,
        _ => status,
    };
    Some((word, usage_of(&usage)))
}

/// Reaps one child that has ended: the status word and what it used.
pub(crate) fn reap(pid: i32) -> io::Result<(i32, Usage)> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is valid; it is plain data.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are live for the call.
        match check(unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) }) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(_) => break,
        }
    }
    Ok((status, usage_of(&usage)))
}

fn usage_of(usage: &libc::rusage) -> Usage {
    let time = |t: libc::timeval| {
        Duration::new(t.tv_sec.unsigned_abs(), 0) + Duration::from_micros(u64::try_from(t.tv_usec).unwrap_or(0))
    };
    Usage {
        user_time: time(usage.ru_utime),
        system_time: time(usage.ru_stime),
        max_rss: usage.ru_maxrss.unsigned_abs() * os::MAX_RSS_UNIT,
    }
}

/// A descriptor that means one process, whatever becomes of its number. `None` where the kernel has none.
pub(crate) fn open_pidfd(pid: i32) -> Option<OwnedFd> {
    if has(Capability::Pidfd) { os::open_pidfd(pid).ok() } else { None }
}

/// The same of a process of which something was heard when it had this pid already. The pid may mean another one by now:
/// that is younger, and `None` is given.
pub(crate) fn open_pidfd_since(pid: i32, heard: Since) -> Option<OwnedFd> {
    let pidfd = open_pidfd(pid)?;
    // After that: if the pid changes hands in between, the younger process is looked at.
    (os::birth(pid)? <= heard.0).then_some(pidfd)
}

/// Signals the process that a pidfd means.
pub(crate) fn signal_pidfd(pidfd: impl AsFd, signal: Signal) -> io::Result<()> {
    os::signal_pidfd(pidfd.as_fd().as_raw_fd(), signal.number())
}

/// How the process behind a pidfd ended, also if another reaped it. `None` if the kernel does not say.
pub(crate) fn exit_of_pidfd(pidfd: impl AsFd) -> Option<ExitStatus> {
    if has(Capability::ExitInfo) { os::exit_of_pidfd(pidfd.as_fd().as_raw_fd()) } else { None }
}
