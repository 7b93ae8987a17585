//! What can go wrong, typed by cause.

mod start;

use std::{error::Error as StdError, fmt, io, sync::Arc, time::Duration};

pub use start::StartError;

use crate::{
    model::{ExitStatus, PanicReport, Phase, Signal},
    wire::payload::CodecError,
};

/// The task that an [`Error`] is about: its name, and its worker's pid if it had one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskId {
    pub(crate) name: Arc<str>,
    pub(crate) pid: Option<u32>,
}

impl TaskId {
    /// The name given to the task, or else the path of its function.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pid of its worker. The process may be gone, and the number in use by another.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "task `{}` (pid {pid})", self.name),
            None => write!(f, "task `{}`", self.name),
        }
    }
}

/// Why a task gave no value. One task has one outcome; asked again, a [`Process`](crate::Process) gives the same.
///
/// ```
/// use tokio_run_in_process::{Error, run_in_process};
///
/// async fn leaves() {
///     std::process::exit(3)
/// }
///
/// tokio_run_in_process::block_on(async {
///     match run_in_process(leaves, ()).await {
///         Err(Error::Exited { code, .. }) => assert_eq!(code, 3),
///         other => panic!("{other:?}"),
///     }
/// })
/// .unwrap();
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// There is no zygote: call [`init`](crate::init) first thing in `main`, or use a [`Zygote`](crate::Zygote).
    NotInitialized,
    /// A worker does not start workers.
    InsideWorker,
    /// This process is a fork of the one that started the zygote; only that one can use it.
    WrongProcess,
    /// The zygote was shut down ([`Zygote::shutdown`](crate::Zygote::shutdown)) before the task started, or the tokio runtime
    /// that polled the future was shut down while the task was under way, and the task was ended.
    ShutDown,
    /// An option cannot be used: a variable's name with `=` in it, say.
    #[non_exhaustive]
    InvalidOption {
        /// The task.
        task: TaskId,
        /// Which, and why.
        reason: String,
    },
    /// The function lies in code that was loaded after the zygote was forked.
    #[non_exhaustive]
    UnknownCode {
        /// The task.
        task: TaskId,
    },
    /// The arguments did not encode. Nothing was started.
    #[non_exhaustive]
    Encode {
        /// The task.
        task: TaskId,
        /// In the words of the codec or of the value.
        reason: String,
    },
    /// The future was polled on a tokio runtime without I/O: build it with `enable_all()` or `enable_io()`. (In a program
    /// built with `panic = "abort"` it is tokio's own panic that says so, and ends the program.)
    #[non_exhaustive]
    NoReactor {
        /// The task.
        task: TaskId,
    },
    /// No worker could be started, or it could not be made ready: the task did not run. (Or a
    /// [`Runtime`](crate::Runtime) of your own returned before the task was done.)
    #[non_exhaustive]
    Spawn {
        /// The task.
        task: TaskId,
        /// What was being done.
        step: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// As many tasks wait for their turn as may ([`ZygoteBuilder::max_queued`](crate::ZygoteBuilder::max_queued)). The task
    /// did not run.
    #[non_exhaustive]
    Saturated {
        /// The task.
        task: TaskId,
        /// How many may wait.
        limit: usize,
    },
    /// The worker ended before the task began. The task did not run.
    #[non_exhaustive]
    EndedEarly {
        /// The task.
        task: TaskId,
        /// How it ended.
        status: ExitStatus,
    },
    /// A limit cut the task.
    #[non_exhaustive]
    TimedOut {
        /// The task.
        task: TaskId,
        /// Where it was.
        phase: Phase,
        /// The limit of that phase.
        limit: Duration,
    },
    /// The task cancelled itself ([`worker::cancel`](crate::worker::cancel)), or `shutdown()` ended it.
    #[non_exhaustive]
    Cancelled {
        /// The task.
        task: TaskId,
    },
    /// The task panicked.
    #[non_exhaustive]
    Panicked {
        /// The task.
        task: TaskId,
        /// Message, place and call chain.
        report: Arc<PanicReport>,
    },
    /// The process ended by itself without a result; with code 0 too.
    #[non_exhaustive]
    Exited {
        /// The task.
        task: TaskId,
        /// The exit code.
        code: i32,
    },
    /// A signal ended the process.
    #[non_exhaustive]
    Signaled {
        /// The task.
        task: TaskId,
        /// The signal.
        signal: Signal,
        /// The kernel wrote a core file.
        core_dumped: bool,
    },
    /// The arguments did not decode in the worker, the result did not encode there, or it did not decode here.
    #[non_exhaustive]
    Decode {
        /// The task.
        task: TaskId,
        /// Which of them.
        what: Coded,
        /// In the words of the codec or of the value.
        reason: String,
    },
    /// The result is larger than [`Task::result_limit`](crate::Task::result_limit) allows, or the arguments are larger than
    /// [`Task::argument_limit`](crate::Task::argument_limit); then nothing was started.
    #[non_exhaustive]
    TooLarge {
        /// The task.
        task: TaskId,
        /// The arguments or the result.
        what: Coded,
        /// Its encoded size, in bytes.
        size: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The worker sent what the protocol does not allow: its memory is damaged, or its code hostile.
    #[non_exhaustive]
    Protocol {
        /// The task.
        task: TaskId,
        /// What it sent.
        reason: String,
    },
    /// The zygote died, and with it the way to start the task or to learn how it ended.
    ///
    /// Most deaths of a zygote are not seen: another one takes its place, tasks that run go on, and those that did not begin
    /// go to the next one. This is what is left: no zygote came up within the task's startup timeout, or there is none to
    /// fork it from (`started` is `Some(false)`), or it cannot be known how far the task came.
    #[non_exhaustive]
    ZygoteLost {
        /// The task.
        task: TaskId,
        /// Whether the task had started: only `Some(false)` is certain not to have run.
        started: Option<bool>,
    },
}

/// What did not decode or encode, or is too large: see [`Error::Decode`] and [`Error::TooLarge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Coded {
    /// The arguments, in the worker.
    Arguments,
    /// The result, while the worker encoded it.
    ResultInWorker,
    /// The result, in this process.
    Result,
}

