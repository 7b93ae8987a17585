//! What goes to a worker in one go: a job's bytes, and the descriptors that travel with them.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    sys::socket::{self, AT_ONCE, MAX_FDS},
    wire::{job::batches, rope::Rope},
};

/// To free so many bytes takes milliseconds.
const MUCH: usize = 32 << 20;

/// So many bytes are not kept for as long as their task runs, so its worker says when it has them.
const LARGE: usize = 4 << 20;

/// Can be sent again, to another worker, until it was let go.
pub(super) struct Parcel {
    len: usize,
    load: Mutex<Load>,
}

#[derive(Default)]
struct Load {
    rope: Rope,
    fds: Vec<Arc<OwnedFd>>,
}

impl Parcel {
    pub(super) fn new(rope: Rope, fds: Vec<Arc<OwnedFd>>) -> Self {
        Self { len: rope.len(), load: Mutex::new(Load { rope, fds }) }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_large(&self) -> bool {
        self.len > LARGE
    }

    pub(super) fn head_mut(&mut self) -> &mut [u8] {
        self.load.get_mut().unwrap_or_else(PoisonError::into_inner).rope.head_mut()
    }

    fn load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what fits of what is left after `sent` bytes, without waiting, and says how much is sent now. `true`: that is
    /// all. `false`: there may be room for more, but others should have their turn first. A worker that reads as fast as
    /// this sends would else keep the thread until the end.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, or that nothing can be sent: the other end is gone (`is_peer_gone`), or else the system lacks something
    /// (there are too many descriptors on their way, of all processes of the user: `ETOOMANYREFS`, unix(7)) or refuses one of
    /// the descriptors. What was sent before stays.
    pub(super) fn send(&self, socket: BorrowedFd<'_>, sent: &mut usize) -> io::Result<bool> {
        if *sent == 0 {
            socket::make_room(socket, self.len());
        }
        let turn = *sent + AT_ONCE;
        while *sent < self.len() {
            if *sent >= turn {
                return Ok(false);
            }
            *sent += self.send_some(socket, *sent)?;
        }
        Ok(true)
    }

    fn send_some(&self, socket: BorrowedFd<'_>, sent: usize) -> io::Result<usize> {
        let load = self.load();
        let Load { rope, fds } = &*load;
        let (slices, count) = rope.slices(sent, AT_ONCE);
        let batches = batches(fds.len(), MAX_FDS);
        // As the worker expects them: one byte for each full message of descriptors, then all the rest.
        let batch = fds.chunks(MAX_FDS).nth(sent).unwrap_or_default();
        let batch: Vec<BorrowedFd<'_>> = batch.iter().map(|fd| fd.as_fd()).collect();
        if sent + 1 < batches {
            return socket::send(socket, &slices[0][..1], &batch, false);
        }
        socket::send_slices(socket, &slices[..count], &batch, false)
    }

    /// The worker has all of it: who waits for the last copy of a descriptor to be closed must not wait for ours, and the
    /// bytes are of no more use.
    pub(super) fn let_go(&self) {
        let load = std::mem::take(&mut *self.load());
        // Not under the lock: to close a descriptor may take a while.
        drop(load);
    }
}

impl Drop for Load {
    /// To free much memory takes long, which a runtime's thread has better uses for.
    fn drop(&mut self) {
        if self.rope.would_free() >= MUCH {
            let rope = std::mem::take(&mut self.rope);
            // Without a thread it is freed here.
            let _ = std::thread::Builder::new().stack_size(64 << 10).spawn(move || drop(rope));
        }
    }
}

impl fmt::Debug for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parcel").field("len", &self.len()).finish_non_exhaustive()
    }
}
