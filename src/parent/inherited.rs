//! A tokio runtime that was used before `init`: what it leaves in the statics that every worker inherits.
//!
//! With its `signal` or `process` feature tokio makes one socket pair for the whole process, with the first runtime, and
//! every later runtime watches a duplicate of one end. In a worker that number is closed, or, worse, means something
//! else. tokio does not tell the number, but it can be seen: a new runtime has a descriptor for a socket that was there
//! before. The other end was made with it, so its identity (the inode, which the kernel counts up) is the next one.
//!
//! What is not mended: a signal that such a runtime listened to before `init` does not reach tokio in a worker any more,
//! since tokio believes its handler to stand, and a worker's signals are at their defaults.

use std::{
    io::{Read, Write},
    os::{fd::RawFd, unix::net::UnixStream},
};

use crate::sys::{
    fd,
    process::{self, SingleThreaded},
    reserved,
};

/// In the program, before the library makes sockets of its own: whether there may be such a pair. Mostly there is not.
pub(super) fn may_have_signal_pair() -> bool {
    fd::sockets().len() >= 2
}

/// In the throw-away process, which has what the program had open: sees to it that workers find that pair.
pub(super) fn reserve_signal_pair() {
    if let Some(pair) = find() {
        reserved::reserve(pair);
    }
}

/// Builds a runtime in a process of its own, since it leaves traces, and looks at what it opened.
fn find() -> Option<[RawFd; 2]> {
    let (mut ours, theirs) = UnixStream::pair().ok()?;
    let mut theirs = Some(theirs);
    let child = process::fork(SingleThreaded::just_forked(), || {
        let answer = look().and_then(|pair| theirs.take()?.write_all(&pair.map(RawFd::to_le_bytes).concat()).ok());
        process::exit(i32::from(answer.is_none()))
    });
    drop(theirs);
    let mut answer = [0; 8];
    let read = ours.read_exact(&mut answer);
    let _ = process::reap(child.ok()?);
    read.ok()?;
    let (receiver, sender) = answer.split_at(4);
    Some([RawFd::from_le_bytes(receiver.try_into().ok()?), RawFd::from_le_bytes(sender.try_into().ok()?)])
}

fn look() -> Option<[RawFd; 2]> {
    let before = fd::sockets();
    let _runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let is_old = |fd: RawFd| before.iter().any(|&(old, _)| old == fd);
    let watched = fd::sockets().into_iter().filter(|&(fd, _)| !is_old(fd)).map(|(_, identity)| identity);
    watched.into_iter().find_map(|receiver| {
        let number = |identity| before.iter().find(|socket| socket.1 == identity).map(|&(fd, _)| fd);
        Some([number(receiver)?, number(receiver + 1).or_else(|| number(receiver.checked_sub(1)?))?])
    })
}
