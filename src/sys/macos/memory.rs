//! What macOS has of it.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

pub(in crate::sys) fn map_soon(_region: &mut [MaybeUninit<u8>], _huge: bool) {}

pub(in crate::sys) fn sealable(_size: u64) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(in crate::sys) fn allocate(_fd: &impl AsFd, _size: u64) -> io::Result<()> {
    Ok(())
}

pub(in crate::sys) fn seal(_fd: OwnedFd) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(in crate::sys) fn keep_from_forks(start: *mut libc::c_void, size: usize) {
    /// `<mach/vm_inherit.h>`; not in `libc`.
    const VM_INHERIT_NONE: libc::c_int = 2;
    // SAFETY: says something of a mapping only.
    let _ = unsafe { libc::minherit(start, size, VM_INHERIT_NONE) };
}
