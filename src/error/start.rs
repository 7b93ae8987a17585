//! Why no zygote was started.

use std::{fmt, io, sync::Arc};

/// Why no zygote was started.
///
/// ```
/// use tokio_run_in_process::{StartError, init};
///
/// let _another = std::thread::spawn(std::thread::park);
/// assert!(matches!(init(), Err(StartError::MultiThreaded { threads: 2, .. })));
/// ```
/// Its `Debug` is its text: that is what a `main` that returns it prints, and `unwrap`.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A second thread exists; a fork would copy the locks it holds and not the thread.
    #[error(
        "cannot fork the zygote: this process has {threads} threads (this library's own among them, if it had a zygote \
         before). Call it first thing in main, before anything starts a thread:\n\n    fn main() {{\n        tokio_run_in_process::init().unwrap();\n        // ... then build the runtime\n    }}"
    )]
    #[non_exhaustive]
    MultiThreaded {
        /// How many there are.
        threads: usize,
    },
    /// A tokio runtime is running here, as it does in `#[tokio::main]`.
    #[error(
        "cannot fork the zygote inside a tokio runtime. Start it before the runtime, in a plain main instead of \
         #[tokio::main]:\n\n    fn main() {{\n        tokio_run_in_process::init().unwrap();\n        \
         tokio::runtime::Runtime::new().unwrap().block_on(async {{ /* ... */ }})\n    }}"
    )]
    InsideRuntime,
    /// A worker does not start zygotes.
    #[error("cannot start a zygote inside a worker: a worker does not start workers")]
    InsideWorker,
    /// `init` was called before.
    #[error("init was called before: the process-wide zygote exists. Use Zygote::builder() for another one")]
    AlreadyInitialized,
    /// This process is a fork of the one that called `init`.
    #[error("this process is a fork of the one that called init; only that one can use the zygote")]
    WrongProcess,
    /// An environment variable or an option cannot be used.
    #[error("cannot start the zygote: {name} is {value:?}, not {expected}")]
    #[non_exhaustive]
    Config {
        /// The variable or option.
        name: &'static str,
        /// What it says.
        value: String,
        /// What it should say.
        expected: &'static str,
    },
    /// So many warm workers need more descriptors than this program may have open.
    #[error(
        "cannot start the zygote: {needed} descriptors are needed and RLIMIT_NOFILE allows {limit}. Raise it (`ulimit \
         -n`, setrlimit) or ask for fewer warm workers"
    )]
    #[non_exhaustive]
    Descriptors {
        /// For what was asked for, and a few for the rest of the program.
        needed: u64,
        /// The soft limit.
        limit: u64,
    },
    /// The system refused.
    #[error("cannot start the zygote: failed to {step}: {source}")]
    #[non_exhaustive]
    System {
        /// What was being done.
        step: &'static str,
        /// What the system said.
        source: Arc<io::Error>,
    },
}

impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<StartError> for io::Error {
    fn from(error: StartError) -> Self {
        let kind = match &error {
            StartError::Config { .. } => io::ErrorKind::InvalidInput,
            StartError::System { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl StartError {
    pub(crate) fn system(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { step, source: Arc::new(source) }
    }
}
