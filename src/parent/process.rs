//! The handle to a task that runs in the background.

use std::{
    fmt,
    future::{Future, IntoFuture},
    io,
    marker::PhantomData,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use serde::de::DeserializeOwned;

use super::{
    decode,
    driver::Driver,
    line::Line,
    stdio::{Outlet, OutputPipe, PipeReader, PipeWriter, Pipes},
    worker::{Exit, Status, Worker},
    zygote::Zygote,
};
use crate::{
    error::{Error, TaskId},
    model::{Cause, Event, ExitStatus, Signal, State, Usage},
};

/// A task that runs in a process of its own: what [`open_in_process`](crate::open_in_process) gives.
///
/// All methods take `&self`, so one branch of a `select!` can wait while another ends the task. The driver reads the
/// outcome as it comes, so [`state`](Self::state) and [`try_wait`](Self::try_wait) are live without polling, and the
/// outcome stays: asked twice, it is the same.
///
/// Dropping the handle ends the task: SIGTERM at once, SIGKILL at the end of its grace period. [`detach`](Self::detach)
/// lets go of it without that.
///
/// ```
/// use tokio_run_in_process::{Error, Signal, State, block_on, open_in_process};
///
/// async fn sleepy() {
///     tokio::time::sleep(std::time::Duration::from_secs(60)).await
/// }
///
/// block_on(async {
///     let process = open_in_process(sleepy, ()).await.unwrap();
///     assert_eq!(process.state(), State::Executing);
///     process.terminate().unwrap();
///     match process.wait().await {
///         Err(Error::Signaled { signal, .. }) => assert_eq!(signal, Signal::TERM),
///         other => panic!("{other:?}"),
///     }
/// })
/// .unwrap();
/// ```
#[must_use = "dropping it ends the task: keep it, wait for it, or `detach` it"]
pub struct Process<T> {
    zygote: Zygote,
    worker: Arc<Worker>,
    driver: &'static Driver,
    stdin: Mutex<Option<PipeWriter>>,
    outputs: [Mutex<Option<Arc<OutputPipe>>>; 2],
    detached: bool,
    _value: PhantomData<fn() -> T>,
}

/// The future of `process.await`, which is [`Process::wait`] and then lets go of the handle.
pub type Wait<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

impl<T> Process<T> {
    /// Gives the conversation to the driver.
    pub(super) fn of(line: Line, zygote: Zygote) -> Self {
        let worker = line.worker().clone();
        let driver = line.driver();
        let talker = worker.clone();
        let line = line.sent();
        driver.spawn(async move {
            let outcome = match line.register() {
                Ok(conversation) => conversation.hold().await,
                Err(e) => Err(e),
            };
            talker.status.send_modify(|status| status.outcome = Some(Arc::new(outcome)));
        });
        let (stdin, outputs) = (Mutex::default(), [Mutex::default(), Mutex::default()]);
        Self { zygote, worker, driver, stdin, outputs, detached: false, _value: PhantomData }
    }

    /// Lets the driver serve its pipes.
    pub(super) fn connect(&mut self, pipes: Pipes) -> Result<(), Error> {
        let (driver, worker) = (self.driver, self.worker.clone());
        let failed = |e| Error::Spawn { task: worker.task_id(), step: "watch a pipe".to_owned(), source: Arc::new(e) };
        let output = |outlet: Option<Outlet>| {
            let connected = outlet.map(|outlet| outlet.connect(driver, worker.clone())).transpose();
            connected.map(|pipe| Mutex::new(pipe.flatten())).map_err(failed)
        };
        let [stdout, stderr] = pipes.outputs;
        self.stdin = Mutex::new(pipes.stdin.map(|pipe| PipeWriter::new(driver, pipe)).transpose().map_err(failed)?);
        self.outputs = [output(stdout)?, output(stderr)?];
        Ok(())
    }

    /// Waits for a status.
    pub(super) async fn wait_until(&self, condition: impl FnMut(&Status) -> bool) -> Status {
        self.worker.wait_until(condition).await
    }

    pub(super) fn task_id(&self) -> TaskId {
        self.worker.task_id()
    }

    /// What is read of its stdout (0) or stderr (1), if that is piped and nobody took it.
    pub(super) fn output_pipe(&self, number: usize) -> Option<Arc<OutputPipe>> {
        self.outputs[number].lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<T> Process<T> {
    /// The worker's pid. While the task executes it means this worker and no other process; once [`state`](Self::state)
    /// is [`State::Exited`] the number may be in use by another.
    pub fn pid(&self) -> u32 {
        self.status().pid.unwrap_or_default()
    }

    /// Whether this is the handle, and not a copy of it in a fork of the parent.
    pub(super) fn is_ours(&self) -> bool {
        self.zygote.0.check_owner().is_ok()
    }

    /// Whether its process counts towards those that there may be.
    pub(super) fn holds_a_place(&self) -> bool {
        // Not by its status: that is told of the exit when the place is free already.
        self.driver.roster().knows(self.worker.id)
    }

    /// The name given to the task, or else the path of its function.
    pub fn name(&self) -> &str {
        &self.worker.name
    }

    fn status(&self) -> Status {
        self.worker.status.borrow().clone()
    }

    /// Where the task is.
    pub fn state(&self) -> State {
        self.worker.status.borrow().state()
    }

    /// Waits until the task is in `state` or after it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    ///
    /// ```
    /// use tokio_run_in_process::{State, block_on, open_in_process};
    ///
    /// block_on(async {
    ///     let process = open_in_process(async || 42, ()).await.unwrap();
    ///     process.wait_for_state(State::Finished).await;
    ///     assert_eq!(process.try_wait().unwrap().unwrap(), 42);
    /// })
    /// .unwrap();
    /// ```
    pub async fn wait_for_state(&self, state: State) {
        self.worker.wait_until(|status| status.state().is_on_or_after(state)).await;
    }

    /// Waits for the process to be gone, and tells how it ended and what it used. That is another question than the
    /// task's outcome: a value comes before the exit, and a task that was cut by a limit is known to be before its
    /// process is gone. If its zygote and the one that inherited its workers died first, the usage is not known, and perhaps
    /// not the status; in a fork of the parent nothing is.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    ///
    /// ```
    /// use tokio_run_in_process::{block_on, open_in_process};
    ///
    /// block_on(async {
    ///     let process = open_in_process(async || 42, ()).await.unwrap();
    ///     let (status, usage) = process.exited().await;
    ///     assert!(status.success());
    ///     println!("it used {usage:?}");
    /// })
    /// .unwrap();
    /// ```
    pub async fn exited(&self) -> (ExitStatus, Option<Usage>) {
        if self.zygote.0.check_owner().is_err() {
            // A fork of the parent: nobody here will ever hear of it.
            return (ExitStatus::Unknown, None);
        }
        let status = self.worker.wait_until(|status| status.state() == State::Exited).await;
        match status.exit {
            Some(Exit::Reaped { status, usage }) => (status, usage),
            Some(Exit::NotForked(_) | Exit::Lost) | None => (ExitStatus::Unknown, None),
        }
    }

    /// Sends a signal to the process. Only to this one: the library's handle cannot mean another, whatever becomes of
    /// the pid.
    ///
    /// # Errors
    ///
    /// `ESRCH` if the process is gone, `EINVAL` if there is no such signal; [`Error::WrongProcess`] in a fork of the
    /// parent.
    pub fn send_signal(&self, signal: impl Into<Signal>) -> io::Result<()> {
        self.zygote.0.check_owner().map_err(io::Error::other)?;
        let signal = signal.into();
        if !(1..=64).contains(&signal.number()) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.driver.roster().signal(self.worker.id, signal)
    }

    /// Sends SIGTERM. A task that did not take it over is dropped, and its outcome names the signal. There is no
    /// escalation: that is [`shutdown`](Self::shutdown).
    ///
    /// # Errors
    ///
    /// As [`send_signal`](Self::send_signal).
    pub fn terminate(&self) -> io::Result<()> {
        self.send_signal(Signal::TERM)
    }

    /// Sends SIGKILL to the process; what it started in its process group dies with it.
    ///
    /// # Errors
    ///
    /// As [`send_signal`](Self::send_signal).
    ///
    /// ```
    /// use tokio_run_in_process::{Signal, block_on, open_in_process};
    ///
    /// block_on(async {
    ///     let process = open_in_process(std::future::pending::<()>, ()).await.unwrap();
    ///     process.kill().unwrap();
    ///     assert_eq!(process.wait().await.unwrap_err().signal(), Some(Signal::KILL));
    /// })
    /// .unwrap();
    /// ```
    pub fn kill(&self) -> io::Result<()> {
        self.send_signal(Signal::KILL)
    }

    /// Ends the task and waits until its process is gone: SIGTERM at once, SIGKILL at the end of its grace period. If
    /// it had no outcome yet, it is [`Error::Cancelled`], unless it returned a value all the same.
    ///
    /// # Cancel safety
    ///
    /// The driver carries the escalation to its end also if this future is dropped.
    ///
    /// ```
    /// use tokio_run_in_process::{Signal, block_on, open_in_process};
    ///
    /// block_on(async {
    ///     let process = open_in_process(std::future::pending::<()>, ()).await.unwrap();
    ///     let (status, _usage) = process.shutdown().await;
    ///     assert_eq!(status.signal(), Some(Signal::TERM));
    ///     assert!(process.wait().await.unwrap_err().is_cancelled());
    /// })
    /// .unwrap();
    /// ```
    pub async fn shutdown(&self) -> (ExitStatus, Option<Usage>) {
        if self.zygote.0.check_owner().is_ok() {
            self.driver.tell(self.worker.id, Event::End(Cause::Shutdown));
        }
        self.exited().await
    }

    /// Lets go of the process without ending it. It ends by itself, or with this program.
    ///
    /// ```
    /// use tokio_run_in_process::{block_on, open_in_process};
    ///
    /// block_on(async {
    ///     let process = open_in_process(async || println!("I may take my time"), ()).await.unwrap();
    ///     process.detach();
    /// })
    /// .unwrap();
    /// ```
    pub fn detach(mut self) {
        self.detached = true;
    }

    /// The writing end of the worker's stdin, once, if it was [piped](crate::Stdio::piped).
    ///
    /// ```
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// use tokio_run_in_process::{Stdio, Task, block_on};
    ///
    /// fn shout() {
    ///     let text = std::io::read_to_string(std::io::stdin()).unwrap();
    ///     print!("{}", text.to_uppercase());
    /// }
    ///
    /// block_on(async {
    ///     let task = Task::new().stdin(Stdio::piped()).stdout(Stdio::piped());
    ///     let process = task.open_blocking(shout, ()).await.unwrap();
    ///     let mut stdin = process.take_stdin().unwrap();
    ///     stdin.write_all(b"hello").await.unwrap();
    ///     drop(stdin); // the end of its input
    ///     let mut text = String::new();
    ///     process.take_stdout().unwrap().read_to_string(&mut text).await.unwrap();
    ///     assert_eq!(text, "HELLO");
    /// })
    /// .unwrap();
    /// ```
    pub fn take_stdin(&self) -> Option<PipeWriter> {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The reading end of the worker's stdout, once, if it was [piped](crate::Stdio::piped).
    pub fn take_stdout(&self) -> Option<PipeReader> {
        self.take_output(0)
    }

    /// The reading end of the worker's stderr, once, if it was [piped](crate::Stdio::piped).
    pub fn take_stderr(&self) -> Option<PipeReader> {
        self.take_output(1)
    }

    fn take_output(&self, number: usize) -> Option<PipeReader> {
        self.outputs[number].lock().unwrap_or_else(PoisonError::into_inner).take().map(OutputPipe::take)
    }
}

impl<T: DeserializeOwned + Send + 'static> Process<T> {
    /// Waits for the task's outcome. Asked again, it gives the same: the value is decoded anew each time. A stdin pipe
    /// that nobody took is closed first.
    ///
    /// # Errors
    ///
    /// [`Error`], by cause.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing; the task goes on.
    pub async fn wait(&self) -> Result<T, Error> {
        self.zygote.0.check_owner()?;
        drop(self.take_stdin());
        let status = self.worker.wait_until(|status| status.outcome.is_some()).await;
        let outcome = status.outcome.ok_or(Error::ShutDown)?;
        decode::decode_kept(outcome, || self.worker.task_id()).await
    }

    /// The task's outcome if it is known. A result is decoded here and now, however large it is; [`wait`](Self::wait) has a
    /// large one decoded elsewhere.
    ///
    /// ```
    /// use tokio_run_in_process::{block_on, open_in_process};
    ///
    /// block_on(async {
    ///     let process = open_in_process(std::future::pending::<()>, ()).await.unwrap();
    ///     assert!(process.try_wait().is_none());
    /// })
    /// .unwrap();
    /// ```
    pub fn try_wait(&self) -> Option<Result<T, Error>> {
        let outcome = self.status().outcome?;
        Some(decode::decode_kept_here(&outcome, || self.worker.task_id()))
    }

    pub(super) async fn into_value(self) -> Result<T, Error> {
        self.wait().await
    }
}

impl<T: DeserializeOwned + Send + 'static> IntoFuture for Process<T> {
    type Output = Result<T, Error>;
    type IntoFuture = Wait<T>;

    fn into_future(self) -> Wait<T> {
        Box::pin(self.into_value())
    }
}

impl<T> Drop for Process<T> {
    fn drop(&mut self) {
        if self.zygote.0.check_owner().is_err() {
            // A fork of the parent, where the driver's locks may be held by threads that do not exist here.
            return;
        }
        if !self.detached {
            self.driver.tell(self.worker.id, Event::End(Cause::Dropped));
        }
        for output in &mut self.outputs {
            if let Some(output) = output.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
                output.release();
            }
        }
    }
}

impl<T> fmt::Debug for Process<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("name", &self.name())
            .field("pid", &self.pid())
            .field("state", &self.state())
            .finish()
    }
}
