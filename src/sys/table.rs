//! Which pid is which worker, in memory that a zygote shares with the one that forked it: so the older one knows the
//! workers of the younger when that is gone.
//!
//! One process writes, the younger; the other one reads when the first is gone. A worker does not get the memory.

use std::{
    io, ptr,
    sync::atomic::{AtomicI32, AtomicU64, Ordering},
};

use super::os;
use crate::model::WorkerId;

/// How many workers it knows at most; one more is not listed, and how it ends may stay unknown.
const SLOTS: usize = 16 << 10;

#[repr(C)]
struct Slot {
    /// 0: free.
    pid: AtomicI32,
    worker: AtomicU64,
}

/// Never unmapped by the process that writes it, which has it for life.
#[derive(Debug)]
pub(crate) struct Table {
    slots: *const Slot,
    /// Where the writer looks for a free slot first.
    next: usize,
}

impl Table {
    /// An empty one, for this process and the next that it forks.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: a new mapping, at a place of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                SLOTS * size_of::<Slot>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANON,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { slots: start.cast(), next: 0 })
    }

    fn slot(&self, n: usize) -> &Slot {
        // SAFETY: within the mapping.
        let slot = unsafe { self.slots.add(n % SLOTS) };
        // SAFETY: mapped for as long as `self`, and zeroed, or written as a slot.
        unsafe { &*slot }
    }

    /// In the process that writes it: what it forks does not get the memory.
    pub(crate) fn keep_from_forks(&self) {
        os::memory::keep_from_forks(self.slots.cast_mut().cast(), SLOTS * size_of::<Slot>());
    }

    /// A worker was forked.
    pub(crate) fn add(&mut self, pid: i32, worker: WorkerId) {
        let free = |&n: &usize| self.slot(n).pid.load(Ordering::Relaxed) == 0;
        let Some(n) = (self.next..self.next + SLOTS).find(free) else { return };
        self.slot(n).worker.store(worker.0, Ordering::Relaxed);
        // After its number: a reader that sees the pid sees that, too.
        self.slot(n).pid.store(pid, Ordering::Release);
        self.next = (n + 1) % SLOTS;
    }

    /// A worker is about to be reaped: its pid may soon mean another process.
    pub(crate) fn remove(&mut self, pid: i32) {
        // The oldest go first, more or less, and few stand.
        let at = (1..=SLOTS).map(|back| (self.next + SLOTS - back) % SLOTS).find(|&n| self.pid(n) == pid);
        if let Some(n) = at {
            self.slot(n).pid.store(0, Ordering::Release);
            // So that what is in use stays together.
            self.next = n;
        }
    }

    fn pid(&self, n: usize) -> i32 {
        self.slot(n).pid.load(Ordering::Acquire)
    }

    /// The workers that were forked and not reaped.
    pub(crate) fn workers(&self) -> impl Iterator<Item = (i32, WorkerId)> + '_ {
        let worker = |n| WorkerId(self.slot(n).worker.load(Ordering::Relaxed));
        (0..SLOTS).map(move |n| (self.pid(n), worker(n))).filter(|&(pid, _)| pid > 1)
    }
}

impl Drop for Table {
    /// In the process that reads it, when the writer is gone.
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; no reference outlives this value.
        let _ = unsafe { libc::munmap(self.slots.cast_mut().cast(), SLOTS * size_of::<Slot>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_known_until_they_are_reaped() {
        let mut table = Table::new().unwrap();
        for n in 0..100 {
            table.add(1000 + n, WorkerId(n as u64));
        }
        for n in (0..100).filter(|n| n % 3 != 0) {
            table.remove(1000 + n);
        }
        table.add(5000, WorkerId(500));
        let mut left: Vec<_> = table.workers().collect();
        left.sort();
        let expected = (0..100).step_by(3).map(|n| (1000 + n, WorkerId(n as u64)));
        assert_eq!(left, expected.chain([(5000, WorkerId(500))]).collect::<Vec<_>>());
        table.remove(77);
        assert_eq!(table.workers().count(), 35);
    }

    #[test]
    fn what_is_too_many_is_not_listed() {
        let mut table = Table::new().unwrap();
        for n in 0..=SLOTS as i32 {
            table.add(1000 + n, WorkerId(n as u64));
        }
        assert_eq!(table.workers().count(), SLOTS);
    }
}
