//! What is macOS's own. `linux/` exports the same functions. Type-checked for Darwin in every check, and the paths
//! it leads to run on Linux under `--cfg tokio_run_in_process_portable`; it has not been run on a Mac.

pub(super) mod cgroup;
pub(super) mod huge;
pub(super) mod memory;
pub(super) mod text;

use std::{
    ffi::CStr,
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    time::Duration,
};

use super::check;
use crate::model::ExitStatus;

/// A descriptor whose sender closes it before it is received may be lost.
pub(crate) const SENT_FDS_ARE_SAFE: bool = false;
pub(super) const MAX_SIGNAL: i32 = 31;
/// `ru_maxrss` counts bytes here.
pub(super) const MAX_RSS_UNIT: u64 = 1;
/// Not here; `close_on_exec` does it a moment later.
pub(super) const MSG_CMSG_CLOEXEC: libc::c_int = 0;
/// Not here; `socket_pair` sets `SO_NOSIGPIPE`.
pub(super) const MSG_NOSIGNAL: libc::c_int = 0;

/// What `poll(2)` is asked for where a hang-up is looked for: asked for nothing, it watches nothing. For what can be
/// written, since to have shut down one's own reading side counts as a hang-up where it is asked for what can be read.
pub(super) const HANG_UP_EVENTS: libc::c_short = libc::POLLOUT;

/// None of the optional mechanisms.
pub(super) fn probe() -> u32 {
    0
}

pub(super) fn wait_for_usage(_pid: i32, _usage: &mut libc::rusage) -> io::Result<libc::siginfo_t> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn become_subreaper() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Nothing lists them where nothing inherits them.
pub(super) fn children() -> Option<Vec<i32>> {
    None
}

/// Nothing is compared with it: there are no pidfds.
pub(super) fn uptime() -> Duration {
    Duration::ZERO
}

/// See `uptime`.
pub(super) fn birth(_pid: i32) -> Option<Duration> {
    None
}

/// How many threads this process has.
pub(crate) fn thread_count() -> io::Result<usize> {
    // SAFETY: an all-zero proc_taskinfo is valid storage.
    let mut info: libc::proc_taskinfo = unsafe { mem::zeroed() };
    let size = mem::size_of_val(&info) as libc::c_int;
    // SAFETY: live storage of the size given.
    let got =
        unsafe { libc::proc_pidinfo(super::process::pid(), libc::PROC_PIDTASKINFO, 0, (&raw mut info).cast(), size) };
    if got != size {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(info.pti_threadnum).unwrap_or(usize::MAX))
}

/// Whether this thread is the only one.
pub(crate) fn is_alone() -> bool {
    thread_count().is_ok_and(|count| count == 1)
}

/// A process has no name of its own to set here; the thread gets it.
pub(crate) fn set_name(name: &CStr) {
    // SAFETY: a live C string.
    let _ = unsafe { libc::pthread_setname_np(name.as_ptr()) };
}

pub(super) fn errno() -> i32 {
    // SAFETY: touches no memory.
    let errno = unsafe { libc::__error() };
    // SAFETY: the pointer is this thread's errno, always valid.
    unsafe { *errno }
}

pub(super) fn set_errno(value: i32) {
    // SAFETY: touches no memory.
    let errno = unsafe { libc::__error() };
    // SAFETY: the pointer is this thread's errno, always valid.
    unsafe { *errno = value }
}

pub(super) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, fds.as_mut_ptr()) })?;
    let (a, b) = owned(fds);
    for fd in [&a, &b] {
        let on: libc::c_int = 1;
        // SAFETY: the value is a live int of the size given.
        let result = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NOSIGPIPE,
                (&raw const on).cast(),
                mem::size_of_val(&on) as libc::socklen_t,
            )
        };
        check(result)?;
    }
    Ok((a, b))
}

pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { libc::pipe(fds.as_mut_ptr()) })?;
    Ok(owned(fds))
}

fn owned([a, b]: [RawFd; 2]) -> (OwnedFd, OwnedFd) {
    // SAFETY: the kernel just made it, nobody else has it.
    let a = unsafe { OwnedFd::from_raw_fd(a) };
    // SAFETY: as above.
    let b = unsafe { OwnedFd::from_raw_fd(b) };
    close_on_exec(&a);
    close_on_exec(&b);
    (a, b)
}

