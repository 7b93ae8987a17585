//! The environment and the working directory of a worker, which has one thread when these are called.

use std::{
    ffi::{CStr, OsStr},
    io,
};

use super::check;

/// Sets one variable.
pub(crate) fn set(key: &OsStr, value: &OsStr) {
    // SAFETY: called by a worker before it runs user code, when it has one thread.
    unsafe { std::env::set_var(key, value) }
}

/// Removes one variable.
pub(crate) fn remove(key: &OsStr) {
    // SAFETY: called by a worker before it runs user code, when it has one thread.
    unsafe { std::env::remove_var(key) }
}

/// `chdir(2)`.
pub(crate) fn change_dir(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is a live C string.
    check(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

/// Flushes the buffers of the C library's streams, which native code in a task may have filled.
pub(crate) fn flush_c_streams() {
    // SAFETY: a null stream means all of them.
    let _ = unsafe { libc::fflush(std::ptr::null_mut()) };
}
