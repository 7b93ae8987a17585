//! How a process ended, as the kernel tells it.

use std::{fmt, time::Duration};

use super::Signal;

/// How a worker's process ended, in the kernel's words.
///
/// ```
/// # use tokio_run_in_process::ExitStatus;
/// assert!(ExitStatus::Exited(0).success());
/// let status = ExitStatus::Exited(3);
/// assert_eq!((status.code(), status.signal()), (Some(3), None));
/// assert_eq!(status.to_string(), "exited with code 3");
/// ```
///
/// See [wait(2)](https://man7.org/linux/man-pages/man2/wait.2.html).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitStatus {
    /// It ended by itself with this exit code.
    Exited(i32),
    /// A signal ended it.
    #[non_exhaustive]
    Signaled {
        /// The signal.
        signal: Signal,
        /// The kernel wrote a core file.
        core_dumped: bool,
    },
    /// It is gone, but nobody is left who could say how: its zygote died and this kernel keeps no record.
    Unknown,
}

impl ExitStatus {
    /// Reads the status word of `wait(2)`, which is the same on Linux and macOS.
    pub(crate) const fn from_raw(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exited((status >> 8) & 0xff),
            signal => Self::Signaled { signal: Signal::from_number(signal), core_dumped: status & 0x80 != 0 },
        }
    }

    /// The exit code, if it ended by itself.
    pub const fn code(&self) -> Option<i32> {
        match self {
            Self::Exited(code) => Some(*code),
            _ => None,
        }
    }

    /// The signal, if one ended it.
    pub const fn signal(&self) -> Option<Signal> {
        match self {
            Self::Signaled { signal, .. } => Some(*signal),
            _ => None,
        }
    }

    /// Whether the kernel wrote a core file.
    pub const fn core_dumped(&self) -> bool {
        matches!(self, Self::Signaled { core_dumped: true, .. })
    }

    /// Whether it ended by itself with exit code 0.
    pub const fn success(&self) -> bool {
        matches!(self, Self::Exited(0))
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Signaled { signal, core_dumped: false } => write!(f, "killed by {signal}"),
            Self::Signaled { signal, core_dumped: true } => write!(f, "killed by {signal} (core dumped)"),
            Self::Unknown => f.write_str("ended, with a status that is not known"),
        }
    }
}

/// What a worker used, from its birth to its end.
///
/// See [getrusage(2)](https://man7.org/linux/man-pages/man2/getrusage.2.html).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Time on a processor in user code.
    pub user_time: Duration,
    /// Time on a processor in the kernel.
    pub system_time: Duration,
    /// The largest resident set, in bytes. It counts the pages shared with the zygote too.
    pub max_rss: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_word_is_read() {
        for code in 0..=255 {
            assert_eq!(ExitStatus::from_raw(code << 8), ExitStatus::Exited(code));
        }
        for signal in 1..=64 {
            for core in [false, true] {
                let status = ExitStatus::from_raw(signal | if core { 0x80 } else { 0 });
                assert_eq!(status, ExitStatus::Signaled { signal: Signal::from(signal), core_dumped: core });
                assert_eq!((status.code(), status.core_dumped()), (None, core));
            }
        }
    }
}
