//! What is Linux's own. `macos/` exports the same functions.

pub(super) mod cgroup;
pub(super) mod huge;
pub(super) mod memory;
pub(super) mod text;

use std::{
    ffi::CStr,
    fs, io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

use super::{caps::Capability, check};
use crate::model::ExitStatus;

/// A descriptor on its way is held by the kernel: its sender may close it.
pub(crate) const SENT_FDS_ARE_SAFE: bool = !cfg!(tokio_run_in_process_portable);
pub(super) const MAX_SIGNAL: i32 = 64;
/// `ru_maxrss` counts kilobytes here.
pub(super) const MAX_RSS_UNIT: u64 = 1024;
pub(super) const MSG_CMSG_CLOEXEC: libc::c_int = libc::MSG_CMSG_CLOEXEC;
pub(super) const MSG_NOSIGNAL: libc::c_int = libc::MSG_NOSIGNAL;
/// What `poll(2)` is asked for where a hang-up is looked for: it is told unasked.
pub(super) const HANG_UP_EVENTS: libc::c_short = 0;
/// Linux 6.16; not in `libc` yet.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Finds out what this kernel and container allow, by trying.
pub(super) fn probe() -> u32 {
    let mut found = Capability::Unread as u32 | Capability::TextAtFork as u32 | Capability::HugeText as u32;
    // SAFETY: touches no memory.
    if let Ok(pidfd) = open_pidfd(unsafe { libc::getpid() }) {
        // Signal 0 checks the permission (a container may forbid the call) and sends nothing.
        if signal_pidfd(pidfd.as_raw_fd(), 0).is_ok() {
            found |= Capability::Pidfd as u32;
        }
        if pidfd_info(pidfd.as_raw_fd()).is_ok_and(|info| info.mask & PIDFD_INFO_PID != 0 && info.mask_is_recent()) {
            found |= Capability::ExitInfo as u32;
        }
    }
    // A range that holds no descriptor.
    if close_range(RawFd::MAX - 1, RawFd::MAX) {
        found |= Capability::CloseRange as u32;
    }
    if is_subreaper().is_ok() {
        found |= Capability::Subreaper as u32;
    }
    if memory::sealable(0).and_then(memory::seal).is_ok() {
        found |= Capability::Seals as u32;
    }
    if let Ok((a, _b)) = socket_pair() {
        if refuse_fds(a.as_raw_fd()) {
            found |= Capability::RefuseFds as u32;
        }
        if signal_on_change(a.as_raw_fd(), libc::SIGKILL).is_ok() {
            found |= Capability::KillOnHangup as u32;
        }
    }
    found
}

fn is_subreaper() -> io::Result<bool> {
    let mut is: libc::c_int = 0;
    // SAFETY: a live int.
    check(unsafe { libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut is) })?;
    Ok(is != 0)
}

/// From now on this process is the parent of its descendants whose parent dies.
pub(super) fn become_subreaper() -> io::Result<()> {
    // SAFETY: touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) }).map(drop)
}

/// Looks at a child that has ended, with what it used, and leaves it. The C library's `waitid` does not ask for the usage.
pub(super) fn wait_for_usage(pid: i32, usage: &mut libc::rusage) -> io::Result<libc::siginfo_t> {
    // SAFETY: an all-zero siginfo_t is valid; it is plain data.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: both pointers are live for the call.
    let result = unsafe { libc::syscall(libc::SYS_waitid, libc::P_PID, pid, &raw mut info, flags, &raw mut *usage) };
    check(result as libc::c_int)?;
    Ok(info)
}

/// The children of this thread, if the kernel lists them (`CONFIG_PROC_CHILDREN`, proc_tid_children(5)). Nobody but this
/// thread may reap any, or some may be left out.
pub(super) fn children() -> Option<Vec<i32>> {
    let text = fs::read_to_string("/proc/thread-self/children").ok()?;
    text.split_ascii_whitespace().map(|pid| pid.parse().ok()).collect()
}

/// The time since this machine was started, sleep included.
pub(super) fn uptime() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live timespec; the clock is there since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// When a process was started, on the clock of `uptime`, rounded down to a hundredth of a second (proc_pid_stat(5)).
pub(super) fn birth(pid: i32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, which may have anything in it, is the second field; this is the 22nd.
    let ticks: u64 = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
    // SAFETY: touches no memory.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|&n| n > 0)?;
    Some(Duration::from_millis(ticks.checked_mul(1000)? / per_second))
}

