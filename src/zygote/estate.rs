//! What a zygote has of those that it forked: their workers, when they are gone.

use std::time::Duration;

use super::{
    children::Child,
    serve::{Zygote, kill_worker},
};
use crate::{
    model::{Signal, WorkerId},
    sys::{
        process,
        table::{Entry, Table},
    },
    wire::control::Fact,
};

/// The zygotes that one forked, and what they left.
#[derive(Default)]
pub(super) struct Estate {
    /// Those that were not reaped, with their tables.
    pub(super) younger: Vec<(i32, Option<Table>)>,
    /// Whether this process gets the children of others.
    pub(super) inherits: bool,
    /// Workers of those that are gone, which may have been forked but have not said so yet: one for each zygote at most.
    unborn: Vec<Unborn>,
    /// Workers that the parent asked for and that are not known yet.
    asked: Vec<WorkerId>,
}

struct Unborn {
    worker: WorkerId,
    table: Table,
    /// How often to look again.
    looks: u32,
}

/// A worker has so many looks from its fork to its first line, a millisecond apart or more: a machine with much to do
/// takes its time. One that was not forked is not waited for where the kernel lists a process's children.
const LOOKS: u32 = 2000;
/// How long younger zygotes have to leave by themselves.
const YOUNGER_LEAVE: Duration = Duration::from_millis(50);
/// How long what was killed has to be gone from its control group.
const GROUPS_LEAVE: Duration = Duration::from_millis(200);

impl Estate {
    /// Whether there is something to look for again though nothing happens.
    pub(super) fn is_unsettled(&self) -> bool {
        !(self.unborn.is_empty() && self.asked.is_empty())
    }

    fn tables(&self) -> impl Iterator<Item = &Table> {
        let younger = self.younger.iter().filter_map(|(_, table)| table.as_ref());
        younger.chain(self.unborn.iter().map(|unborn| &unborn.table))
    }

    fn entry(&self, worker: WorkerId) -> Option<Entry> {
        self.tables().find_map(|table| table.entry(worker))
    }

    /// The worker that a child of this process is, of which a zygote has told nothing: that one is gone too, but a tracer
    /// may keep its end to itself for as long as it likes. It is this process's to reap now.
    pub(super) fn claim(&mut self, pid: i32) -> Option<WorkerId> {
        self.younger.iter_mut().filter_map(|(_, table)| table.as_mut()).find_map(|table| {
            let (worker, _) = table.entries().find(|&(_, entry)| entry == Entry::Alive(pid))?;
            table.forget(worker);
            Some(worker)
        })
    }
}

impl Zygote {
    /// Kills what is left and ends.
    pub(super) fn leave(&mut self, program_is_gone: bool) -> ! {
        self.children.workers().for_each(kill_worker);
        if let Some(ancestor) = self.ancestor.filter(|&pid| program_is_gone && pid == process::parent_pid()) {
            // Somebody may have stopped it; then it would not see that it is not needed any more.
            let _ = process::signal_child(ancestor, Signal::CONT);
        }
        // They are told as this one is. One that is stopped does not hear it, and its workers are still to be killed.
        let younger = &self.estate.younger;
        for _ in 0..YOUNGER_LEAVE.as_millis() {
            if younger.iter().all(|&(pid, _)| process::has_ended(pid)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        for &(pid, _) in younger {
            let _ = process::signal_child(pid, Signal::KILL);
            let _ = process::reap(pid);
        }
        let mut workers: Vec<_> = self.children.ids().collect();
        for (worker, entry) in self.estate.tables().flat_map(Table::entries) {
            // Not one that says only now that it is there: it finds its job socket closed.
            if let Entry::Alive(pid) = entry {
                kill_worker(pid);
            }
            workers.push(worker);
        }
        workers.into_iter().for_each(|worker| self.groups.end(worker));
        for _ in 0..GROUPS_LEAVE.as_millis() {
            if !self.groups.is_unsettled() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
            self.groups.settle();
        }
        process::exit(0)
    }

    /// Takes over the workers of a younger zygote that is gone: the kernel made this process their parent.
    pub(super) fn adopt(&mut self, zygote: i32) {
        let Some(at) = self.estate.younger.iter().position(|&(pid, _)| pid == zygote) else { return };
        let (_, Some(table)) = self.estate.younger.swap_remove(at) else { return };
        let mut unborn = None;
        for (worker, entry) in table.entries() {
            match entry {
                Entry::Alive(pid) if process::is_child(pid) => self.take_over(pid, worker),
                // Somebody else reaped it, and its pid may mean another process.
                Entry::Alive(_) => self.tell(Fact::Unknown { worker }, None),
                // Its zygote may not have come to tell it. If it has, to be told twice does no harm.
                Entry::Ended(pid, status, usage) => {
                    self.groups.end(worker);
                    self.tell(Fact::Exited { worker, pid, status, usage }, None);
                }
                Entry::Unborn => unborn = Some(worker),
            }
        }
        if let Some(worker) = unborn {
            self.estate.unborn.push(Unborn { worker, table, looks: LOOKS });
        }
    }

    fn take_over(&mut self, pid: i32, worker: WorkerId) {
        self.children.reserve();
        self.children.add(pid, Child::Worker(worker));
    }

    /// Looks whether workers that a zygote forked as it died have said who they are, and answers for them.
    pub(super) fn settle(&mut self) {
        // Before the tables: who has said so since then is found there.
        let may_be_here = self.estate.unborn.is_empty() || self.has_strangers();
        for unborn in std::mem::take(&mut self.estate.unborn) {
            match unborn.table.entry(unborn.worker) {
                Some(Entry::Alive(pid)) => self.take_over(pid, unborn.worker),
                // It was not forked, or has ended before it could say anything.
                _ if unborn.looks == 0 || !may_be_here => {}
                _ => self.estate.unborn.push(Unborn { looks: unborn.looks - 1, ..unborn }),
            }
        }
        for worker in std::mem::take(&mut self.estate.asked) {
            self.announce_or_ask(worker);
        }
    }

    /// Whether this process has children that nobody knows. The kernel gave it a dead zygote's with that zygote's death, and
    /// forks none for a process that is being killed, so one that is not here by now will not be.
    fn has_strangers(&self) -> bool {
        let Some(children) = process::children() else { return true };
        children.into_iter().any(|pid| !self.children.has(pid))
    }

    /// Tells the parent of a worker, now or as soon as it is known.
    pub(super) fn announce_or_ask(&mut self, worker: WorkerId) {
        if let Some(pid) = self.pid_of(worker) {
            return self.announce(worker, pid);
        }
        match self.estate.entry(worker) {
            Some(Entry::Unborn) => self.estate.asked.push(worker),
            // Now: after `Unknown` nobody listens to it any more.
            Some(Entry::Ended(pid, status, usage)) => self.tell(Fact::Exited { worker, pid, status, usage }, None),
            Some(Entry::Alive(_)) | None => self.tell(Fact::Unknown { worker }, None),
        }
    }

    /// The pid of a worker that was not reaped: one of this zygote's, or of a younger one that is about to be gone.
    pub(super) fn pid_of(&self, worker: WorkerId) -> Option<i32> {
        self.children.pid_of(worker).or_else(|| match self.estate.entry(worker) {
            Some(Entry::Alive(pid)) => Some(pid),
            _ => None,
        })
    }
}