impl Error {
    /// The task that the error is about, if it is about one.
    pub fn task(&self) -> Option<&TaskId> {
        match self {
            Self::NotInitialized | Self::InsideWorker | Self::WrongProcess | Self::ShutDown => None,
            Self::InvalidOption { task, .. }
            | Self::UnknownCode { task }
            | Self::Encode { task, .. }
            | Self::NoReactor { task }
            | Self::Spawn { task, .. }
            | Self::Saturated { task, .. }
            | Self::EndedEarly { task, .. }
            | Self::TimedOut { task, .. }
            | Self::Cancelled { task }
            | Self::Panicked { task, .. }
            | Self::Exited { task, .. }
            | Self::Signaled { task, .. }
            | Self::Decode { task, .. }
            | Self::TooLarge { task, .. }
            | Self::Protocol { task, .. }
            | Self::ZygoteLost { task, .. } => Some(task),
        }
    }

    pub(crate) fn encode(task: TaskId, error: CodecError) -> Self {
        match error {
            CodecError::Invalid(reason) => Self::Encode { task, reason },
            CodecError::TooLarge { size, limit } => Self::TooLarge { task, what: Coded::Arguments, size, limit },
            CodecError::System(errno) => {
                let source = Arc::new(io::Error::from_raw_os_error(errno));
                Self::Spawn { task, step: "copy a descriptor of its arguments".to_owned(), source }
            }
        }
    }

