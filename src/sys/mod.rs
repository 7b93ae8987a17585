//! The kernel, one family of calls per file. Everything `unsafe` of the library is here and in `task.rs`.
//!
//! `linux/` and `macos/` export the same functions; what one of them lacks is a typed "not here". What differs
//! between kernels is a [capability](caps), probed once, which a test can switch off.

#![allow(unsafe_code, reason = "the fenced room: each block is one operation with its reason")]

pub(crate) mod arm;
pub(crate) mod caps;
pub(crate) mod cgroup;
pub(crate) mod env;
pub(crate) mod fd;
pub(crate) mod memory;
pub(crate) mod process;
pub(crate) mod reserved;
pub(crate) mod role;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod table;
pub(crate) mod text;
pub(crate) mod trace;
pub(crate) mod wake;

#[cfg(target_os = "linux")]
#[path = "linux/mod.rs"]
mod os;
#[cfg(target_os = "macos")]
#[path = "macos/mod.rs"]
mod os;
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!("tokio-run-in-process runs on Linux and macOS");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("tokio-run-in-process runs on 64-bit systems");

pub(crate) use os::{CodeModules, ParentWatch, SENT_FDS_ARE_SAFE, code_modules, is_alone, set_name, thread_count};

use std::io;

/// Turns the `-1` of a system call into the error it set.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same for calls that return a size.
fn check_size(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
