//! Numbers of descriptors that a library of the program's remembers in a static.
//!
//! A worker inherits statics and no descriptors, so such a number is closed there, or means whatever got it since. For
//! the pair by which tokio tells its runtimes of signals (see `parent/inherited.rs`) that would be the end of every
//! worker's runtime; so a worker gets a fresh pair under the same two numbers.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, IntoRawFd, RawFd},
        unix::net::UnixStream,
    },
    sync::atomic::{AtomicI32, Ordering},
};

use super::{
    fd,
    process::{self, SingleThreaded},
    socket,
};

static NUMBERS: [AtomicI32; 2] = [const { AtomicI32::new(-1) }; 2];

/// Says which two numbers every worker forked from here on must find to be a socket pair.
pub(crate) fn reserve(numbers: [RawFd; 2]) {
    for (slot, number) in NUMBERS.iter().zip(numbers) {
        slot.store(number, Ordering::Relaxed);
    }
}

fn numbers() -> [RawFd; 2] {
    NUMBERS.each_ref().map(|slot| slot.load(Ordering::Relaxed))
}

/// In a worker, whose descriptors from `first` on are closed: makes that pair, if there are such numbers.
pub(crate) fn fill(first: RawFd) -> io::Result<()> {
    // Half of a pair is worse than none.
    if numbers().into_iter().any(|number| number < first) { Ok(()) } else { hold(first) }
}

/// The same in a zygote, for as much of it as there is room: what a preload opens must not get a number that each worker
/// will close.
pub(crate) fn hold(first: RawFd) -> io::Result<()> {
    let numbers = numbers();
    let highest = numbers[0].max(numbers[1]);
    if highest < first {
        return Ok(());
    }
    let (a, b) = socket::pair()?;
    // Above both numbers, so that neither end is in the way of the other.
    let ends = [fd::duplicate_above(a, highest)?, fd::duplicate_above(b, highest)?];
    for (end, number) in ends.into_iter().zip(numbers).filter(|&(_, number)| number >= first) {
        fd::set_nonblocking(end.as_raw_fd(), true)?;
        let _ = fd::move_to(end, number, true)?.into_raw_fd();
    }
    Ok(())
}

/// Finds such a pair: what `build` makes has a descriptor for one end of it. `build` runs in a process of its own, since it
/// leaves traces. For a process with one thread.
pub(crate) fn find<T>(build: impl FnOnce() -> Option<T>) -> Option<[RawFd; 2]> {
    let (mut ours, theirs) = UnixStream::pair().ok()?;
    let mut child = Some((theirs, build));
    let pid = process::fork(SingleThreaded::check().ok()?.ok()?, || {
        let answer = child.take().and_then(|(mut theirs, build)| {
            let pair = look(build)?;
            theirs.write_all(&pair.map(RawFd::to_le_bytes).concat()).ok()
        });
        process::exit(i32::from(answer.is_none()))
    });
    drop(child);
    let mut answer = [0; 8];
    let read = ours.read_exact(&mut answer);
    let _ = process::reap(pid.ok()?);
    read.ok()?;
    let (receiver, sender) = answer.split_at(4);
    Some([RawFd::from_le_bytes(receiver.try_into().ok()?), RawFd::from_le_bytes(sender.try_into().ok()?)])
}

fn look<T>(build: impl FnOnce() -> Option<T>) -> Option<[RawFd; 2]> {
    let before = fd::sockets();
    let _built = build()?;
    let is_old = |fd: RawFd| before.iter().any(|&(old, _)| old == fd);
    let watched = fd::sockets().into_iter().filter(|&(fd, _)| !is_old(fd)).map(|(_, identity)| identity);
    watched.into_iter().find_map(|receiver| {
        let number = |identity| before.iter().find(|socket| socket.1 == identity).map(|&(fd, _)| fd);
        // The other end was made with it, so its identity (the inode, which the kernel counts up) is the next one.
        Some([number(receiver)?, number(receiver + 1).or_else(|| number(receiver.checked_sub(1)?))?])
    })
}