    /// The same of another task: what became of a pool's worker is the outcome of the task that it had.
    pub(crate) fn about(mut self, other: TaskId) -> Self {
        match &mut self {
            Self::NotInitialized | Self::InsideWorker | Self::WrongProcess | Self::ShutDown => {}
            Self::InvalidOption { task, .. }
            | Self::UnknownCode { task }
            | Self::Encode { task, .. }
            | Self::NoReactor { task }
            | Self::Spawn { task, .. }
            | Self::Saturated { task, .. }
            | Self::EndedEarly { task, .. }
            | Self::TimedOut { task, .. }
            | Self::Cancelled { task }
            | Self::Panicked { task, .. }
            | Self::Exited { task, .. }
            | Self::Signaled { task, .. }
            | Self::Decode { task, .. }
            | Self::TooLarge { task, .. }
            | Self::Protocol { task, .. }
            | Self::ZygoteLost { task, .. } => *task = other,
        }
        self
    }

    /// Whether the task certainly did not run and the same call may succeed later: the system lacked something for the
    /// moment, or the worker was killed before it began.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_run_in_process::{Error, Run};
    ///
    /// async fn persistently<T>(start: impl Fn() -> Run<T>) -> Result<T, Error> {
    ///     for seconds in [1, 2, 4] {
    ///         match start().await {
    ///             Err(e) if e.is_retryable() => tokio::time::sleep(Duration::from_secs(seconds)).await,
    ///             outcome => return outcome,
    ///         }
    ///     }
    ///     start().await
    /// }
    ///
    /// tokio_run_in_process::block_on(async {
    ///     assert_eq!(persistently(|| tokio_run_in_process::run_in_process(async || 42, ())).await.unwrap(), 42);
    /// })
    /// .unwrap();
    /// ```
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Spawn { source, .. } => is_transient(source),
            Self::Saturated { .. } | Self::EndedEarly { .. } => true,
            Self::TimedOut { phase, .. } => matches!(phase, Phase::Queued | Phase::Starting),
            _ => false,
        }
    }

    /// Whether a limit cut the task.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::TimedOut { .. })
    }

    /// Whether the task was cancelled, by itself or by `shutdown()`.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled { .. })
    }

    /// Whether the task panicked.
    pub fn is_panic(&self) -> bool {
        matches!(self, Self::Panicked { .. })
    }

    /// The signal that ended the worker, if one did.
    pub fn signal(&self) -> Option<Signal> {
        match self {
            Self::Signaled { signal, .. } => Some(*signal),
            _ => None,
        }
    }

    /// The code that the worker exited with, if it exited without a result.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Exited { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The panic's report, if the task panicked.
    pub fn panic(&self) -> Option<&PanicReport> {
        match self {
            Self::Panicked { report, .. } => Some(report),
            _ => None,
        }
    }
}

