//! A signal as a value with a name.
//!
//! The numbers differ between systems, so the names come from `nix`, which knows them; that is the one thing of the
//! platform this folder sees.

use std::fmt;

/// A signal number that knows its name.
///
/// ```
/// use tokio_run_in_process::Signal;
///
/// assert_eq!(Signal::TERM.to_string(), "SIGTERM");
/// assert_eq!(Signal::from(9), Signal::KILL);
/// ```
///
/// See [signal(7)](https://man7.org/linux/man-pages/man7/signal.7.html).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Signal(i32);

impl Signal {
    /// `SIGHUP`: the terminal is gone; by custom also "read your configuration again".
    pub const HUP: Self = Self(libc::SIGHUP);
    /// `SIGINT`: interrupted from the keyboard.
    pub const INT: Self = Self(libc::SIGINT);
    /// `SIGQUIT`: quit from the keyboard.
    pub const QUIT: Self = Self(libc::SIGQUIT);
    /// `SIGILL`: an instruction that the processor does not know.
    pub const ILL: Self = Self(libc::SIGILL);
    /// `SIGTRAP`: a breakpoint, or an assertion of compiled code.
    pub const TRAP: Self = Self(libc::SIGTRAP);
    /// `SIGABRT`: the process gave itself up.
    pub const ABRT: Self = Self(libc::SIGABRT);
    /// `SIGBUS`: a memory access that cannot be served: a file that was cut, say.
    pub const BUS: Self = Self(libc::SIGBUS);
    /// `SIGFPE`: a division that has no result.
    pub const FPE: Self = Self(libc::SIGFPE);
    /// `SIGKILL`: cannot be caught, blocked or ignored.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// `SIGUSR1`: free for the program.
    pub const USR1: Self = Self(libc::SIGUSR1);
    /// `SIGSEGV`: a memory access that the kernel refused.
    pub const SEGV: Self = Self(libc::SIGSEGV);
    /// `SIGUSR2`: free for the program.
    pub const USR2: Self = Self(libc::SIGUSR2);
    /// `SIGPIPE`: written to a pipe that nobody reads.
    pub const PIPE: Self = Self(libc::SIGPIPE);
    /// `SIGALRM`: a timer of the program's.
    pub const ALRM: Self = Self(libc::SIGALRM);
    /// `SIGTERM`: the polite request to end.
    pub const TERM: Self = Self(libc::SIGTERM);
    /// `SIGCONT`: goes on after a stop.
    pub const CONT: Self = Self(libc::SIGCONT);
    /// `SIGSTOP`: stops; cannot be caught, blocked or ignored.
    pub const STOP: Self = Self(libc::SIGSTOP);
    /// `SIGXCPU`: the limit of processor time (`RLIMIT_CPU`) is reached.
    pub const XCPU: Self = Self(libc::SIGXCPU);
    /// `SIGXFSZ`: a file would be larger than the limit (`RLIMIT_FSIZE`).
    pub const XFSZ: Self = Self(libc::SIGXFSZ);
    /// `SIGSYS`: a system call that is not allowed (seccomp).
    pub const SYS: Self = Self(libc::SIGSYS);
    /// `SIGIO`: a descriptor armed for signal-driven I/O changed.
    pub(crate) const IO: Self = Self(libc::SIGIO);
    /// `SIGCHLD`: a child ended or stopped.
    pub(crate) const CHLD: Self = Self(libc::SIGCHLD);

    pub(super) const fn from_number(number: i32) -> Self {
        Self(number)
    }

    /// The number, as the system counts it.
    ///
    /// ```
    /// # use tokio_run_in_process::Signal;
    /// assert_eq!(Signal::KILL.number(), 9);
    /// ```
    pub const fn number(self) -> i32 {
        self.0
    }
}

impl From<i32> for Signal {
    fn from(number: i32) -> Self {
        Self(number)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match nix::sys::signal::Signal::try_from(self.0) {
            Ok(signal) => f.write_str(signal.as_str()),
            // Real-time signals: glibc and musl keep the first two or three of 32..=64 for themselves.
            Err(_) if (34..=64).contains(&self.0) => write!(f, "SIGRTMIN+{}", self.0 - 34),
            Err(_) => write!(f, "signal {}", self.0),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::Signal;

    #[test]
    fn every_signal_has_a_name() {
        assert_eq!(Signal::SEGV.to_string(), "SIGSEGV");
        assert_eq!(Signal::from(64).to_string(), "SIGRTMIN+30");
        assert_eq!(Signal::from(99).to_string(), "signal 99");
        assert_eq!(format!("{:?}", Signal::INT), "SIGINT");
    }
}
