//! Descriptors: where they are, who keeps them.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
};

use super::{
    caps::{Capability, has},
    check, check_size, os,
};

/// Makes sure that a descriptor is none of 0, 1, 2, which a program may have closed before it called us.
pub(crate) fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    duplicate_above(fd, 2)
}

/// Another descriptor for the same thing, closed on exec.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: touches no memory; a descriptor that is not open is EBADF.
    let other = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: `other` was just made and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(other) })
}

/// Gives a descriptor a number above `number`, if it has a lower one.
pub(crate) fn duplicate_above(fd: OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > number {
        return Ok(fd);
    }
    // SAFETY: the descriptor is open; the call makes another one.
    let other = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, number + 1) })?;
    // SAFETY: `other` was just made and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(other) })
}

/// Moves a descriptor to the number `to`, over what was there, closed on exec if `cloexec`.
pub(crate) fn move_to(fd: OwnedFd, to: RawFd, cloexec: bool) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() != to {
        os::duplicate_to(fd.as_raw_fd(), to, cloexec)?;
        drop(fd);
        // SAFETY: `to` is open since the call above and owned here.
        return Ok(unsafe { OwnedFd::from_raw_fd(to) });
    } else {
        let _ = fd.into_raw_fd();
    }
    // SAFETY: `to` is open since the call above and owned here.
    let moved = unsafe { OwnedFd::from_raw_fd(to) };
    // SAFETY: touches no memory.
    check(unsafe { libc::fcntl(to, libc::F_SETFD, if cloexec { libc::FD_CLOEXEC } else { 0 }) })?;
    Ok(moved)
}

/// Puts a descriptor in the place of one of 0, 1, 2, for good.
pub(crate) fn replace_stdio(fd: OwnedFd, number: RawFd) -> io::Result<()> {
    let _ = move_to(fd, number, false)?.into_raw_fd();
    Ok(())
}

/// Whether there is a descriptor of this number.
pub(crate) fn is_open(number: RawFd) -> bool {
    // SAFETY: touches no memory; a descriptor that is not open is EBADF.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) }).is_ok()
}

/// The numbers of all descriptors.
pub(crate) fn numbers() -> Vec<RawFd> {
    // To list them takes one, which is closed by now.
    os::open_numbers().into_iter().filter(|&number| is_open(number)).collect()
}

/// Closes every descriptor from `first` on but those that are `kept`, which are sorted. Whoever calls this owns them all:
/// a process just forked.
pub(crate) fn close_from(first: RawFd, kept: &[RawFd]) {
    let kept = || kept.iter().copied().filter(|&number| number >= first);
    let starts = std::iter::once(first).chain(kept().map(|number| number + 1));
    let ends = kept().map(|number| number - 1).chain([RawFd::MAX]);
    let close = |(start, end)| start > end || os::close_range(start, end);
    if !(has(Capability::CloseRange) && starts.zip(ends).all(close)) {
        let close = |&number: &RawFd| number >= first && !kept().any(|kept| kept == number);
        for fd in os::open_numbers().into_iter().filter(close) {
            // SAFETY: the caller owns every descriptor from `first` on; one that is not open is EBADF.
            let _ = unsafe { libc::close(fd) };
        }
    }
}

/// How many descriptors this process may have open (`RLIMIT_NOFILE`, the soft limit).
pub(crate) fn limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live rlimit.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    Ok(limit.rlim_cur)
}

/// Every socket that is open here: its number, and what tells it from others.
pub(crate) fn sockets() -> Vec<(RawFd, u64)> {
    os::open_numbers().into_iter().filter_map(|fd| Some((fd, socket_identity(fd)?))).collect()
}

fn socket_identity(fd: RawFd) -> Option<u64> {
    // SAFETY: an all-zero stat is valid storage.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: live storage; a number that is not open is EBADF.
    check(unsafe { libc::fstat(fd, &raw mut stat) }).ok()?;
    (stat.st_mode & libc::S_IFMT == libc::S_IFSOCK).then_some(stat.st_ino)
}

/// A pipe, both ends closed on exec: `(read, write)`.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = os::pipe()?;
    Ok((above_stdio(read)?, above_stdio(write)?))
}

/// `/dev/null`, or, where a container has no such file, the closed end of a pipe, which reads as empty.
pub(crate) fn null() -> io::Result<OwnedFd> {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        Ok(file) => above_stdio(file.into()),
        Err(_) => pipe().map(|(read, _)| read),
    }
}

/// Sets or clears `O_NONBLOCK`, with one call.
pub(crate) fn set_nonblocking(fd: RawFd, nonblocking: bool) -> io::Result<()> {
    let mut on = libc::c_int::from(nonblocking);
    // SAFETY: a live int, which the call reads.
    check(unsafe { libc::ioctl(fd, libc::FIONBIO, &raw mut on) }).map(drop)
}

/// How many bytes can be read from a pipe now.
pub(crate) fn unread(pipe: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: a live int, which the call sets.
    check(unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Reads from a pipe, whatever a reactor knows of it.
pub(crate) fn read(pipe: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of a live buffer.
    check_size(unsafe { libc::read(pipe.as_fd().as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })
}
