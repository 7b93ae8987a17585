//! The next generation: a zygote that ran the user's function before it serves.

use std::{
    future::{Future, IntoFuture},
    io,
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::oneshot;

use super::{
    bare::BareJob,
    driver::Driver,
    launch::Launched,
    lineage::{Ancestor, Lineage},
    link::Link,
    race::{Either, race},
    succession::{Source, ancestor_for, fork_from},
    warm::job_socket,
    zygote::{Inner, Zygote},
};
use crate::{
    error::{Error, TaskId},
    model::{ExitStatus, Failure, Phase, Signal, Terminal},
    pass::stream::Stream,
    sys::{process, socket},
    task::{BlockingTask, Entry},
    wire::{
        control::Order,
        frame::{Frame, Reader},
    },
};

/// A zygote that is being made: what [`Zygote::preload`] gives. Await it.
#[must_use = "it starts nothing before it is awaited"]
pub struct Preload {
    zygote: Zygote,
    job: Result<BareJob, Error>,
    timeout: Option<Duration>,
}

impl Zygote {
    /// Makes another zygote, which first runs `function`, and whose workers share what that made: a model, tables, a
    /// database that was opened.
    ///
    /// At any time, from a program with any number of threads: the new one is forked from where this one comes from. That is
    /// the image of `init`, or, if this one has preloaded something itself, one in which that is there too. So a program
    /// that replaces its generation again and again makes all of them from the first: else each keeps what those before it
    /// made. `function` is a plain function or closure that captures nothing, with `serde` arguments (a
    /// [`Sender`](crate::Sender) among them to hear how far it is); what it returns can be of any type. Tasks find that by
    /// [`worker::preloaded`](crate::worker::preloaded), or in the statics that the function filled. Files that it opened
    /// are open in the workers; a tokio runtime that it keeps would share its epoll with those of all workers, so drop it
    /// before the end. Give the tasks to the new handle, and drop the old one when you like: its tasks finish.
    ///
    /// Both share the count of [`max_processes`](crate::ZygoteBuilder::max_processes), and this one's settings. If the new
    /// zygote dies, another one takes its place, from a process that has run `function` already: it runs once.
    ///
    /// # Cost
    ///
    /// The memory is shared copy on write. To fork a worker takes longer, as the kernel copies the tables of its pages:
    /// for 100 MB about a millisecond. [`Shared`](crate::Shared) in what is returned costs nothing, however large it is.
    ///
    /// # Errors
    ///
    /// [`Error::Panicked`], [`Error::Exited`], [`Error::Signaled`] and [`Error::TimedOut`] if the function does that,
    /// [`Error::Spawn`] if it left a thread running, which the workers would not have. Nothing is left behind then.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the new zygote.
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use tokio_run_in_process::{block_on, default_zygote, worker};
    ///
    /// type Table = HashMap<String, u32>;
    ///
    /// fn load(size: u32) -> Table {
    ///     (0..size).map(|n| (n.to_string(), n)).collect()
    /// }
    ///
    /// async fn look_up(name: String) -> Option<u32> {
    ///     worker::preloaded::<Table>()?.get(&name).copied()
    /// }
    ///
    /// block_on(async {
    ///     let zygote = default_zygote().unwrap().preload(load, 1000).await.unwrap();
    ///     assert_eq!(zygote.run_in_process(look_up, "77".to_owned()).await.unwrap(), Some(77));
    /// })
    /// .unwrap();
    /// ```
    pub fn preload<F, A, M>(&self, function: F, arguments: A) -> Preload
    where
        F: BlockingTask<A, M>,
        A: Serialize + DeserializeOwned + 'static,
        F::Output: Send + Sync + 'static,
    {
        let limits = (self.0.config.argument_limit, self.0.config.result_limit);
        let job = BareJob::new::<F, A>(self, limits, Entry::of_preload(function), &arguments);
        Preload { zygote: self.clone(), job, timeout: None }
    }
}

impl Preload {
    /// How long the function may take. Default: no limit.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }
}

impl std::fmt::Debug for Preload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Preload").field("zygote", &self.zygote).finish_non_exhaustive()
    }
}

impl IntoFuture for Preload {
    type Output = Result<Zygote, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let inner = self.zygote.0.clone();
            inner.check_owner()?;
            let job = self.job?;
            let driver = inner.driver().map_err(failed(&job, "start the driver thread"))?;
            // On the driver, so that it works in any runtime and none.
            let (done, wait) = oneshot::channel();
            driver.spawn(async move {
                let mut done = done;
                let made = race(make(driver, inner, job, self.timeout), done.closed()).await;
                if let Either::First(made) = made {
                    let _ = done.send(made);
                }
            });
            wait.await.map_err(|_| Error::ShutDown)?
        })
    }
}

fn failed(job: &BareJob, step: &'static str) -> impl Fn(io::Error) -> Error {
    let task = TaskId { name: job.name.clone(), pid: None };
    move |source| Error::Spawn { task: task.clone(), step: step.to_owned(), source: Arc::new(source) }
}

/// A zygote that runs the function. Dropped half-way, it is ended.
struct Half {
    link: Option<Arc<Link>>,
    pid: i32,
    pidfd: Option<OwnedFd>,
}

impl Half {
    fn new(launched: Launched) -> Self {
        let pidfd = process::open_pidfd(launched.pid);
        Self { link: Some(Arc::new(launched.link)), pid: launched.pid, pidfd }
    }

