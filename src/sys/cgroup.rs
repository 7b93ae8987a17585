//! A control group for each worker that asks for one: whatever it starts, however that leaves its process group, ends
//! with it.
//!
//! The worker makes the group and moves there before it runs anything of the user's; its zygote kills what is left there
//! when the worker has ended, and removes the group. All in a directory that was delegated to this program.

use std::{
    ffi::{CString, OsStr},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use super::{check, os};
use crate::model::WorkerId;

/// The name of a worker's group, which no other worker of any program has while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    /// The pid of the program.
    pub(crate) program: i32,
    pub(crate) worker: WorkerId,
}

impl Name {
    fn text(self) -> CString {
        let text = format!("tokio-run-in-process-{}-{}", self.program, self.worker.0);
        CString::new(text).unwrap_or_default()
    }
}

/// Which directory it is, by device and inode.
pub(crate) type Id = (u64, u64);

/// Opens a directory in which groups can be made.
pub(crate) fn open(dir: &OsStr) -> io::Result<(OwnedFd, Id)> {
    let fd = os::cgroup::open(dir)?;
    let id = id(&fd)?;
    Ok((fd, id))
}

/// Which directory that is. One that is made when it is gone is another one, whatever its name.
pub(crate) fn id(dir: impl AsFd) -> io::Result<Id> {
    // SAFETY: an all-zero stat is valid storage.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: live storage.
    check(unsafe { libc::fstat(dir.as_fd().as_raw_fd(), &raw mut stat) })?;
    Ok((stat.st_dev as u64, stat.st_ino))
}

/// Whether somebody removed the directory. Not while there is a group in it.
pub(crate) fn is_removed(dir: impl AsFd) -> bool {
    os::cgroup::is_removed(dir.as_fd())
}

/// Moves this process to a new group of that name.
pub(crate) fn join(dir: &OsStr, name: Name) -> io::Result<()> {
    os::cgroup::join(dir, &name.text())
}

/// Kills all that is in a group. `false` if there is no such group.
pub(crate) fn kill(dir: impl AsFd, name: Name) -> bool {
    os::cgroup::kill(dir.as_fd(), &name.text()).is_ok()
}

/// Removes a group. `false` if it must be tried again: what was killed is not gone yet.
pub(crate) fn remove(dir: impl AsFd, name: Name) -> bool {
    match os::cgroup::remove(dir.as_fd(), &name.text()) {
        Ok(()) => true,
        Err(e) => e.raw_os_error() != Some(libc::EBUSY),
    }
}
