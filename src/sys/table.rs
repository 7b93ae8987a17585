//! Which pid is which worker, and how those ended that the parent has not heard of yet: in memory that a zygote shares with
//! the one that forked it, so that the older one knows the workers of the younger when that is gone.
//!
//! The younger one writes, and in each slot the worker itself, once, before it runs anything: its zygote may die between
//! the fork and the next line. It unmaps the memory then. The older one reads when the younger is gone.

use std::{
    io,
    ptr::{self, NonNull},
    sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use crate::model::{Usage, WorkerId};

/// How many workers it knows at most; one more is not listed, and how it ends may stay unknown.
const SLOTS: usize = 16 << 10;

/// One worker. All zero: free.
#[repr(C)]
struct Slot {
    /// 0: free. Written before everything else, cleared last.
    worker: AtomicU64,
    /// 0: not forked, or not far enough to say so. `ENDED`: it may mean another process.
    pid: AtomicI32,
    status: AtomicI32,
    user_time: AtomicU64,
    system_time: AtomicU64,
    max_rss: AtomicU64,
    /// The pid that it had.
    had: AtomicI32,
}

const ENDED: i32 = -1;

#[repr(C)]
struct Memory {
    /// No slot from here on was ever used, so a reader need not touch their pages.
    used: AtomicUsize,
    slots: [Slot; SLOTS],
}

/// What a slot says of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It is being forked, or was a moment ago.
    Unborn,
    /// It was not reaped.
    Alive(i32),
    /// It ended, and was or will be reaped; the parent was not told yet.
    Ended(i32, i32, Usage),
}

#[derive(Debug)]
pub(crate) struct Table(NonNull<Memory>);

impl Table {
    /// An empty one, for this process and the next that it forks.
    pub(crate) fn new() -> io::Result<Self> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANON);
        // SAFETY: a new mapping, at a place of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), size_of::<Memory>(), access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast()).map(Self).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
    }

    fn memory(&self) -> &Memory {
        // SAFETY: mapped for as long as `self`, zeroed at first, and made of atomics only.
        unsafe { self.0.as_ref() }
    }

    fn used(&self) -> &[Slot] {
        let memory = self.memory();
        &memory.slots[..memory.used.load(Ordering::Acquire).min(SLOTS)]
    }

    fn of(&self, worker: WorkerId) -> Option<&Slot> {
        self.used().iter().find(|slot| slot.worker.load(Ordering::Acquire) == worker.0)
    }

    /// A worker is about to be forked. Gives its slot, if there is one.
    pub(crate) fn expect(&mut self, worker: WorkerId) -> Option<usize> {
        let memory = self.memory();
        // The first that is free, so that what is in use stays together.
        let n = memory.slots.iter().position(|slot| slot.worker.load(Ordering::Relaxed) == 0)?;
        let slot = &memory.slots[n];
        slot.pid.store(0, Ordering::Relaxed);
        slot.worker.store(worker.0, Ordering::Release);
        memory.used.fetch_max(n + 1, Ordering::Release);
        Some(n)
    }

    /// It was forked: said by the worker and by its zygote, whoever comes first.
    pub(crate) fn is_born(&self, slot: Option<usize>, pid: i32) {
        if let Some(slot) = slot.and_then(|n| self.memory().slots.get(n)) {
            slot.pid.store(pid, Ordering::Release);
        }
    }

    /// It is about to be reaped: its pid may soon mean another process, and the parent is still to be told.
    pub(crate) fn has_ended(&mut self, worker: WorkerId, pid: i32, status: i32, usage: Usage) {
        let Some(slot) = self.of(worker) else { return };
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        slot.status.store(status, Ordering::Relaxed);
        slot.user_time.store(micros(usage.user_time), Ordering::Relaxed);
        slot.system_time.store(micros(usage.system_time), Ordering::Relaxed);
        slot.max_rss.store(usage.max_rss, Ordering::Relaxed);
        slot.had.store(pid, Ordering::Relaxed);
        slot.pid.store(ENDED, Ordering::Release);
    }

    /// The parent knows all of it.
    pub(crate) fn forget(&mut self, worker: WorkerId) {
        if let Some(slot) = self.of(worker) {
            slot.worker.store(0, Ordering::Release);
        }
    }

    pub(crate) fn entry(&self, worker: WorkerId) -> Option<Entry> {
        self.of(worker).map(Slot::entry)
    }

    /// The workers that the parent may not know to be gone.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (WorkerId, Entry)> {
        let of = |slot: &Slot| (WorkerId(slot.worker.load(Ordering::Acquire)), slot.entry());
        self.used().iter().map(of).filter(|&(worker, _)| worker != WorkerId(0))
    }
}

impl Slot {
    fn entry(&self) -> Entry {
        let time = |micros: &AtomicU64| Duration::from_micros(micros.load(Ordering::Relaxed));
        match self.pid.load(Ordering::Acquire) {
            ENDED => {
                let (user_time, system_time) = (time(&self.user_time), time(&self.system_time));
                let usage = Usage { user_time, system_time, max_rss: self.max_rss.load(Ordering::Relaxed) };
                Entry::Ended(self.had.load(Ordering::Relaxed), self.status.load(Ordering::Relaxed), usage)
            }
            // No worker has such a pid, and no signal may go there.
            pid if pid < 2 => Entry::Unborn,
            pid => Entry::Alive(pid),
        }
    }
}

impl Drop for Table {
    /// In the process that reads it, when the writer is gone; and in every other that is forked from either.
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; no reference outlives this value.
        let _ = unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<Memory>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(table: &Table) -> Vec<(WorkerId, Entry)> {
        table.entries().collect()
    }

    #[test]
    fn workers_are_known_until_the_parent_knows_that_they_are_gone() {
        let mut table = Table::new().unwrap();
        for n in 1..=100 {
            let slot = table.expect(WorkerId(n));
            table.is_born(slot, 1000 + i32::try_from(n).unwrap());
        }
        let usage =
            Usage { user_time: Duration::from_micros(3), system_time: Duration::from_secs(2), max_rss: 1 << 40 };
        table.has_ended(WorkerId(50), 1050, 0x300, usage);
        for n in (1..=100).filter(|n| n % 50 != 0) {
            table.forget(WorkerId(n));
        }
        let mut expected = vec![(WorkerId(50), Entry::Ended(1050, 0x300, usage)), (WorkerId(100), Entry::Alive(1100))];
        assert_eq!(entries(&table), expected);
        // Its number is another's now.
        let slot = table.expect(WorkerId(101));
        expected.insert(0, (WorkerId(101), Entry::Unborn));
        assert_eq!(entries(&table), expected);
        table.is_born(slot, 1050);
        assert_eq!(table.entry(WorkerId(101)), Some(Entry::Alive(1050)));
        table.forget(WorkerId(50));
        assert_eq!(table.entry(WorkerId(50)), None);
    }

    #[test]
    fn what_is_too_many_is_not_listed() {
        let mut table = Table::new().unwrap();
        for n in 1..=SLOTS as u64 {
            assert!(table.expect(WorkerId(n)).is_some());
        }
        let one_more = WorkerId(1 << 40);
        assert_eq!(table.expect(one_more), None);
        table.is_born(None, 5000);
        table.has_ended(one_more, 5000, 0, Usage::default());
        table.forget(one_more);
        assert_eq!(table.entries().count(), SLOTS);
    }
}