    /// How it ended, after the end of its socket.
    async fn exit(&self) -> ExitStatus {
        let Some(pidfd) = self.pidfd.as_ref().and_then(|pidfd| pidfd.try_clone().ok()) else {
            return ExitStatus::Unknown;
        };
        super::driver::wait_for_pidfd(pidfd).await
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        let Some(link) = self.link.take() else { return };
        // Before the next line, after which nobody is at the other end in any case.
        let gone = link.is_dead();
        link.close();
        // It hears nothing while the function runs.
        let _ = match &self.pidfd {
            Some(pidfd) => process::signal_pidfd(pidfd, Signal::KILL),
            // Its parent, another zygote, has reaped it, and its pid may mean another process.
            None if gone => Ok(()),
            // It is reaped only when it has ended, and it ends by this or the line above.
            None => process::signal_child(self.pid, Signal::KILL),
        };
    }
}

async fn make(
    driver: &'static Driver,
    inner: Arc<Inner>,
    job: BareJob,
    timeout: Option<Duration>,
) -> Result<Zygote, Error> {
    let lost = || Error::ZygoteLost { task: TaskId { name: job.name.clone(), pid: None }, started: Some(false) };
    let Source::Ancestor(source) = ancestor_for(&inner) else { return Err(lost()) };
    let forked = fork_from(&source.link, inner.config.startup_timeout).await;
    let launched = forked.map_err(failed(&job, "fork a zygote"))?.ok_or_else(lost)?;
    let mut half = Half::new(launched);
    let timer = async {
        match timeout {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    match race(run(&half, &job), timer).await {
        Either::First(ran) => ran?,
        Either::Second(()) => {
            let task = task_id(&half, &job);
            let limit = timeout.unwrap_or_default();
            return Err(Error::TimedOut { task, phase: Phase::Running, limit });
        }
    }
    let Some(link) = half.link.take() else { return Err(Error::ShutDown) };
    // What came before it would end it, when that leaves.
    let ancestor = Ancestor::new(link, Some(source));
    let forked = fork_from(&ancestor.link, inner.config.startup_timeout).await;
    let launched = forked.map_err(failed(&job, "fork the zygote that serves"))?.ok_or_else(lost)?;
    let zygote = Inner::start(&inner, Lineage::new(launched, ancestor, false));
    // Heard from now on, so that its loss is noticed though it has no task.
    zygote.driver().map_err(failed(&job, "hear the zygote"))?;
    let _ = driver;
    Ok(Zygote(zygote))
}

fn task_id(half: &Half, job: &BareJob) -> TaskId {
    TaskId { name: job.name.clone(), pid: u32::try_from(half.pid).ok() }
}

/// Has the function run there.
async fn run(half: &Half, job: &BareJob) -> Result<(), Error> {
    let (ours, theirs) = job_socket().map_err(failed(job, "make a socket pair"))?;
    let theirs = Arc::new(theirs);
    let Some(link) = &half.link else { return Err(Error::ShutDown) };
    link.send(Order::Preload, &[&theirs]).map_err(failed(job, "order the preload"))?;
    drop(theirs);
    let unwatched = || failed(job, "watch a socket")(io::ErrorKind::Unsupported.into());
    let writing = Stream::register(ours, true).map_err(|_| unwatched())?;
    let mut sent = 0;
    let wrote = writing.write(|socket| job.parcel.send(socket, &mut sent)).await;
    let ours = writing.into_socket().map_err(failed(job, "watch a socket"))?;
    let mut reading = Stream::register(ours, false).map_err(|_| unwatched())?;
    match wrote {
        // The function may wait for the end of a channel, of which this was a copy.
        Ok(()) => job.parcel.let_go(),
        // Why, its exit tells.
        Err(e) if socket::is_peer_gone(&e) => {}
        // It waits for the rest of its job, and would for ever.
        Err(e) => return Err(failed(job, "send its job")(e)),
    }
    let mut reader = Reader::of_terminal(0);
    let mut buffer = vec![0; 4096];
    loop {
        let n = match reading.read(&mut buffer).await {
            Ok(n) if n > 0 => n,
            _ => return Err(ended(half, job).await),
        };
        match reader.next(&mut &buffer[..n]) {
            Ok(None) => {}
            Ok(Some(Frame::Terminal(Terminal::Returned(_), _))) => return Ok(()),
            Ok(Some(Frame::Terminal(terminal, _))) => return Err(outcome(terminal, task_id(half, job))),
            Ok(Some(Frame::Executing { .. })) => unreachable!("not expected, so an error of the reader"),
            Err(reason) => return Err(Error::Protocol { task: task_id(half, job), reason }),
        }
    }
}

/// The line ended without an answer.
async fn ended(half: &Half, job: &BareJob) -> Error {
    let task = task_id(half, job);
    match half.exit().await {
        ExitStatus::Exited(code) => Error::Exited { task, code },
        ExitStatus::Signaled { signal, core_dumped } => Error::Signaled { task, signal, core_dumped },
        ExitStatus::Unknown => Error::ZygoteLost { task, started: None },
    }
}

fn outcome(terminal: Terminal<bytes::Bytes>, task: TaskId) -> Error {
    match terminal {
        Terminal::Panicked(report) => Error::Panicked { task, report: Arc::from(report) },
        Terminal::Failed(Failure::Decode(reason)) => {
            Error::Decode { task, what: crate::error::Coded::Arguments, reason }
        }
        Terminal::Failed(Failure::Setup { what, errno: 0 }) => {
            let source = Arc::new(io::Error::other(what));
            Error::Spawn { task, step: "make a zygote".to_owned(), source }
        }
        Terminal::Failed(Failure::Setup { what, errno }) => {
            Error::Spawn { task, step: what, source: Arc::new(io::Error::from_raw_os_error(errno)) }
        }
        other => Error::Protocol { task, reason: format!("{other:?} of a preload") },
    }
}
