//! How a signal wakes a worker's runtime.
//!
//! The handler may only count and poke a descriptor. A worker has no descriptor to spare, but its job socket is read to
//! the end by then: shutting down its reading side makes it readable for ever, which any reactor notices, and hurts
//! nobody. That pokes once, which is enough to end a task. A task that takes signals over gets a socket pair of its own
//! and can be poked again and again. A worker of a pool that waits for its next task blocks in a read of its line, so that
//! is shut down too.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd},
    sync::{
        Mutex,
        atomic::{AtomicI32, AtomicU32, Ordering},
    },
};

use super::{fd, signal::Handler, socket};
use crate::model::Signal;

const SIGNALS: usize = 65;
static COUNTS: [AtomicU32; SIGNALS] = [const { AtomicU32::new(0) }; SIGNALS];
static JOB: AtomicI32 = AtomicI32::new(-1);
static POKE: AtomicI32 = AtomicI32::new(-1);
/// What a signal that ends the task ends too: a read in which the thread blocks.
static READ: AtomicI32 = AtomicI32::new(-1);

/// The handler that counts a signal and wakes whoever waits.
pub(crate) const COUNT: Handler = count;

extern "C" fn count(signal: libc::c_int) {
    let errno = super::os::errno();
    if let Some(count) = usize::try_from(signal).ok().and_then(|signal| COUNTS.get(signal)) {
        count.fetch_add(1, Ordering::SeqCst);
    }
    poke();
    let read = READ.load(Ordering::SeqCst);
    if read >= 0 && (signal == libc::SIGTERM || signal == libc::SIGINT) {
        // SAFETY: touches no memory.
        let _ = unsafe { libc::shutdown(read, libc::SHUT_RD) };
    }
    super::os::set_errno(errno);
}

/// Async-signal-safe.
fn poke() {
    let pair = POKE.load(Ordering::SeqCst);
    if pair >= 0 {
        // SAFETY: one live byte; the socket does not block, and a full one is readable anyway.
        let _ = unsafe { libc::send(pair, [1_u8].as_ptr().cast(), 1, super::os::MSG_NOSIGNAL) };
        return;
    }
    let job = JOB.load(Ordering::SeqCst);
    if job >= 0 {
        // SAFETY: touches no memory.
        let _ = unsafe { libc::shutdown(job, libc::SHUT_RD) };
    }
}

/// Says which job socket the handler may poke. It stays open until the worker exits.
pub(crate) fn set_job(job: RawFd) {
    JOB.store(job, Ordering::SeqCst);
}

/// The job socket, once it is set.
pub(crate) fn job() -> Option<BorrowedFd<'static>> {
    let fd = JOB.load(Ordering::SeqCst);
    // SAFETY: the job socket stays open until the worker exits.
    (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Says that from now on SIGTERM and SIGINT shut down the reading side of this socket, or, with `None`, of none.
pub(crate) fn set_read(socket: Option<BorrowedFd<'_>>) {
    READ.store(socket.map_or(-1, |socket| socket.as_raw_fd()), Ordering::SeqCst);
}

/// How often the signal arrived.
pub(crate) fn arrived(signal: Signal) -> u32 {
    usize::try_from(signal.number()).ok().and_then(|n| COUNTS.get(n)).map_or(0, |count| count.load(Ordering::SeqCst))
}

/// Makes the pair that is poked from now on, and gives the end that becomes readable; `None` if it was made before.
pub(crate) fn make_pair() -> io::Result<Option<OwnedFd>> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MAKING.lock();
    if POKE.load(Ordering::SeqCst) >= 0 {
        return Ok(None);
    }
    let (read, write) = socket::pair()?;
    fd::set_nonblocking(read.as_raw_fd(), true)?;
    fd::set_nonblocking(write.as_raw_fd(), true)?;
    // What the handler counted before this line poked the job socket, which is watched as well.
    POKE.store(write.into_raw_fd(), Ordering::SeqCst);
    Ok(Some(read))
}
