//! Captured output: a task's outcome, with what it wrote to stdout and stderr.
//!
//! It is a piped task of which nobody takes the readers: the driver keeps the beginning of each stream and counts the
//! rest, so a flood neither holds the worker up nor fills the memory.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    super::{dispatch::Prepared, process::Process, start, task::Task},
    Pipes, Stdio,
};
use crate::{
    error::Error,
    task::{AsyncTask, BlockingTask, Entry},
    wire::job::Host,
};

/// A task's outcome and what it wrote: what [`Task::output`] gives.
///
/// There is one whatever became of the task, since of one that panicked, was killed or timed out the last words matter
/// most: so the error is in here, and not around it. Of a task that did not begin both streams are empty.
///
/// ```
/// use tokio_run_in_process::{Task, block_on};
///
/// fn fails() -> u32 {
///     eprintln!("the disk is full");
///     std::process::abort()
/// }
///
/// block_on(async {
///     let output = Task::new().output_blocking(fails, ()).await;
///     assert!(output.result.unwrap_err().signal().is_some());
///     assert_eq!(output.stderr.text(), "the disk is full\n");
///     assert!(output.stdout.bytes.is_empty());
/// })
/// .unwrap();
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use = "an error is in its `result`"]
pub struct Output<T> {
    /// The task's outcome: what [`Task::run`] would have given.
    pub result: Result<T, Error>,
    /// What it wrote to stdout. Empty if that is not piped.
    pub stdout: Captured,
    /// What it wrote to stderr. Empty if that is not piped.
    pub stderr: Captured,
}

impl<T> Output<T> {
    fn of(result: Result<T, Error>) -> Self {
        Self { result, stdout: Captured::default(), stderr: Captured::default() }
    }
}

/// What was captured of one stream: its beginning, up to [`Task::output_limit`].
///
/// ```
/// use tokio_run_in_process::{Task, block_on};
///
/// block_on(async {
///     let task = Task::new().output_limit(5);
///     let stdout = task.output(async || print!("hello, world"), ()).await.stdout;
///     assert_eq!((stdout.text().as_ref(), stdout.dropped, stdout.total()), ("hello", 7, 12));
/// })
/// .unwrap();
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Captured {
    /// The first bytes of it.
    pub bytes: Vec<u8>,
    /// How many bytes came after those and were dropped.
    pub dropped: u64,
}

impl Captured {
    /// The bytes as text, with U+FFFD for what is not UTF-8. The limit may have cut a character in two.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }

    /// How many bytes the task wrote.
    pub fn total(&self) -> u64 {
        self.bytes.len() as u64 + self.dropped
    }
}

impl fmt::Debug for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Captured").field("text", &self.text()).field("dropped", &self.dropped).finish()
    }
}

/// The future of [`Task::output`] and its like: runs the task when it is polled, and ends it when it is dropped.
#[must_use = "futures do nothing unless they are awaited"]
pub struct RunOutput<T>(Pin<Box<dyn Future<Output = Output<T>> + Send>>);

impl<T: DeserializeOwned + Send + 'static> RunOutput<T> {
    fn new(prepared: Result<(Prepared, Pipes), Error>) -> Self {
        Self(Box::pin(async move {
            let started = match prepared {
                Ok((prepared, pipes)) => start::start::<T>(prepared, pipes).await,
                Err(error) => Err(error),
            };
            match started {
                // One that did not begin as well: its outcome says so.
                Ok((process, _)) => process.wait_with_output().await,
                Err(error) => Output::of(Err(error)),
            }
        }))
    }
}

impl<T> Future for RunOutput<T> {
    type Output = Output<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

impl<T> fmt::Debug for RunOutput<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunOutput")
    }
}

impl Task {
    /// How much is kept of what it writes to stdout, and as much of stderr, in bytes: by [`output`](Self::output), and
    /// for the reader of a [piped](Stdio::piped) stream that comes late. The rest is read all the same, so that the task
    /// goes on, and counted. Default 1 MiB.
    pub fn output_limit(mut self, bytes: u64) -> Self {
        self.output_limit = bytes;
        self
    }

