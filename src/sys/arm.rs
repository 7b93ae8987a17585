//! An armed job socket: when the other end closes, this process and its group are killed by the kernel.
//!
//! It is how a worker never outlives its parent: not by a check that a busy, stopped or stubborn task could miss.
//! `F_SETSIG` lets the kernel send SIGKILL itself (Linux). Without it SIGIO has a handler that looks whether the other
//! end hung up; that one a stopped worker or one that blocks signals does not run, and the zygote's sweep is the rest.
//!
//! Any byte that arrives on an armed socket would fire it too, so nothing is sent on one. A `shutdown` of one's own
//! reading side does not.
//!
//! The job itself must not fire it either, and it could: the kernel first makes the bytes readable and then, in the
//! sender, raises the signal, so a worker that is quick enough would be armed in between and die of its own job (seen
//! once in some ten thousand tasks, where the sender's processor was taken away in that moment). Therefore it is the
//! sender who throws the switch, by its copy of the worker's end, when it has sent all. The worker only says whom to
//! signal, before, and waits for the switch, which mostly stands long before it looks. The handler of the other way
//! looks for itself, so there the worker may throw it.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::atomic::{AtomicI32, Ordering},
};

use super::{
    caps::{Capability, has},
    check, os, process,
    signal::{self, Handler},
};
use crate::model::Signal;

/// The socket that the SIGIO handler looks at; -1 for none.
static ARMED: AtomicI32 = AtomicI32::new(-1);

/// Whether the sender of the job arms the worker's end, and so must keep a copy of it until then.
pub(crate) fn is_armed_by_sender() -> bool {
    has(Capability::KillOnHangup)
}

/// In the sender, when all is sent: arms the worker's end of the socket.
pub(crate) fn arm_for_worker(theirs: impl AsFd) {
    let mut on: libc::c_int = 1;
    // SAFETY: a live int, which the call reads. It changes one flag, the others are the worker's.
    let _ = unsafe { libc::ioctl(theirs.as_fd().as_raw_fd(), libc::FIOASYNC, &raw mut on) };
}

/// In the worker, before it reads its job: says whom to signal.
pub(crate) fn aim(socket: impl AsFd) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let kills = has(Capability::KillOnHangup);
    // The worker leads its group: its children go with it, as they would by the zygote's hand. SIGIO is for the handler,
    // which a child that is another program does not have.
    let owner = if kills { -process::pid() } else { process::pid() };
    // SAFETY: touches no memory.
    check(unsafe { libc::fcntl(fd, libc::F_SETOWN, owner) })?;
    if kills { os::signal_on_change(fd, Signal::KILL.number()) } else { Ok(()) }
}

/// In the worker, when it has read all of its job: sees that the socket is armed, and makes it non-blocking.
///
/// A hang-up before the flag stands raises nothing. The worker's commit point comes next, and fails then.
pub(crate) fn arm(socket: impl AsFd) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    if !is_armed_by_sender() {
        ARMED.store(fd, Ordering::Relaxed);
        return set_async(fd, true);
    }
    super::fd::set_nonblocking(fd, true)?;
    // SAFETY: touches no memory.
    while check(unsafe { libc::fcntl(fd, libc::F_GETFL) })? & libc::O_ASYNC == 0 {
        // The sender was held up between two system calls, or it is gone.
        if hung_up(fd, 1) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Disarms it and makes it blocking again, before a frame after which the other end may close at any time.
pub(crate) fn disarm(socket: impl AsFd) {
    ARMED.store(-1, Ordering::Relaxed);
    let _ = set_async(socket.as_fd().as_raw_fd(), false);
}

/// Installs the SIGIO handler where it is needed; the zygote does it once for all its workers.
pub(crate) fn prepare() -> io::Result<()> {
    if has(Capability::KillOnHangup) { Ok(()) } else { signal::handle(Signal::IO, on_change as Handler) }
}

/// In a zygote: when the other end of this socket closes, the kernel lets this process go on, should somebody have stopped
/// it. Nothing is ever sent there.
pub(crate) fn go_on_at_hangup(socket: impl AsFd) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    if !has(Capability::KillOnHangup) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: touches no memory.
    check(unsafe { libc::fcntl(fd, libc::F_SETOWN, process::pid()) })?;
    os::signal_on_change(fd, Signal::CONT.number())?;
    set_async(fd, true)
}

fn set_async(fd: RawFd, on: bool) -> io::Result<()> {
    // An armed socket is only watched, by a reactor, which wants it not to block; before and after it is read and
    // written to the end. It has no other status flags.
    let flags = if on { libc::O_ASYNC | libc::O_NONBLOCK } else { 0 };
    // SAFETY: touches no memory.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags) }).map(drop)
}

/// Whether the other end is closed; waits so many milliseconds for that. Async-signal-safe.
fn hung_up(fd: RawFd, wait: libc::c_int) -> bool {
    let mut poll = libc::pollfd { fd, events: os::HANG_UP_EVENTS, revents: 0 };
    // SAFETY: one live pollfd.
    let n = unsafe { libc::poll(&raw mut poll, 1, wait) };
    n == 1 && poll.revents & (libc::POLLHUP | libc::POLLNVAL) != 0
}

extern "C" fn on_change(_signal: libc::c_int) {
    let errno = os::errno();
    let fd = ARMED.load(Ordering::Relaxed);
    if fd >= 0 && hung_up(fd, 0) {
        // With its group, as the kernel does it.
        // SAFETY: touches no memory; async-signal-safe.
        let _ = unsafe { libc::kill(-process::pid(), libc::SIGKILL) };
        process::exit(0);
    }
    os::set_errno(errno);
}
