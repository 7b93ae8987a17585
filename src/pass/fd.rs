//! Descriptors as values.

use std::{
    fmt, fs, io,
    marker::PhantomData,
    net,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix,
    },
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::wire::beside::{self, Passed};

/// What is a descriptor: files, sockets, pipes, of `std` and of tokio. Implement it for your own, to pass them by
/// [`Fd`].
pub trait Descriptor: Sized {
    /// Gives the descriptor up.
    fn into_fd(self) -> io::Result<OwnedFd>;

    /// Makes the value in the worker. Those of tokio need a tokio runtime there.
    fn from_fd(fd: OwnedFd) -> io::Result<Self>;
}

/// An open file, socket or pipe as an argument of a task, anywhere in it: in a struct, a vector, an option.
///
/// It leaves this process: when the task executes, only its worker has it. (A [`clone`](Clone::clone) stays here.) So a
/// connection that the worker closes is closed.
///
/// Descriptors flow from the parent to a worker only. Elsewhere, in a result, in a message of a channel, with another
/// codec, it does not encode, and says so.
///
/// # Errors
///
/// At a limit of descriptors of the parent, the worker or the user (`EMFILE`, `ENFILE`, `ETOOMANYREFS`) the task gives
/// [`Error::Spawn`](crate::Error::Spawn), which [is retryable](crate::Error::is_retryable). One task takes 4096 at most.
///
/// ```
/// use tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::{TcpListener, TcpStream}};
/// use tokio_run_in_process::{Fd, block_on, run_in_process};
///
/// async fn serve(connection: Fd<TcpStream>) -> std::io::Result<()> {
///     connection.into_inner()?.write_all(b"hello from a process of your own").await
/// }
///
/// block_on(async {
///     let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
///     let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
///     let (connection, _) = listener.accept().await.unwrap();
///     # async fn unwrap(connection: Fd<TcpStream>) { serve(connection).await.unwrap() }
///     # let serve = unwrap;
///     run_in_process(serve, Fd::new(connection).unwrap()).await.unwrap();
///     let mut text = String::new();
///     client.read_to_string(&mut text).await.unwrap();
///     assert_eq!(text, "hello from a process of your own");
/// })
/// .unwrap();
/// ```
pub struct Fd<T> {
    fd: Arc<OwnedFd>,
    _value: PhantomData<fn() -> T>,
}

impl<T: Descriptor> Fd<T> {
    /// Takes a value's descriptor. One of tokio's leaves its reactor.
    ///
    /// # Errors
    ///
    /// What the value says when it gives its descriptor up; those of `std` and tokio do not fail.
    pub fn new(value: T) -> io::Result<Self> {
        value.into_fd().map(Self::from_owned)
    }

    /// The value, which is for one owner: if there are clones, it is a duplicate (`dup(2)`).
    ///
    /// # Errors
    ///
    /// For a type of tokio's: there is no tokio runtime here. With clones: the limit of descriptors.
    pub fn into_inner(self) -> io::Result<T> {
        let fd = match Arc::try_unwrap(self.fd) {
            Ok(fd) => fd,
            Err(shared) => shared.try_clone()?,
        };
        T::from_fd(fd)
    }

    fn from_owned(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd), _value: PhantomData }
    }
}

impl<T> Clone for Fd<T> {
    fn clone(&self) -> Self {
        Self { fd: self.fd.clone(), _value: PhantomData }
    }
}

impl<T> AsFd for Fd<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<T> fmt::Debug for Fd<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fd").field(&self.fd).finish()
    }
}

impl<T> Serialize for Fd<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let passed = Passed { fd: self.fd.clone(), owned: true };
        serializer.serialize_u32(beside::leave_fd(passed).map_err(ser::Error::custom)?)
    }
}

impl<'de, T> Deserialize<'de> for Fd<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fd = beside::take_fd(u32::deserialize(deserializer)?).map_err(de::Error::custom)?;
        Ok(Self { fd: Arc::new(fd), _value: PhantomData })
    }
}

macro_rules! plain {
    ($($type:ty),*) => {
        $(
            impl Descriptor for $type {
                fn into_fd(self) -> io::Result<OwnedFd> {
                    Ok(self.into())
                }

                fn from_fd(fd: OwnedFd) -> io::Result<Self> {
                    Ok(fd.into())
                }
            }

            impl From<$type> for Fd<$type> {
                fn from(value: $type) -> Self {
                    Self::from_owned(value.into())
                }
            }
        )*
    };
}

plain!(
    OwnedFd,
    fs::File,
    net::TcpStream,
    net::TcpListener,
    net::UdpSocket,
    unix::net::UnixStream,
    unix::net::UnixListener,
    unix::net::UnixDatagram
);

macro_rules! of_tokio {
    ($($type:ty: $std:ty),*) => {
        $(
            impl Descriptor for $type {
                fn into_fd(self) -> io::Result<OwnedFd> {
                    Ok(self.into_std()?.into())
                }

                fn from_fd(fd: OwnedFd) -> io::Result<Self> {
                    let value = <$std>::from(fd);
                    value.set_nonblocking(true)?;
                    runtime_is_here()?;
                    Self::from_std(value)
                }
            }
        )*
    };
}

of_tokio!(
    tokio::net::TcpStream: net::TcpStream,
    tokio::net::TcpListener: net::TcpListener,
    tokio::net::UdpSocket: net::UdpSocket,
    tokio::net::UnixStream: unix::net::UnixStream,
    tokio::net::UnixListener: unix::net::UnixListener,
    tokio::net::UnixDatagram: unix::net::UnixDatagram
);

macro_rules! pipes_of_tokio {
    ($($type:ident),*) => {
        $(
            impl Descriptor for tokio::net::unix::pipe::$type {
                fn into_fd(self) -> io::Result<OwnedFd> {
                    self.into_nonblocking_fd()
                }

                fn from_fd(fd: OwnedFd) -> io::Result<Self> {
                    runtime_is_here()?;
                    Self::from_owned_fd(fd)
                }
            }
        )*
    };
}

pipes_of_tokio!(Sender, Receiver);

/// tokio panics without one.
fn runtime_is_here() -> io::Result<()> {
    tokio::runtime::Handle::try_current().map(drop).map_err(io::Error::other)
}