    /// Runs an async function in a fresh process, and gives its outcome together with what it wrote to stdout and
    /// stderr, as [`std::process::Command::output`] does for programs.
    ///
    /// A stream that was set with [`stdout`](Self::stdout) or [`stderr`](Self::stderr) goes where it was set to, and is
    /// empty here.
    ///
    /// It is ready once the process is gone, since a task may write to the last: after a timeout that is when its grace
    /// period has made an end of it. What the process wrote is complete then, up to
    /// [`output_limit`](Self::output_limit). A grandchild that escaped and still holds the streams is not waited for.
    ///
    /// # Errors
    ///
    /// [`Output::result`] is an [`Error`], by cause, as with [`run`](Self::run).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the task, and what it wrote is lost.
    ///
    /// ```
    /// use tokio_run_in_process::{Task, block_on};
    ///
    /// async fn parse(text: String) -> i64 {
    ///     println!("parsing {text:?}");
    ///     text.parse().expect("a number")
    /// }
    ///
    /// block_on(async {
    ///     let output = Task::new().output(parse, "ten".to_owned()).await;
    ///     assert!(output.result.unwrap_err().is_panic());
    ///     assert_eq!(output.stdout.text(), "parsing \"ten\"\n");
    /// })
    /// .unwrap();
    /// ```
    pub fn output<F, A, M>(&self, function: F, arguments: A) -> RunOutput<F::Output>
    where
        F: AsyncTask<A, M>,
        A: Serialize + DeserializeOwned + 'static,
        F::Output: Serialize + DeserializeOwned + Send + 'static,
    {
        let task = self.capturing();
        RunOutput::new(task.prepare::<F, A>(Entry::of_async(function), task.async_host(), &arguments))
    }

    /// Runs a plain function in a fresh process, and gives its outcome together with what it wrote: as
    /// [`output`](Self::output).
    ///
    /// ```
    /// use tokio_run_in_process::{Task, block_on};
    ///
    /// block_on(async {
    ///     let output = Task::new().output_blocking(|n: u8| println!("{n} and more"), 7).await;
    ///     assert_eq!(output.stdout.text(), "7 and more\n");
    /// })
    /// .unwrap();
    /// ```
    pub fn output_blocking<F, A, M>(&self, function: F, arguments: A) -> RunOutput<F::Output>
    where
        F: BlockingTask<A, M>,
        A: Serialize + DeserializeOwned + 'static,
        F::Output: Serialize + DeserializeOwned + Send + 'static,
    {
        RunOutput::new(self.capturing().prepare::<F, A>(Entry::of_blocking(function), Host::Blocking, &arguments))
    }

    /// With a pipe where nothing was set.
    fn capturing(&self) -> Self {
        let mut task = self.clone();
        for stream in &mut task.stdio[1..] {
            stream.get_or_insert_with(Stdio::piped);
        }
        task
    }
}

impl<T: DeserializeOwned + Send + 'static> Process<T> {
    /// Waits until the process is gone, and gives the task's outcome together with what it wrote to those of stdout and
    /// stderr that are [piped](Stdio::piped) and were not taken: the first of it, up to [`Task::output_limit`]. As
    /// [`Task::output`] otherwise. A stdin pipe that nobody took is closed first.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the task: it has the handle.
    ///
    /// ```
    /// use tokio_run_in_process::{Stdio, Task, block_on};
    ///
    /// block_on(async {
    ///     let task = Task::new().stderr(Stdio::piped());
    ///     let process = task.open_blocking(|| eprintln!("a warning"), ()).await.unwrap();
    ///     println!("pid {}", process.pid());
    ///     assert_eq!(process.wait_with_output().await.stderr.text(), "a warning\n");
    /// })
    /// .unwrap();
    /// ```
    pub async fn wait_with_output(self) -> Output<T> {
        let mut output = Output::of(self.wait().await);
        if !self.is_ours() {
            // A fork of the parent: nobody here reads the pipes.
            return output;
        }
        for (number, captured) in [&mut output.stdout, &mut output.stderr].into_iter().enumerate() {
            // The handle keeps it too, and lets go of it if this future is dropped.
            if let Some(pipe) = self.output_pipe(number) {
                let (bytes, dropped) = pipe.whole().await;
                *captured = Captured { bytes, dropped };
            }
        }
        output
    }
}
