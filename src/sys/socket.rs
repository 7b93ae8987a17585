//! Socket pairs, and messages that carry descriptors.

use std::{
    io::{self, IoSlice},
    mem::{self, MaybeUninit},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use super::{
    caps::{Capability, has},
    check, check_size, fd, memory, os,
};

/// Most descriptors that one message can carry (`SCM_MAX_FD`).
pub(crate) const MAX_FDS: usize = 253;

/// Most bytes that one call sends without waiting, or receives: half a millisecond's work.
pub(crate) const AT_ONCE: usize = 1 << 20;

/// A connected pair of stream sockets, closed on exec, numbered above stdio.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = os::socket_pair()?;
    Ok((fd::above_stdio(a)?, fd::above_stdio(b)?))
}

/// Whether this says that the other end is closed. Anything else that a call says may pass.
pub(crate) fn is_peer_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN))
}

/// Lets a socket refuse descriptors, where the kernel can (Linux 6.16): a worker must not be able to hand the parent
/// one whose mere close blocks.
pub(crate) fn refuse_fds(socket: impl AsFd) {
    if has(Capability::RefuseFds) {
        os::refuse_fds(socket.as_fd().as_raw_fd());
    }
}

/// Room for the control message of `MAX_FDS` descriptors, aligned as the kernel wants it.
#[repr(C)]
union Control {
    _align: libc::cmsghdr,
    bytes: [u8; 1100],
}

/// Sends bytes, and descriptors with the first of them. May send fewer bytes; never raises SIGPIPE.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], wait: bool) -> io::Result<usize> {
    send_slices(socket, &[IoSlice::new(bytes)], fds, wait)
}

/// The same for bytes that lie in several places.
pub(crate) fn send_slices(
    socket: BorrowedFd<'_>,
    slices: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
    wait: bool,
) -> io::Result<usize> {
    assert!(fds.len() <= MAX_FDS, "one message carries at most {MAX_FDS} descriptors");
    // SAFETY: an all-zero msghdr is valid; the fields that matter are set below.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    // An `IoSlice` is an `iovec`, as its documentation says; the call does not write to it.
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len() as _;
    let mut control = Control { bytes: [0; 1100] };
    if !fds.is_empty() {
        let size = u32::try_from(mem::size_of_val(fds)).unwrap_or(u32::MAX);
        message.msg_control = (&raw mut control).cast();
        // SAFETY: pure arithmetic.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(size) } as _;
        // SAFETY: msg_control points to a live, aligned buffer that is large enough for MAX_FDS.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        // SAFETY: not null, since the buffer has room for a header; nobody else refers to the buffer.
        let header = unsafe { &mut *header };
        header.cmsg_level = libc::SOL_SOCKET;
        header.cmsg_type = libc::SCM_RIGHTS;
        // SAFETY: pure arithmetic.
        header.cmsg_len = unsafe { libc::CMSG_LEN(size) } as _;
        // SAFETY: the header is live and its data lies behind it in the same buffer.
        let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
        for (i, fd) in fds.iter().enumerate() {
            // SAFETY: `i` is below MAX_FDS, for which the buffer has room.
            let slot = unsafe { data.add(i) };
            // SAFETY: as above.
            unsafe { slot.write_unaligned(fd.as_raw_fd()) };
        }
    }
    let flags = os::MSG_NOSIGNAL | if wait { 0 } else { libc::MSG_DONTWAIT };
    loop {
        // SAFETY: the message points to live buffers of the lengths it says.
        match check_size(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) }) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Receives bytes, and puts the descriptors that came with them into `fds`. 0 is the end of the stream.
///
/// At the descriptor limit the kernel delivers the bytes and drops the descriptors; that is an error here, never "none
/// were sent".
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    wait: bool,
) -> io::Result<usize> {
    match receive_at_the_limit(socket, bytes, fds, wait)? {
        Received { dropped: true, .. } => Err(io::Error::from_raw_os_error(libc::EMFILE)),
        Received { bytes, .. } => Ok(bytes),
    }
}

/// What [`receive_at_the_limit`] got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    pub(crate) bytes: usize,
    /// There were more descriptors than this process may have. They are closed; the bytes are whole.
    pub(crate) dropped: bool,
}

/// The same for a receiver that can do without the descriptors.
pub(crate) fn receive_at_the_limit(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    wait: bool,
) -> io::Result<Received> {
    // SAFETY: bytes may be written as bytes that may not be there yet; the call only writes, and what it has written is
    // there.
    let room = unsafe { &mut *(ptr::from_mut(bytes) as *mut [MaybeUninit<u8>]) };
    receive_raw(socket, room, fds, wait)
}

