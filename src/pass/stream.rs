//! A socket on a tokio runtime: the parent's end of a job socket, which first writes, if the job did not go at once, then
//! reads, never both; an end of a channel, which does only one of them.
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
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::unix::pipe,
};

use crate::{sys::socket, wire::frame::Reader};

/// A socket that is watched.
pub(crate) enum Stream {
    Writing(pipe::Sender),
    Reading(pipe::Receiver),
}

/// Why a socket cannot be watched.
pub(crate) enum Unwatched {
    Io(io::Error),
    /// The runtime was built without I/O.
    NoReactor,
}

impl Stream {
    /// Registers a socket that does not block with the current runtime.
    pub(crate) fn register(socket: OwnedFd, writing: bool) -> Result<Self, Unwatched> {
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

    pub(crate) fn is_writing(&self) -> bool {
        matches!(self, Self::Writing(_))
    }

    /// Ends the registration and gives the socket back.
    pub(crate) fn into_socket(self) -> io::Result<OwnedFd> {
        match self {
            Self::Writing(pipe) => pipe.into_nonblocking_fd(),
            Self::Reading(pipe) => pipe.into_nonblocking_fd(),
        }
    }

    /// Does `act`, which reads or writes, as soon as it does not answer `WouldBlock`.
    pub(crate) fn poll_with<T>(
        &self,
        context: &mut Context<'_>,
        mut act: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            let acted = match self {
                Self::Writing(pipe) => {
                    ready!(pipe.poll_write_ready(context))?;
                    pipe.try_io(|| act(pipe.as_fd()))
                }
                Self::Reading(pipe) => {
                    ready!(pipe.poll_read_ready(context))?;
                    pipe.try_io(|| act(pipe.as_fd()))
                }
            };
            match acted {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Writes by `send`, as often as there is room and it has more, until it says that it is done.
    pub(crate) async fn write(&self, mut send: impl FnMut(BorrowedFd<'_>) -> io::Result<bool>) -> io::Result<()> {
        while !poll_fn(|context| self.poll_with(context, &mut send)).await? {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Reads a large body to its place, and gives how many bytes came last: 0 if that was the end of the stream.
    ///
    /// Nothing is lost if it is dropped: it waits only while there is more to fill.
    pub(crate) async fn fill(&self, reader: &mut Reader) -> io::Result<usize> {
        loop {
            let mut fill = |socket: BorrowedFd<'_>| reader.fill(|body, most| receive(socket, body, most));
            let n = poll_fn(|context| self.poll_with(context, &mut fill)).await?;
            if n == 0 || !reader.is_filling() {
                return Ok(n);
            }
            // A worker that writes as fast as this reads would else keep the thread until the end.
            if n == socket::AT_ONCE {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Reads some bytes. By `poll_read`, which, unlike `try_read`, knows after a short read that nothing is left.
    pub(crate) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self::Reading(pipe) = self else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mut buffer = ReadBuf::new(buffer);
        poll_fn(|context| Pin::new(&mut *pipe).poll_read(context, &mut buffer)).await?;
        Ok(buffer.filled().len())
    }
}

/// Receives what is there and appends it, at most `most` bytes.
pub(crate) fn receive(socket: BorrowedFd<'_>, bytes: &mut Vec<u8>, most: usize) -> io::Result<usize> {
    // Descriptors are refused, where the kernel can, or closed.
    socket::receive_into(socket, bytes, most, &mut Vec::new(), false).map(|received| received.bytes)
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Writing(pipe) => pipe.as_fd(),
            Self::Reading(pipe) => pipe.as_fd(),
        }
    }
}
