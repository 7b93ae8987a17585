//! Control groups, version 2 (cgroups(7)): a process stays in its group whatever it starts and wherever that goes.

use std::{
    ffi::{CStr, CString, OsStr},
    fs, io, mem,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use super::super::check;

/// Opens a directory in which groups can be made. Any other one is an error.
pub(in crate::sys) fn open(dir: &OsStr) -> io::Result<OwnedFd> {
    let path = CString::new(dir.as_bytes())?;
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: a live C string.
    let fd = check(unsafe { libc::open(path.as_ptr(), flags) })?;
    // SAFETY: just opened; nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: an all-zero statfs is valid storage.
    let mut stat: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: live storage.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut stat) })?;
    // Each C library has a type of its own for it.
    if stat.f_type as libc::c_long != libc::CGROUP2_SUPER_MAGIC {
        return Err(io::Error::other("it is not in a hierarchy of control groups, version 2"));
    }
    Ok(fd)
}

/// Whether the directory is there no more: a file that each has is not.
pub(in crate::sys) fn is_removed(dir: BorrowedFd<'_>) -> bool {
    // SAFETY: a live C string.
    let found = check(unsafe { libc::faccessat(dir.as_raw_fd(), c"cgroup.procs".as_ptr(), libc::F_OK, 0) });
    found.is_err_and(|e| matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)))
}

/// Makes a group in a directory, and moves this process there.
pub(in crate::sys) fn join(dir: &OsStr, name: &CStr) -> io::Result<()> {
    let group = Path::new(dir).join(OsStr::from_bytes(name.to_bytes()));
    fs::create_dir(&group)?;
    let joined = match group.join("cgroup.kill").exists() {
        true => fs::write(group.join("cgroup.procs"), "0"),
        false => Err(io::Error::other("this kernel has no cgroup.kill (Linux 5.14)")),
    };
    if joined.is_err() {
        let _ = fs::remove_dir(&group);
    }
    joined
}

/// Kills all that is in a group. An error if there is no such group.
pub(in crate::sys) fn kill(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let file = CString::new([name.to_bytes(), b"/cgroup.kill"].concat())?;
    // SAFETY: a live C string.
    let fd = check(unsafe { libc::openat(dir.as_raw_fd(), file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) })?;
    // SAFETY: just opened; nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: one live byte.
    super::super::check_size(unsafe { libc::write(fd.as_raw_fd(), b"1".as_ptr().cast(), 1) }).map(drop)
}

/// Removes a group that has no process any more. `EBUSY` if it has.
pub(in crate::sys) fn remove(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: a live C string.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), libc::AT_REMOVEDIR) }).map(drop)
}
