//! The control groups of workers: killed when the worker has ended, and removed when they are empty.

use std::os::fd::OwnedFd;

use crate::{
    model::WorkerId,
    sys::cgroup::{self, Name},
};

/// The directories in which workers may have groups, and the groups that are being emptied.
#[derive(Debug)]
pub(super) struct Groups {
    program: i32,
    /// Few: the parent tells of each once.
    dirs: Vec<OwnedFd>,
    emptying: Vec<Emptying>,
}

#[derive(Debug)]
struct Emptying {
    dir: usize,
    name: Name,
    /// How often to look again, a millisecond apart or more. One that a process cannot be killed in stays.
    looks: u32,
}

const LOOKS: u32 = 2000;

impl Groups {
    pub(super) fn new(program: i32) -> Self {
        Self { program, dirs: Vec::new(), emptying: Vec::new() }
    }

    pub(super) fn name(&self, worker: WorkerId) -> Name {
        Name { program: self.program, worker }
    }

    /// From now on workers may have a group there.
    pub(super) fn add(&mut self, dir: OwnedFd) {
        self.dirs.push(dir);
    }

    /// A worker has ended, or is to: so does what it started.
    pub(super) fn end(&mut self, worker: WorkerId) {
        let name = self.name(worker);
        for (at, dir) in self.dirs.iter().enumerate() {
            if cgroup::kill(dir, name) && !cgroup::remove(dir, name) {
                self.emptying.push(Emptying { dir: at, name, looks: LOOKS });
            }
        }
    }

    /// Whether there is something to look for again though nothing happens.
    pub(super) fn is_unsettled(&self) -> bool {
        !self.emptying.is_empty()
    }

    /// Removes the groups that are empty by now.
    pub(super) fn settle(&mut self) {
        let dirs = &self.dirs;
        self.emptying.retain_mut(|group| {
            group.looks -= 1;
            // Also what was forked while the others were killed.
            let _ = cgroup::kill(&dirs[group.dir], group.name);
            !cgroup::remove(&dirs[group.dir], group.name) && group.looks > 0
        });
    }
}
