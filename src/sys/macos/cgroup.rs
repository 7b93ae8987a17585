//! There are no control groups here.

use std::{
    ffi::{CStr, OsStr},
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

pub(in crate::sys) fn open(_dir: &OsStr) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(in crate::sys) fn is_removed(_dir: BorrowedFd<'_>) -> bool {
    false
}

pub(in crate::sys) fn join(_dir: &OsStr, _name: &CStr) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(in crate::sys) fn kill(_dir: BorrowedFd<'_>, _name: &CStr) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(in crate::sys) fn remove(_dir: BorrowedFd<'_>, _name: &CStr) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
