//! Numbers of descriptors that a library of the program's remembers in a static.
//!
//! A worker inherits statics and no descriptors, so such a number is closed there, or means whatever got it since. For
//! the pair by which tokio tells its runtimes of signals (see `parent/inherited.rs`) that would be the end of every
//! worker's runtime; so a worker gets a fresh pair under the same two numbers.

use std::{
    io,
    os::fd::{AsRawFd, IntoRawFd, RawFd},
    sync::atomic::{AtomicI32, Ordering},
};

use super::{fd, socket};

static NUMBERS: [AtomicI32; 2] = [const { AtomicI32::new(-1) }; 2];

/// Says which two numbers every worker forked from here on must find to be a socket pair.
pub(crate) fn reserve(numbers: [RawFd; 2]) {
    for (slot, number) in NUMBERS.iter().zip(numbers) {
        slot.store(number, Ordering::Relaxed);
    }
}

/// In a worker, whose descriptors from `first` on are closed: makes that pair, if there are such numbers.
pub(crate) fn fill(first: RawFd) -> io::Result<()> {
    let numbers = NUMBERS.each_ref().map(|slot| slot.load(Ordering::Relaxed));
    if numbers.into_iter().any(|number| number < first) {
        return Ok(());
    }
    let (a, b) = socket::pair()?;
    // Above both numbers, so that neither end is in the way of the other.
    let highest = numbers[0].max(numbers[1]);
    let ends = [fd::duplicate_above(a, highest)?, fd::duplicate_above(b, highest)?];
    for (end, number) in ends.into_iter().zip(numbers) {
        fd::set_nonblocking(end.as_raw_fd(), true)?;
        let _ = fd::move_to(end, number, true)?.into_raw_fd();
    }
    Ok(())
}