/// How many threads this process has.
pub(crate) fn thread_count() -> io::Result<usize> {
    match fs::read_dir("/proc/self/task") {
        Ok(threads) => Ok(threads.count()),
        // No /proc, as in a bare chroot: `unshare(CLONE_VM)` changes nothing and fails if there is a second thread.
        Err(_) => match shares_memory()? {
            false => Ok(1),
            true => Ok(2),
        },
    }
}

/// Whether this thread is the only one, for one system call mostly. `false` if it cannot be told.
pub(crate) fn is_alone() -> bool {
    match shares_memory() {
        Ok(shares) => !shares,
        // The usual filters of containers forbid the call.
        Err(_) => fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1),
    }
}

fn shares_memory() -> io::Result<bool> {
    // SAFETY: with CLONE_VM alone the call only checks that nobody shares our memory (unshare(2)).
    match check(unsafe { libc::unshare(libc::CLONE_VM) }) {
        Ok(_) => Ok(false),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(true),
        Err(e) => Err(e),
    }
}

/// Names the calling thread, and with it a single-threaded process, for `ps` and `top`: 15 bytes are kept.
pub(crate) fn set_name(name: &CStr) {
    // SAFETY: a live C string.
    let _ = unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

pub(super) fn errno() -> i32 {
    // SAFETY: touches no memory.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the pointer is this thread's errno, always valid.
    unsafe { *errno }
}

pub(super) fn set_errno(value: i32) {
    // SAFETY: touches no memory.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the pointer is this thread's errno, always valid.
    unsafe { *errno = value }
}

pub(super) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) })?;
    Ok(owned(fds))
}

pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok(owned(fds))
}

fn owned([a, b]: [RawFd; 2]) -> (OwnedFd, OwnedFd) {
    // SAFETY: the kernel just made it, nobody else has it.
    let a = unsafe { OwnedFd::from_raw_fd(a) };
    // SAFETY: as above.
    let b = unsafe { OwnedFd::from_raw_fd(b) };
    (a, b)
}

/// What was at `to` is closed: the callers own that number. It is not `fd`.
pub(super) fn duplicate_to(fd: RawFd, to: RawFd, cloexec: bool) -> io::Result<()> {
    // SAFETY: touches no memory.
    check(unsafe { libc::dup3(fd, to, if cloexec { libc::O_CLOEXEC } else { 0 }) }).map(drop)
}

/// Descriptors arrive closed on exec already.
pub(super) fn close_on_exec(_fd: &OwnedFd) {}

/// How much the peer has not read yet, in the kernel's measure.
pub(super) fn unread(socket: RawFd) -> io::Result<libc::c_int> {
    let mut size: libc::c_int = 0;
    // SIOCOUTQ is another name of it.
    // SAFETY: a live int, which the call writes.
    check(unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut size) })?;
    Ok(size)
}

pub(super) fn refuse_fds(socket: RawFd) -> bool {
    let off: libc::c_int = 0;
    // SAFETY: the value is a live int of the size given.
    let result = unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const off).cast(),
            mem::size_of_val(&off) as u32,
        )
    };
    result == 0
}

pub(super) fn close_range(first: RawFd, last: RawFd) -> bool {
    // SAFETY: the caller owns every descriptor from `first` to `last`.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) == 0 }
}

/// What may be open: what /proc lists, or else every number up to the limit.
pub(super) fn open_numbers() -> Vec<RawFd> {
    let listed: Option<Vec<RawFd>> = fs::read_dir("/proc/self/fd")
        .ok()
        .map(|entries| entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect());
    listed.unwrap_or_else(|| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a live rlimit.
        let _ = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
        // The soft limit may have been lowered below descriptors that are open; the hard one cannot, but may be huge.
        (0..RawFd::try_from(limit.rlim_max.min(1 << 20)).unwrap_or(1 << 20)).collect()
    })
}

/// `F_SETSIG`: which signal an armed descriptor raises.
pub(super) fn signal_on_change(fd: RawFd, signal: i32) -> io::Result<()> {
    const F_SETSIG: libc::c_int = 10;
    // SAFETY: touches no memory.
    check(unsafe { libc::fcntl(fd, F_SETSIG, signal) }).map(drop)
}

pub(super) fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = check(fd as libc::c_int)?;
    // SAFETY: the kernel just made it, nobody else has it.
    super::fd::above_stdio(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn signal_pidfd(pidfd: RawFd, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, 0_usize, 0) };
    check(result as libc::c_int).map(drop)
}

const PIDFD_INFO_PID: u64 = 1;
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// `struct pidfd_info` of `<linux/pidfd.h>` in its first published size (64 bytes), Linux 6.13.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    ids: [u32; 11],
    exit_code: i32,
}

