//! The parent's end of a control socket: orders go out from any thread, facts come in to the driver.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, watch};

use crate::{
    sys::{self, cgroup, signal, socket},
    wire::control::{Order, OrderBytes},
};

#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    /// Closed when this program ends, which lets a zygote go on that somebody stopped (see `sys::arm`).
    _rope: Option<OwnedFd>,
    unsent: Mutex<VecDeque<Unsent>>,
    /// Wakes the driver to send on what did not go at once.
    pub(super) has_unsent: Notify,
    closed: AtomicBool,
    /// The directories of control groups that the zygote was told of, those that were asked for last at the end.
    contained: Mutex<Vec<Contained>>,
    /// The driver has heard the last of it.
    ended: watch::Sender<bool>,
}

#[derive(Debug)]
struct Unsent {
    bytes: OrderBytes,
    sent: usize,
    fds: Vec<Arc<OwnedFd>>,
}

#[derive(Debug)]
struct Contained {
    dir: cgroup::Id,
    heard: bool,
}

/// How many directories are remembered. A program may have one for each task.
const MOST_CONTAINED: usize = 64;

impl Link {
    /// `rope` came with `Ready`.
    pub(super) fn new(socket: OwnedFd, rope: Option<OwnedFd>) -> Self {
        let closed = AtomicBool::new(false);
        let ended = watch::Sender::new(false);
        let (unsent, contained) = (Mutex::default(), Mutex::default());
        Self { socket, _rope: rope, unsent, has_unsent: Notify::new(), closed, contained, ended }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends an order, now or as soon as the zygote reads. Never blocks.
    ///
    /// An error means that it was not sent and will not be.
    pub(super) fn send(&self, order: Order, fds: &[&Arc<OwnedFd>]) -> io::Result<()> {
        debug_assert_eq!(order.fds(), fds.len());
        let bytes = order.encode();
        let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_closed() {
            // Behind others that will not be sent, it would be waited for in vain.
            return Err(io::Error::from_raw_os_error(libc::EPIPE));
        }
        let mut sent = 0;
        if unsent.is_empty() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
            match socket::send(self.socket(), &bytes, &borrowed, false) {
                Ok(n) if n == bytes.len() => return Ok(()),
                Ok(n) => sent = n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        // The descriptors go with the first byte.
        let fds = if sent == 0 { fds.iter().map(|&fd| fd.clone()).collect() } else { Vec::new() };
        unsent.push_back(Unsent { bytes, sent, fds });
        self.has_unsent.notify_one();
        Ok(())
    }

    /// Tells of a directory of control groups, mostly once. Says whether the zygote has heard it: before that a worker that
    /// was sent its job by another way may have ended.
    pub(super) fn contain(&self, dir: cgroup::Id, fd: &Arc<OwnedFd>) -> bool {
        let mut contained = self.contained.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = contained.iter().position(|told| told.dir == dir) {
            let mut told = contained.remove(at);
            told.heard = told.heard || self.has_read_all();
            let heard = told.heard;
            contained.push(told);
            return heard;
        }
        if self.send(Order::Contain, &[fd]).is_ok() {
            if contained.len() == MOST_CONTAINED {
                // If it comes again the zygote is told again.
                contained.remove(0);
            }
            contained.push(Contained { dir, heard: false });
        }
        // It has hardly read it by now; the next one asks.
        false
    }

    /// What it has read it obeys before it does anything else.
    fn has_read_all(&self) -> bool {
        let unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        unsent.is_empty() && socket::knows_what_is_read() && socket::all_is_read(self.socket.as_raw_fd())
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Whether there is nobody at the other end, though the driver may not have heard it yet.
    pub(super) fn is_dead(&self) -> bool {
        self.is_closed() || socket::has_hung_up(self.socket())
    }

    /// Sends an order that others may overtake: `WouldBlock` if the zygote is too busy for it.
    pub(super) fn try_send(&self, order: Order, fd: &OwnedFd) -> io::Result<()> {
        let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_closed() {
            return Err(io::Error::from_raw_os_error(libc::EPIPE));
        }
        if !unsent.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let bytes = order.encode();
        let sent = socket::send(self.socket(), &bytes, &[fd.as_fd()], false)?;
        if sent < bytes.len() {
            unsent.push_back(Unsent { bytes, sent, fds: Vec::new() });
            self.has_unsent.notify_one();
        }
        Ok(())
    }

    /// Waits until there may be room again.
    pub(super) fn wait_for_room(&self, timeout: Duration) -> io::Result<bool> {
        signal::wait_writable(self.socket.as_raw_fd(), Some(timeout))
    }

    /// Sends on. `WouldBlock` if the socket is full again.
    pub(super) fn flush(&self) -> io::Result<()> {
        let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(next) = unsent.front_mut() {
            let borrowed: Vec<BorrowedFd<'_>> = next.fds.iter().map(|fd| fd.as_fd()).collect();
            next.sent += socket::send(self.socket(), &next.bytes[next.sent..], &borrowed, false)?;
            next.fds.clear();
            if next.sent == next.bytes.len() {
                unsent.pop_front();
            }
        }
        Ok(())
    }

    /// Ends the connection, whoever else holds copies of the socket: the zygote kills its workers and leaves.
    pub(super) fn close(&self) {
        let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: what `send` took before is in the roster by now, and it takes no more.
        self.closed.store(true, Ordering::Relaxed);
        // With the workers' ends of their job sockets, which hide that nobody is there.
        unsent.clear();
        drop(unsent);
        socket::shutdown(&self.socket, std::net::Shutdown::Both);
    }

    /// Tells the zygote that it is not needed any more. What it still says is heard.
    pub(super) fn finish(&self) {
        socket::shutdown(&self.socket, std::net::Shutdown::Write);
    }

    /// The zygote is gone, and what it said was taken in.
    pub(super) fn set_ended(&self) {
        self.ended.send_replace(true);
    }

    /// Waits for that.
    pub(super) async fn has_ended(&self) {
        // The sender is `self`.
        let _ = self.ended.subscribe().wait_for(|&ended| ended).await;
    }
}

/// A descriptor of the same socket for the driver to wait on.
pub(super) fn duplicate(link: &Link) -> io::Result<OwnedFd> {
    let fd = sys::fd::duplicate(link.socket.as_raw_fd())?;
    sys::fd::set_nonblocking(fd.as_raw_fd(), true)?;
    Ok(fd)
}
