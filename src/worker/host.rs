//! What runs the task's future in a worker, and how it learns of signals.

use std::{
    future::Future,
    io,
    os::unix::net::UnixStream,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
};

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

use super::signals;
use crate::{
    sys,
    task::{Arguments, Entry},
};

/// The runtime that a task gets unless it asks for another: single-threaded, with timers and I/O, `spawn_local` allowed.
pub(super) fn build_tokio() -> io::Result<LocalRuntime> {
    Builder::new_current_thread().enable_all().build_local(LocalOptions::default())
}

/// The same for what runs a task.
pub(super) fn rehearse(runtime: &LocalRuntime) {
    let task = Entry::of_async(async |n: u8| n).enter(Arguments { bytes: vec![0].into(), fds: Vec::new() }, 1);
    let ran = catch_unwind(AssertUnwindSafe(|| runtime.block_on(task)));
    debug_assert!(ran.is_ok());
}

/// Never ends: waits for a socket to become readable and tells [`signals`] each time.
pub(super) type Watch = Pin<Box<dyn Future<Output = ()>>>;

/// Which reactor watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reactor {
    Tokio,
    #[cfg(feature = "smol")]
    Smol,
    /// A thread of its own: for runtimes of the user's, and for plain functions.
    Thread,
}

impl Reactor {
    /// Watches a socket that does not block. The socket stays open: the job socket is needed to the end.
    pub(super) fn watch(self, socket: UnixStream) -> Watch {
        match self {
            Self::Tokio => Box::pin(watch_with_tokio(socket)),
            #[cfg(feature = "smol")]
            Self::Smol => Box::pin(super::smol::watch(socket)),
            Self::Thread => {
                watch_with_thread(socket);
                Box::pin(std::future::pending())
            }
        }
    }
}

async fn watch_with_tokio(socket: UnixStream) {
    // A second descriptor must not be made (a worker holds one socket), so the stream owns the job socket and is never
    // dropped.
    let Ok(stream) = tokio::net::UnixStream::from_std(socket) else { return std::future::pending().await };
    let stream = std::mem::ManuallyDrop::new(stream);
    loop {
        if stream.readable().await.is_err() {
            return std::future::pending().await;
        }
        match stream.try_read(&mut [0; 64]) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) | Ok(0) => {
                signals::poked();
                return std::future::pending().await;
            }
            Ok(_) => signals::poked(),
        }
    }
}

pub(super) fn watch_with_thread(socket: UnixStream) {
    use std::{io::Read, os::fd::AsRawFd};
    let watch = move || {
        let mut socket = std::mem::ManuallyDrop::new(socket);
        while sys::signal::wait_readable(socket.as_raw_fd(), None).is_ok() {
            let n = socket.read(&mut [0; 64]);
            signals::poked();
            if !n.is_ok_and(|n| n > 0) {
                return;
            }
        }
    };
    // Without the thread a signal ends the task no sooner than its next poll.
    let _ = std::thread::Builder::new().name("signals".to_owned()).stack_size(64 << 10).spawn(watch);
}
