//! The control groups of workers: killed when the worker has ended, and removed when they are empty.

use std::{os::fd::OwnedFd, rc::Rc};

use crate::{
    model::WorkerId,
    sys::cgroup::{self, Id, Name},
};

/// The directories in which workers may have groups, and the groups that are being emptied.
#[derive(Debug)]
pub(super) struct Groups {
    program: i32,
    /// As many as there are: one that was removed is forgotten when the next one comes.
    dirs: Vec<(Id, Rc<OwnedFd>)>,
    emptying: Vec<Emptying>,
}

#[derive(Debug)]
struct Emptying {
    dir: Rc<OwnedFd>,
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

    /// From now on workers may have a group there. The parent may tell of it again: it has forgotten that it did.
    pub(super) fn add(&mut self, dir: OwnedFd) {
        let Ok(id) = cgroup::id(&dir) else { return };
        self.dirs.retain(|(_, dir)| !cgroup::is_removed(dir));
        if !self.dirs.iter().any(|&(known, _)| known == id) {
            self.dirs.push((id, Rc::new(dir)));
        }
    }

    /// A worker has ended, or is to: so does what it started.
    pub(super) fn end(&mut self, worker: WorkerId) {
        let name = self.name(worker);
        for (_, dir) in &self.dirs {
            if cgroup::kill(dir, name) && !cgroup::remove(dir, name) {
                self.emptying.push(Emptying { dir: dir.clone(), name, looks: LOOKS });
            }
        }
    }

    /// Whether there is something to look for again though nothing happens.
    pub(super) fn is_unsettled(&self) -> bool {
        !self.emptying.is_empty()
    }

    /// Removes the groups that are empty by now.
    pub(super) fn settle(&mut self) {
        self.emptying.retain_mut(|group| {
            group.looks -= 1;
            // Also what was forked while the others were killed.
            let _ = cgroup::kill(&group.dir, group.name);
            !cgroup::remove(&group.dir, group.name) && group.looks > 0
        });
    }
}