impl PidfdInfo {
    /// `PIDFD_INFO_EXIT` came with 6.15, and nothing in the answer of a living process tells it from 6.13.
    fn mask_is_recent(&self) -> bool {
        release().is_some_and(|release| release >= (6, 15))
    }
}

fn release() -> Option<(u32, u32)> {
    // SAFETY: an all-zero utsname is valid storage.
    let mut name: libc::utsname = unsafe { mem::zeroed() };
    // SAFETY: live storage.
    check(unsafe { libc::uname(&raw mut name) }).ok()?;
    // SAFETY: uname ends its strings with a zero.
    let release = unsafe { CStr::from_ptr(name.release.as_ptr()) }.to_str().ok()?;
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn pidfd_info(pidfd: RawFd) -> io::Result<PidfdInfo> {
    // _IOWR(0xFF, 11, struct pidfd_info)
    const PIDFD_GET_INFO: u64 = (3 << 30) | ((mem::size_of::<PidfdInfo>() as u64) << 16) | (0xFF << 8) | 11;
    let mut info = PidfdInfo { mask: PIDFD_INFO_PID | PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the struct is live and of the size that the request names.
    check(unsafe { libc::ioctl(pidfd, PIDFD_GET_INFO as _, &raw mut info) })?;
    Ok(info)
}

pub(super) fn exit_of_pidfd(pidfd: RawFd) -> Option<ExitStatus> {
    let info = pidfd_info(pidfd).ok()?;
    (info.mask & PIDFD_INFO_EXIT != 0).then(|| ExitStatus::from_raw(info.exit_code))
}

/// A descriptor that becomes readable when the parent is gone, also while others hold copies of its sockets.
#[derive(Debug)]
pub(crate) struct ParentWatch(OwnedFd);

impl ParentWatch {
    /// Made by the parent, before the fork.
    pub(crate) fn new() -> Option<Self> {
        super::process::open_pidfd(super::process::pid()).map(Self)
    }

    /// What goes with an order to fork another zygote.
    pub(crate) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    /// What came with it.
    pub(crate) fn from_fd(fd: OwnedFd) -> Option<Self> {
        Some(Self(fd))
    }

    /// What a zygote has without one: nothing.
    pub(crate) fn inherited() -> Option<Self> {
        None
    }

    /// In the zygote: the descriptor to wait for.
    pub(crate) fn into_fd(self, _parent: i32) -> Option<OwnedFd> {
        Some(self.0)
    }
}

/// The address ranges that hold code now.
#[derive(Clone, Debug)]
pub(crate) struct CodeModules(Vec<(u64, u64)>);

impl CodeModules {
    pub(crate) fn contain(&self, address: u64) -> bool {
        self.0.iter().any(|&(start, end)| (start..end).contains(&address))
    }
}

/// Lists the code of the program and of every library that is loaded now.
pub(crate) fn code_modules() -> CodeModules {
    let code = segments().into_iter().filter(|segment| segment.flags & libc::PF_X != 0);
    CodeModules(code.map(|segment| segment.range).collect())
}

/// Part of the program or of a library, as its file says that it is loaded: the program headers of elf(5).
struct Segment {
    range: (u64, u64),
    flags: u32,
    /// Of the program itself.
    own: bool,
}

fn segments() -> Vec<Segment> {
    #[derive(Default)]
    struct Found {
        /// How many objects were seen: the program, then its libraries.
        objects: usize,
        segments: Vec<Segment>,
    }
    extern "C" fn collect(info: *mut libc::dl_phdr_info, _size: usize, data: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the C library gives a live info.
        let info = unsafe { &*info };
        // SAFETY: `data` is the `Found` given below, used by nobody else during the call.
        let found = unsafe { &mut *data.cast::<Found>() };
        for i in 0..usize::from(info.dlpi_phnum) {
            // SAFETY: dlpi_phdr points to dlpi_phnum headers.
            let header = unsafe { info.dlpi_phdr.add(i) };
            // SAFETY: as above.
            let header = unsafe { &*header };
            if header.p_type == libc::PT_LOAD {
                let start = info.dlpi_addr.wrapping_add(header.p_vaddr);
                let range = (start, start.wrapping_add(header.p_memsz));
                // The program comes first.
                found.segments.push(Segment { range, flags: header.p_flags, own: found.objects == 0 });
            }
        }
        found.objects += 1;
        0
    }
    let mut found = Found::default();
    // SAFETY: the callback gets the `Found` it expects, for the length of the call.
    let _ = unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut found).cast()) };
    found.segments
}

fn page_size() -> usize {
    // SAFETY: touches no memory.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}
