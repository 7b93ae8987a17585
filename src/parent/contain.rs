//! A directory of control groups that a task asked for, and who must know of it.

use std::{ffi::OsStr, io, os::fd::OwnedFd, path::Path, sync::Arc};

use super::{lineage::Lineage, link::Link};
use crate::sys::cgroup;

#[derive(Clone, Debug)]
pub(super) struct Contain {
    fd: Arc<OwnedFd>,
    id: cgroup::Id,
}

impl Contain {
    /// An error comes with what was attempted.
    pub(super) fn new(dir: &OsStr) -> Result<Self, (String, io::Error)> {
        match cgroup::open(dir) {
            Ok((fd, id)) => Ok(Self { fd: Arc::new(fd), id }),
            Err(e) => Err((format!("open the directory of control groups {}", Path::new(dir).display()), e)),
        }
    }

    /// Tells the zygote that serves, and the one that reaps when that is gone. `false` if the first may not have heard it.
    pub(super) fn tell(&self, lineage: &Lineage) -> bool {
        let _ = self.tell_one(&lineage.ancestor().link);
        self.tell_one(&lineage.link())
    }

    pub(super) fn tell_one(&self, link: &Link) -> bool {
        link.contain(self.id, &self.fd)
    }
}