/// Lacks that pass: processes, memory, descriptors, descriptors in flight.
fn is_transient(error: &io::Error) -> bool {
    const TRANSIENT: [i32; 7] =
        [libc::EAGAIN, libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ETOOMANYREFS, libc::EINTR];
    error.raw_os_error().is_some_and(|errno| TRANSIENT.contains(&errno))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInitialized => f.write_str(
                "no zygote: call tokio_run_in_process::init() first thing in main, before any thread or runtime",
            ),
            Self::InsideWorker => f.write_str("a worker does not start workers: start them from the parent"),
            Self::WrongProcess => {
                f.write_str("this process is a fork of the one that started the zygote; only that one can use it")
            }
            Self::ShutDown => f.write_str(
                "the zygote was shut down before the task started, or the runtime that waited for it, which ended it",
            ),
            Self::InvalidOption { task, reason } => write!(f, "{task} has an invalid option: {reason}"),
            Self::UnknownCode { task } => write!(
                f,
                "{task} lies in code that was loaded after the zygote was forked: load libraries before `init`"
            ),
            Self::Encode { task, reason } => write!(f, "the arguments of {task} do not encode: {reason}"),
            Self::NoReactor { task } => {
                write!(f, "{task} was polled on a tokio runtime without I/O: build the runtime with `enable_all()`")
            }
            Self::Spawn { task, step, source } => write!(f, "{task} could not start: failed to {step}: {source}"),
            Self::Saturated { task, limit } => write!(f, "{task} was refused: {limit} tasks wait already (max_queued)"),
            Self::EndedEarly { task, status } => write!(f, "the worker of {task} {status} before the task began"),
            Self::TimedOut { task, phase, limit } => match phase {
                Phase::Queued => write!(f, "{task} waited for its turn longer than {limit:?}"),
                Phase::Starting => write!(f, "the worker of {task} was not ready within {limit:?} and was killed"),
                Phase::Running => write!(f, "{task} ran longer than {limit:?} and was ended"),
            },
            Self::Cancelled { task } => write!(f, "{task} was cancelled"),
            Self::Panicked { task, report } => {
                write!(f, "{task} panicked: {report}")
            }
            Self::Exited { task, code } => write!(f, "{task} exited with code {code} and gave no result"),
            Self::Signaled { task, signal, core_dumped } => {
                write!(f, "{task} was killed by {signal}")?;
                if *core_dumped { f.write_str(" (core dumped)") } else { Ok(()) }
            }
            Self::Decode { task, what, reason } => match what {
                Coded::Arguments => write!(f, "the arguments of {task} do not decode in its worker: {reason}"),
                Coded::ResultInWorker => write!(f, "the result of {task} does not encode in its worker: {reason}"),
                Coded::Result => write!(f, "the result of {task} does not decode: {reason}"),
            },
            Self::TooLarge { task, what, size, limit } => {
                let (what, setting) = match what {
                    Coded::Arguments => ("the arguments of", "argument_limit"),
                    Coded::ResultInWorker | Coded::Result => ("the result of", "result_limit"),
                };
                write!(f, "{what} {task}: {size} bytes where {setting} allows {limit}")
            }
            Self::Protocol { task, reason } => write!(f, "the worker of {task} broke the protocol: {reason}"),
            Self::ZygoteLost { task, started } => match started {
                Some(false) => write!(f, "the zygote is gone; {task} did not start"),
                Some(true) => write!(f, "the zygote is gone while {task} ran; how it ended is not known"),
                None => write!(f, "the zygote is gone; whether {task} started is not known"),
            },
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Spawn { source, .. } => Some(&**source),
            _ => None,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::TimedOut { .. } => io::ErrorKind::TimedOut,
            Error::Spawn { source, .. } => source.kind(),
            Error::Saturated { .. } => io::ErrorKind::ResourceBusy,
            Error::Encode { .. } | Error::InvalidOption { .. } => io::ErrorKind::InvalidInput,
            Error::Decode { .. } | Error::Protocol { .. } | Error::TooLarge { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_task_pid_and_signal() {
        let task = TaskId { name: "parse".into(), pid: Some(77) };
        let error = Error::Signaled { task: task.clone(), signal: Signal::SEGV, core_dumped: false };
        assert_eq!(error.to_string(), "task `parse` (pid 77) was killed by SIGSEGV");
        assert_eq!(error.signal(), Some(Signal::SEGV));
        assert_eq!(error.task(), Some(&task));
    }

    #[test]
    fn what_may_be_tried_again_is_marked() {
        let task = TaskId { name: "t".into(), pid: None };
        let spawn = |errno| Error::Spawn {
            task: task.clone(),
            step: "fork".into(),
            source: Arc::new(io::Error::from_raw_os_error(errno)),
        };
        assert!(spawn(libc::EAGAIN).is_retryable());
        assert!(!spawn(libc::ENOENT).is_retryable());
        assert!(!Error::NotInitialized.is_retryable());
        let timed = Error::TimedOut { task, phase: Phase::Running, limit: Duration::ZERO };
        assert!(timed.is_timeout() && !timed.is_retryable());
        assert_eq!(io::Error::from(timed).kind(), io::ErrorKind::TimedOut);
    }
}
