//! One end of a channel's socket: watched by the runtime that polls it, from the first time it has to wait.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
    task::{Context, Poll},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use tokio::runtime::{Handle, Id};

use super::{
    ChannelError, reactor,
    stream::{Stream, Unwatched},
};
use crate::{
    sys::{fd, process::pid, signal, socket},
    wire::beside::{self, Passed},
};

/// Which way an end goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Way {
    Sends,
    Receives,
}

pub(super) struct End {
    socket: Socket,
    way: Way,
    owner: i32,
}

enum Socket {
    Unwatched(OwnedFd),
    /// Watched for whom: the runtime that polls it, if it is one of tokio's.
    Watched(Stream, Option<Id>),
    /// In a fork of the process that has it.
    Lost,
}

/// Two ends that are connected: the first sends to the second.
pub(super) fn pair() -> io::Result<(End, End)> {
    let (sends, receives) = socket::pair()?;
    for end in [&sends, &receives] {
        // A descriptor from the other end could block this process when it is closed.
        socket::refuse_fds(end);
        fd::set_nonblocking(end.as_raw_fd(), true)?;
    }
    Ok((End::new(sends, Way::Sends), End::new(receives, Way::Receives)))
}

/// Waits until the one can send or the other has something to receive.
pub(super) fn wait(sends: &End, receives: &End) -> Result<(), ChannelError> {
    let wait = || signal::wait_either(receives.fd()?.as_raw_fd(), sends.fd()?.as_raw_fd());
    wait().map_err(ChannelError::io)
}

impl End {
    fn new(socket: OwnedFd, way: Way) -> Self {
        Self { socket: Socket::Unwatched(socket), way, owner: pid() }
    }

    /// Whether this is the process that has it, and not a fork of it.
    pub(super) fn is_ours(&self) -> bool {
        self.owner == pid()
    }

    fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        match &self.socket {
            Socket::Unwatched(socket) => Ok(socket.as_fd()),
            Socket::Watched(stream, _) => Ok(stream.as_fd()),
            Socket::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Does `act` as soon as it does not answer `WouldBlock`.
    pub(super) fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        mut act: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        if let Socket::Unwatched(socket) = &self.socket {
            match act(socket.as_fd()) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
        self.watch()?.poll_with(context, act)
    }

    /// Does `act`, waiting as long as it takes.
    pub(super) fn block<T>(&self, mut act: impl FnMut(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        let socket = self.fd()?;
        loop {
            match act(socket) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => match self.way {
                    Way::Sends => signal::wait_writable(socket.as_raw_fd(), None)?,
                    Way::Receives => signal::wait_readable(socket.as_raw_fd(), None)?,
                },
                done => return done,
            };
        }
    }

    /// Does `act` now.
    pub(super) fn now<T>(&self, act: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        act(self.fd()?)
    }

    /// Another end of the same way, at the cost of a descriptor.
    pub(super) fn duplicate(&self, way: Way) -> io::Result<Self> {
        Ok(Self::new(self.fd()?.try_clone_to_owned()?, way))
    }

    /// The socket, watched for who polls this: by a runtime of tokio, if it is one that can, or by the reactor of this
    /// process.
    fn watch(&mut self) -> io::Result<&Stream> {
        let current = Handle::try_current().ok().map(|runtime| runtime.id());
        if !matches!(&self.socket, Socket::Watched(_, by) if *by == current) {
            // What is left if any of this fails, for the moment perhaps: the end, and all that came for it.
            let copy = self.fd()?.try_clone_to_owned()?;
            let socket = match mem::replace(&mut self.socket, Socket::Unwatched(copy)) {
                Socket::Unwatched(socket) => Some(socket),
                // A runtime that was shut down does not give it back.
                Socket::Watched(stream, _) => stream.into_socket().ok(),
                Socket::Lost => None,
            };
            let stream = register(self.fd()?, socket, self.way == Way::Sends, current.is_some())?;
            self.socket = Socket::Watched(stream, current);
        }
        match &self.socket {
            Socket::Watched(stream, _) => Ok(stream),
            Socket::Unwatched(_) | Socket::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// Has `socket`, or else a copy of `fd`, watched by the runtime that is here, if there is one that can.
fn register(fd: BorrowedFd<'_>, socket: Option<OwnedFd>, writing: bool, here: bool) -> io::Result<Stream> {
    let owned = |socket: Option<OwnedFd>| socket.map_or_else(|| fd.try_clone_to_owned(), Ok);
    let mut socket = socket;
    if here {
        match Stream::register(owned(socket.take())?, writing) {
            Ok(stream) => return Ok(stream),
            Err(Unwatched::Io(e)) => return Err(e),
            Err(Unwatched::NoReactor) => {}
        }
    }
    let reactor = reactor::get()?;
    let _entered = reactor.enter();
    Stream::register(owned(socket)?, writing).map_err(|unwatched| match unwatched {
        Unwatched::Io(e) => e,
        Unwatched::NoReactor => io::ErrorKind::Unsupported.into(),
    })
}

impl Drop for End {
    fn drop(&mut self) {
        if !self.is_ours() {
            // A fork shares the reactor's kernel object: leaving would unregister the socket of the process that made this.
            mem::forget(mem::replace(&mut self.socket, Socket::Lost));
        }
    }
}

impl Serialize for End {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !beside::takes_fds() {
            return Err(ser::Error::custom(
                "an end of a channel can only be passed in the arguments of a task: not in a result, not in a message, not \
                 by another codec",
            ));
        }
        // Not the descriptor itself: it may be watched, and this value goes only after it was encoded.
        let fd = Arc::new(self.now(|fd| fd.try_clone_to_owned()).map_err(|e| ser::Error::custom(beside::fail(e)))?);
        let number = beside::leave_fd(Passed { fd, owned: true }).map_err(ser::Error::custom)?;
        (number, self.way).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for End {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (number, way) = <(u32, Way)>::deserialize(deserializer)?;
        Ok(Self::new(beside::take_fd(number).map_err(de::Error::custom)?, way))
    }
}