/// What was at `to` is closed: the callers own that number. It is not `fd`.
pub(super) fn duplicate_to(fd: RawFd, to: RawFd, cloexec: bool) -> io::Result<()> {
    // SAFETY: touches no memory.
    check(unsafe { libc::dup2(fd, to) })?;
    // SAFETY: touches no memory.
    check(unsafe { libc::fcntl(to, libc::F_SETFD, if cloexec { libc::FD_CLOEXEC } else { 0 }) }).map(drop)
}

pub(super) fn close_on_exec(fd: &OwnedFd) {
    // SAFETY: touches no memory.
    let _ = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
}

pub(super) fn unread(_socket: RawFd) -> io::Result<libc::c_int> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn refuse_fds(_socket: RawFd) -> bool {
    false
}

pub(super) fn close_range(_first: RawFd, _last: RawFd) -> bool {
    false
}

/// What may be open: every number up to the size of the descriptor table.
pub(super) fn open_numbers() -> Vec<RawFd> {
    // SAFETY: touches no memory.
    let size = unsafe { libc::getdtablesize() };
    (0..size).collect()
}

pub(super) fn signal_on_change(_fd: RawFd, _signal: i32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn open_pidfd(_pid: i32) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn signal_pidfd(_pidfd: RawFd, _signal: i32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn exit_of_pidfd(_pidfd: RawFd) -> Option<ExitStatus> {
    None
}

/// A kqueue that becomes readable when the parent is gone, also while others hold copies of its sockets.
#[derive(Debug)]
pub(crate) struct ParentWatch(());

impl ParentWatch {
    /// A kqueue is not inherited over a fork, so there is nothing to make yet.
    pub(crate) fn new() -> Option<Self> {
        Some(Self(()))
    }

    /// What goes with an order to fork another zygote: nothing.
    pub(crate) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What came with it.
    pub(crate) fn from_fd(_fd: OwnedFd) -> Option<Self> {
        None
    }

    /// What a zygote has without one: it makes its own queue.
    pub(crate) fn inherited() -> Option<Self> {
        Some(Self(()))
    }

    /// In the zygote: the descriptor to wait for.
    pub(crate) fn into_fd(self, parent: i32) -> Option<OwnedFd> {
        // SAFETY: touches no memory.
        let queue = check(unsafe { libc::kqueue() }).ok()?;
        // SAFETY: the kernel just made it, nobody else has it.
        let queue = unsafe { OwnedFd::from_raw_fd(queue) };
        let watch = libc::kevent {
            ident: usize::try_from(parent).ok()?,
            filter: libc::EVFILT_PROC,
            flags: libc::EV_ADD,
            fflags: libc::NOTE_EXIT,
            data: 0,
            udata: ptr::null_mut(),
        };
        // SAFETY: one live change, no room for events.
        let added = unsafe { libc::kevent(queue.as_raw_fd(), &raw const watch, 1, ptr::null_mut(), 0, ptr::null()) };
        check(added).ok()?;
        Some(queue)
    }
}

/// The images that are loaded now, by their base address.
#[derive(Clone, Debug)]
pub(crate) struct CodeModules(Vec<u64>);

impl CodeModules {
    pub(crate) fn contain(&self, address: u64) -> bool {
        // SAFETY: an all-zero Dl_info is valid storage.
        let mut info: libc::Dl_info = unsafe { mem::zeroed() };
        // SAFETY: live storage; any address may be asked for.
        let found = unsafe { libc::dladdr(address as *const libc::c_void, &raw mut info) };
        found != 0 && self.0.contains(&(info.dli_fbase as u64))
    }
}

/// Lists the program and every library that is loaded now.
pub(crate) fn code_modules() -> CodeModules {
    #[expect(deprecated, reason = "the replacement crate only re-declares the same functions")]
    // SAFETY: touches no memory of ours.
    let count = unsafe { libc::_dyld_image_count() };
    let header = |i| {
        #[expect(deprecated, reason = "the replacement crate only re-declares the same functions")]
        // SAFETY: an index past the end gives null.
        let header = unsafe { libc::_dyld_get_image_header(i) };
        header as u64
    };
    CodeModules((0..count).map(header).collect())
}
