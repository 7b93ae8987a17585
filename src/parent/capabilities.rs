//! What this kernel and container give, for the user to see.

use std::fmt;

use super::zygote::Zygote;
use crate::sys::caps::{Capability, has};

/// The mechanisms of the kernel that the library found, when the first zygote was started: what
/// [`Zygote::capabilities`] gives. Where one is missing (an old kernel, a seccomp profile, macOS), another way is used;
/// each field says what is different then.
///
/// ```
/// let zygote = tokio_run_in_process::Zygote::builder().start().unwrap();
/// let capabilities = zygote.capabilities();
/// println!("{capabilities}");
/// if !capabilities.refuses_descriptors {
///     println!("a hostile worker can send this program descriptors; they are closed unread");
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// `pidfd_open(2)` and `pidfd_send_signal(2)`, Linux 5.3. Without: signals go through the zygote, so none can be sent
    /// while it is dead or stopped; that the program is gone is seen by the end of its sockets only, which a process
    /// that holds copies of them delays.
    pub pidfd: bool,
    /// How a process ended can be asked of its pidfd (`PIDFD_GET_INFO`), Linux 6.15. Without: a worker's exit may stay
    /// unknown if its zygote and the ancestor died.
    pub exit_info: bool,
    /// `PR_SET_CHILD_SUBREAPER`, Linux 3.4. Without: the exit of a worker whose zygote died has no usage, and is known only
    /// as far as `exit_info` goes.
    pub subreaper: bool,
    /// The kernel kills a worker when the other end of its socket is closed (`F_SETSIG`). Without: a signal handler in the
    /// worker does, if the task did not replace it.
    pub kill_on_hang_up: bool,
    /// `close_range(2)`, Linux 5.9. Without: descriptors are closed one by one, so start-up takes longer.
    pub close_range: bool,
    /// This program's sockets refuse descriptors (`SO_PASSRIGHTS`), Linux 6.16. Without: one that a hostile worker sends is
    /// closed unread, and to close it can block for as long as that worker likes.
    pub refuses_descriptors: bool,
    /// It can be asked whether a job was read (`SIOCOUTQ`). Without: workers say that they begin, one message more.
    pub sees_unread_jobs: bool,
    /// Memory can be sealed (`memfd_create(2)`), Linux 3.17. Without: a [`Shared`](crate::Shared) is shared memory of
    /// which workers get a descriptor that cannot write.
    pub sealed_memory: bool,
    /// The zygote's code is on huge pages: feature `huge-text`, in a program that was linked for it (see the README). Without:
    /// forks take longer, most of all in a program that is linked statically.
    pub huge_text: bool,
}

impl Zygote {
    /// What this kernel and container give.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities {
            pidfd: has(Capability::Pidfd),
            exit_info: has(Capability::ExitInfo),
            subreaper: has(Capability::Subreaper),
            kill_on_hang_up: has(Capability::KillOnHangup),
            close_range: has(Capability::CloseRange),
            refuses_descriptors: has(Capability::RefuseFds),
            sees_unread_jobs: has(Capability::Unread),
            sealed_memory: has(Capability::Seals),
            huge_text: self.0.lineage.has_huge_text(),
        }
    }
}

impl fmt::Display for Capabilities {
    /// All of them in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            ("pidfd", self.pidfd),
            ("exit_info", self.exit_info),
            ("subreaper", self.subreaper),
            ("kill_on_hang_up", self.kill_on_hang_up),
            ("close_range", self.close_range),
            ("refuses_descriptors", self.refuses_descriptors),
            ("sees_unread_jobs", self.sees_unread_jobs),
            ("sealed_memory", self.sealed_memory),
            ("huge_text", self.huge_text),
        ];
        for (n, (name, there)) in all.into_iter().enumerate() {
            let space = if n == 0 { "" } else { ", " };
            write!(f, "{space}{name}: {}", if there { "yes" } else { "no" })?;
        }
        Ok(())
    }
}
