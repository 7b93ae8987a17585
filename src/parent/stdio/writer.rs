//! The writing end of a worker's stdin.

use std::{
    io,
    os::fd::OwnedFd,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{io::AsyncWrite, net::unix::pipe};

use super::super::driver::Driver;
use crate::sys;

/// Writes to a worker's stdin; dropping it, or shutting it down, is the end of the input. Works on any runtime.
#[derive(Debug)]
pub struct PipeWriter {
    pipe: Option<pipe::Sender>,
    owner: i32,
}

impl PipeWriter {
    pub(in crate::parent) fn new(driver: &Driver, pipe: OwnedFd) -> io::Result<Self> {
        let pipe = driver.enter(|| pipe::Sender::from_owned_fd(pipe))?;
        Ok(Self { pipe: Some(pipe), owner: sys::process::pid() })
    }

    fn pipe(&mut self) -> io::Result<Pin<&mut pipe::Sender>> {
        self.pipe.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    fn close(&mut self) {
        let pipe = self.pipe.take();
        // A fork of the parent shares the reactor's kernel object: leaving would unregister the parent's pipe.
        if self.owner != sys::process::pid() {
            std::mem::forget(pipe);
        }
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        self.close();
    }
}

impl AsyncWrite for PipeWriter {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let pipe = self.pipe()?;
        sys::signal::without_sigpipe(|| pipe.poll_write(context, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}
