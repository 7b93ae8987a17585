//! The children of a zygote: which pid is which worker. Pure bookkeeping.

use crate::model::WorkerId;

/// What a child of a zygote is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Child {
    Worker(WorkerId),
    /// Another zygote, which looks after itself.
    Zygote,
}

/// The children that were forked and not reaped. A vector: it is small, and a `HashMap` would touch the hash keys that
/// every worker must find untouched.
#[derive(Debug, Default)]
pub(super) struct Children(Vec<(i32, Child)>);

impl Children {
    /// Room for one more, made before the fork: after it nothing may fail.
    pub(super) fn reserve(&mut self) {
        self.0.reserve(1);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, pid: i32, child: Child) {
        self.0.push((pid, child));
    }

    /// The pid of a worker that was not reaped yet.
    pub(super) fn pid_of(&self, worker: WorkerId) -> Option<i32> {
        // The newest are asked for most.
        self.0.iter().rev().find(|(_, child)| *child == Child::Worker(worker)).map(|&(pid, _)| pid)
    }

    /// The worker that a pid means, until it is reaped.
    pub(super) fn worker_of(&self, pid: i32) -> Option<WorkerId> {
        self.0.iter().rev().find_map(|&(child, kind)| match kind {
            Child::Worker(worker) if child == pid => Some(worker),
            _ => None,
        })
    }

    /// Takes a child out that is about to be reaped. `None` for one that we did not fork (adopted by chance).
    pub(super) fn remove(&mut self, pid: i32) -> Option<Child> {
        let at = self.0.iter().rposition(|&(child, _)| child == pid)?;
        Some(self.0.swap_remove(at).1)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = WorkerId> {
        self.0.iter().filter_map(|&(_, child)| match child {
            Child::Worker(worker) => Some(worker),
            Child::Zygote => None,
        })
    }

    /// Whether it is a child that is known.
    pub(super) fn has(&self, pid: i32) -> bool {
        self.0.iter().any(|&(child, _)| child == pid)
    }

    /// The pids of all workers.
    pub(super) fn workers(&self) -> impl Iterator<Item = i32> {
        self.0.iter().filter(|(_, child)| matches!(child, Child::Worker(_))).map(|&(pid, _)| pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_found_until_they_are_reaped() {
        let mut children = Children::default();
        for n in 0..5 {
            children.reserve();
            children.add(100 + n, Child::Worker(WorkerId(n as u64)));
        }
        children.add(200, Child::Zygote);
        assert_eq!(children.pid_of(WorkerId(3)), Some(103));
        assert!(children.has(103) && children.has(200) && !children.has(105));
        assert_eq!(children.remove(103), Some(Child::Worker(WorkerId(3))));
        assert_eq!(children.remove(103), None);
        assert!(!children.has(103));
        assert_eq!(children.pid_of(WorkerId(3)), None);
        assert_eq!(children.workers().count(), 4);
        assert_eq!(children.remove(200), Some(Child::Zygote));
    }
}
