//! What this kernel and container give. Probed once, before the zygote is forked, so every process agrees.
//!
//! The suite runs with all of them, with pidfd only (what most kernels in use have) and with none (the macOS-shaped
//! path, which `--cfg tokio_run_in_process_portable` fixes at compile time).

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

/// One mechanism that a kernel may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Capability {
    /// `pidfd_open(2)`, `pidfd_send_signal(2)`: Linux 5.3.
    Pidfd = 1,
    /// The exit status through a pidfd, also after the reap: Linux 6.15.
    ExitInfo = 1 << 1,
    /// `close_range(2)`: Linux 5.9.
    CloseRange = 1 << 2,
    /// `F_SETSIG` with SIGKILL on an armed socket: any Linux, unless a filter forbids it.
    KillOnHangup = 1 << 3,
    /// `SO_PASSRIGHTS`: Linux 6.16.
    RefuseFds = 1 << 4,
    /// `SIOCOUTQ`, and ECONNRESET for what was never read, on a socket pair: any Linux.
    Unread = 1 << 5,
    /// Guard pages in mappings of files, by which a mapping is copied at a fork: Linux 6.15. Found out by trying.
    TextAtFork = 1 << 6,
    /// Memory that can be sealed, `memfd_create(2)`: Linux 3.17.
    Seals = 1 << 7,
    /// `PR_SET_CHILD_SUBREAPER`: Linux 3.4.
    Subreaper = 1 << 8,
    /// Huge pages that the program's code can be moved to. Found out by trying.
    HugeText = 1 << 9,
}

/// A mask that lets everything through.
pub(crate) const ALL: u32 = u32::MAX;
/// Only pidfd: what most kernels in use have.
pub(crate) const PIDFD_ONLY: u32 = Capability::Pidfd as u32;

static MASK: AtomicU32 = AtomicU32::new(ALL);
static PROBED: OnceLock<u32> = OnceLock::new();

/// Switches capabilities off; for tests, before the first zygote.
pub(crate) fn mask(mask: u32) {
    MASK.store(mask, Ordering::Relaxed);
}

/// Whether this process may use the mechanism.
pub(crate) fn has(capability: Capability) -> bool {
    if cfg!(tokio_run_in_process_portable) {
        return false;
    }
    PROBED.get_or_init(super::os::probe) & MASK.load(Ordering::Relaxed) & capability as u32 != 0
}