fn receive_raw(
    socket: BorrowedFd<'_>,
    room: &mut [MaybeUninit<u8>],
    fds: &mut Vec<OwnedFd>,
    wait: bool,
) -> io::Result<Received> {
    let mut iov = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    let mut control = MaybeUninit::<Control>::uninit();
    // SAFETY: an all-zero msghdr is valid; the fields that matter are set below.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of::<Control>() as _;
    let flags = os::MSG_CMSG_CLOEXEC | if wait { 0 } else { libc::MSG_DONTWAIT };
    let n = loop {
        // SAFETY: the message points to live buffers of the lengths it says.
        match check_size(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) }) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    // SAFETY: the kernel filled msg_control up to msg_controllen.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: the header is not null, so it lies within the buffer.
        let head = unsafe { *header };
        let (level, kind, len) = (head.cmsg_level, head.cmsg_type, head.cmsg_len as usize);
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: the header is live.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            // SAFETY: pure arithmetic.
            let count = (len - unsafe { libc::CMSG_LEN(0) } as usize) / mem::size_of::<RawFd>();
            for i in 0..count {
                // SAFETY: `count` descriptors lie behind the header.
                let slot = unsafe { data.add(i) };
                // SAFETY: as above.
                let raw = unsafe { slot.read_unaligned() };
                // SAFETY: the kernel made this descriptor for us just now.
                let fd = unsafe { OwnedFd::from_raw_fd(raw) };
                os::close_on_exec(&fd);
                fds.push(fd);
            }
        }
        // SAFETY: `header` came from this message.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(Received { bytes: n, dropped: message.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// Sends all bytes, waiting as long as it takes.
pub(crate) fn send_all(socket: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = send(socket, bytes, &[], true)?;
        bytes = &bytes[n..];
    }
    Ok(())
}

/// Makes room for `most` bytes, receives some of them and appends them.
pub(crate) fn receive_into(
    socket: BorrowedFd<'_>,
    bytes: &mut Vec<u8>,
    most: usize,
    fds: &mut Vec<OwnedFd>,
    wait: bool,
) -> io::Result<Received> {
    memory::reserve(bytes, most)?;
    let room = &mut bytes.spare_capacity_mut()[..most.min(AT_ONCE)];
    let received = receive_raw(socket, room, fds, wait)?;
    let len = bytes.len() + received.bytes;
    // SAFETY: the kernel filled so many bytes of the room.
    unsafe { bytes.set_len(len) };
    Ok(received)
}

/// Where less than this is to be sent, the room that a socket has from the start is enough.
const ROOM: usize = 96 << 10;
/// Most room that is asked for; the kernel gives twice what it is asked for, or less.
const MOST_ROOM: usize = 1 << 20;

/// Before `size` bytes are sent: lets as many of them as may be on their way at a time, so that sender and receiver work
/// side by side and do not wait for each other every hundred kilobytes.
pub(crate) fn make_room(socket: BorrowedFd<'_>, size: usize) {
    if size < ROOM {
        return;
    }
    let size = libc::c_int::try_from(size.min(MOST_ROOM)).unwrap_or(libc::c_int::MAX);
    let (place, len) = ((&raw const size).cast(), mem::size_of_val(&size) as libc::socklen_t);
    // SAFETY: a live int, which the call reads.
    let _ = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, place, len) };
}

/// Whether there are bytes to read, which stay there.
pub(crate) fn has_input(socket: RawFd) -> bool {
    let mut byte = 0_u8;
    // SAFETY: one live byte. A number that is not a socket's is ENOTSOCK or EBADF.
    let n = unsafe { libc::recv(socket, (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    n == 1
}

/// Whether nobody is at the other end any more, nor holds a copy of it.
pub(crate) fn has_hung_up(socket: impl AsFd) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_fd().as_raw_fd(), events: os::HANG_UP_EVENTS, revents: 0 };
    // SAFETY: one live pollfd.
    let n = unsafe { libc::poll(&raw mut poll, 1, 0) };
    n == 1 && poll.revents & libc::POLLHUP != 0
}

/// Whether [`all_is_read`] knows, and whether reading fails with ECONNRESET if the peer left without having read all.
pub(crate) fn knows_what_is_read() -> bool {
    has(Capability::Unread)
}

/// Whether the peer has read all that was sent (`SIOCOUTQ`, unix(7)), or is gone and will never read it.
///
/// The kernel lets go of a message after it was copied to its reader, so `false` means that the reader's call has not come
/// back yet.
pub(crate) fn all_is_read(socket: RawFd) -> bool {
    os::unread(socket).is_ok_and(|size| size == 0)
}

/// Whether the connection still takes bytes (`send(2)` of none of them, which nobody notices): not if the peer is gone or
/// has shut its reading side down.
pub(crate) fn is_heard(socket: impl AsFd) -> bool {
    send(socket.as_fd(), &[], &[], false).is_ok()
}

/// `shutdown(2)`: ends the connection itself, whoever else holds copies of the descriptor.
pub(crate) fn shutdown(socket: impl AsFd, how: std::net::Shutdown) {
    let how = match how {
        std::net::Shutdown::Read => libc::SHUT_RD,
        std::net::Shutdown::Write => libc::SHUT_WR,
        std::net::Shutdown::Both => libc::SHUT_RDWR,
    };
    // SAFETY: touches no memory.
    let _ = check(unsafe { libc::shutdown(socket.as_fd().as_raw_fd(), how) });
}
