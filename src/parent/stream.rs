//! The parent's end of a job socket on a tokio runtime. It first writes, if the job did not go at once, then it reads;
//! never both.
//!
//! tokio's `UnixStream` watches both directions, and a task would pay for that with two needless wake-ups of its caller:
//! "writable" when it is registered, and again when the worker has read its job. tokio's pipes watch one direction of
//! any descriptor, so they are what is used here.

use std::{
    future::poll_fn,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::unix::pipe,
};

use crate::{sys::socket, wire::frame::Reader};

/// A socket that is watched.
pub(super) enum Stream {
    Writing(pipe::Sender),
    Reading(pipe::Receiver),
}

/// Why a socket cannot be watched.
pub(super) enum Unwatched {
    Io(io::Error),
    /// The runtime was built without I/O.
    NoReactor,
}

impl Stream {
    /// Registers a socket that does not block with the current runtime.
    pub(super) fn register(socket: OwnedFd, writing: bool) -> Result<Self, Unwatched> {
        // tokio panics where I/O is not enabled and offers no way to ask before.
        let registered = catch_unwind(AssertUnwindSafe(|| {
            if writing {
                pipe::Sender::from_owned_fd_unchecked(socket).map(Self::Writing)
            } else {
                pipe::Receiver::from_owned_fd_unchecked(socket).map(Self::Reading)
            }
        }));
        registered.map_err(|_| Unwatched::NoReactor)?.map_err(Unwatched::Io)
    }

    pub(super) fn is_writing(&self) -> bool {
        matches!(self, Self::Writing(_))
    }

    /// Ends the registration and gives the socket back.
    pub(super) fn into_socket(self) -> io::Result<OwnedFd> {
        match self {
            Self::Writing(pipe) => pipe.into_nonblocking_fd(),
            Self::Reading(pipe) => pipe.into_nonblocking_fd(),
        }
    }

    /// Writes by `send`, as often as there is room and it has more, until it says that it is done.
    pub(super) async fn write(&mut self, mut send: impl FnMut(BorrowedFd<'_>) -> io::Result<bool>) -> io::Result<()> {
        let Self::Writing(pipe) = self else { return Err(io::ErrorKind::InvalidInput.into()) };
        loop {
            pipe.writable().await?;
            match pipe.try_io(|| send(pipe.as_fd())) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(false) => tokio::task::yield_now().await,
                result => return result.map(drop),
            }
        }
    }

    /// Reads a large body to its place, and gives how many bytes came last: 0 if that was the end of the stream.
    ///
    /// Nothing is lost if it is dropped: it waits only while there is more to fill.
    pub(super) async fn fill(&mut self, reader: &mut Reader) -> io::Result<usize> {
        let Self::Reading(pipe) = self else { return Err(io::ErrorKind::InvalidInput.into()) };
        loop {
            pipe.readable().await?;
            let receive = |body: &mut Vec<u8>, most: usize| {
                socket::receive_into(pipe.as_fd(), body, most, &mut Vec::new(), false).map(|received| received.bytes)
            };
            match pipe.try_io(|| reader.fill(receive)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(n) if n > 0 && reader.is_filling() => {
                    // A worker that writes as fast as this reads would else keep the thread until the end.
                    if n == socket::AT_ONCE {
                        tokio::task::yield_now().await;
                    }
                }
                result => return result,
            }
        }
    }

    /// Reads some bytes. By `poll_read`, which, unlike `try_read`, knows after a short read that nothing is left.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self::Reading(pipe) = self else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mut buffer = ReadBuf::new(buffer);
        poll_fn(|context| Pin::new(&mut *pipe).poll_read(context, &mut buffer)).await?;
        Ok(buffer.filled().len())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Writing(pipe) => pipe.as_fd(),
            Self::Reading(pipe) => pipe.as_fd(),
        }
    }
}
