//! The handle to a zygote.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, Semaphore, watch};

pub use super::config::{MAX_PROCESSES, WARM_WORKERS};
use super::{
    config::Config,
    driver::{self, Driver},
    launch,
    lineage::{self, Lineage},
    metrics::Counters,
    task::{Open, Run, Task},
    warm::WarmSet,
};
use crate::{
    error::{Error, StartError},
    model::{Signal, WorkerId},
    sys::{self, CodeModules, fd, process, role},
    task::{AsyncTask, BlockingTask},
    wire::control::{Fact, Order},
};

/// Descriptors for what is neither a warm worker nor a task: the library's own, and the program's.
const FEW: u64 = 24;

/// A handle to a zygote: the small process, forked from this one before it had threads, that forks a fresh worker for
/// every task.
///
/// Cheap to clone; the zygote ends, with its workers, when the last handle and the last task are gone. Most programs
/// have one, made by [`init`](crate::init), and use the free functions.
///
/// ```
/// use tokio_run_in_process::Zygote;
///
/// async fn square(n: u64) -> u64 {
///     n * n
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let zygote = Zygote::builder().max_processes(4).start()?; // before the runtime
///     tokio::runtime::Runtime::new()?.block_on(async {
///         assert_eq!(zygote.run_in_process(square, 7).await?, 49);
///         Ok(())
///     })
/// }
/// ```
#[derive(Clone)]
pub struct Zygote(pub(super) Arc<Inner>);

impl std::fmt::Debug for Zygote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Zygote").field("pid", &self.pid()).finish_non_exhaustive()
    }
}

/// What holds processes of a zygote that it could do without.
pub(super) trait Holder: std::fmt::Debug + Send + Sync {
    /// Whether the processes are this one's, and not those of another generation.
    fn is_of(&self, zygote: &Inner) -> bool;

    /// Lets one go; `false` if there is none.
    fn let_one_go(&self) -> bool;
}

/// What the handles of one zygote share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) config: Config,
    pub(super) lineage: Lineage,
    /// The process that started it. Only that one may use it: a fork of it has a copy of everything but the threads.
    owner: i32,
    pub(super) permits: Arc<Semaphore>,
    pub(super) modules: CodeModules,
    pub(super) null: Arc<OwnedFd>,
    /// The lock order: roster, then this, then the link.
    warm: Mutex<WarmSet>,
    pub(super) counters: Counters,
    served: OnceLock<()>,
    pub(super) room: Arc<Room>,
    /// No task starts any more.
    pub(super) closing: watch::Sender<bool>,
    /// A worker that had a task is gone.
    pub(super) gone: Notify,
}

/// Who has and who lacks one of the processes that there may be. A zygote shares it, as it shares the permits, with those that
/// were preloaded from it.
#[derive(Debug, Default)]
pub(super) struct Room {
    holders: Mutex<Vec<Weak<dyn Holder>>>,
    /// Tasks that wait for their turn, of all these zygotes.
    pub(super) queued: AtomicUsize,
}

impl Inner {
    /// A handle whose zygote serves.
    fn new(
        config: Config,
        lineage: Lineage,
        (permits, room): (Arc<Semaphore>, Arc<Room>),
        modules: CodeModules,
        null: Arc<OwnedFd>,
    ) -> Arc<Self> {
        let base = config.warm.unwrap_or(WARM_WORKERS);
        let inner = Arc::new(Self {
            config,
            lineage,
            owner: process::pid(),
            permits,
            modules,
            null,
            warm: Mutex::new(WarmSet::new(base, config.most_warm())),
            counters: Counters::default(),
            served: OnceLock::new(),
            room,
            closing: watch::Sender::new(false),
            gone: Notify::new(),
        });
        lineage::remember(&inner);
        inner
    }

    /// After the handle was made known: its ancestor may have gone before anybody knew that it needs it.
    fn check_ancestor(self: &Arc<Self>) {
        if self.lineage.ancestor().link.is_closed() {
            if let Ok(driver) = self.driver() {
                driver.spawn(driver.replace_ancestor(Arc::downgrade(self)));
            }
        }
    }

    /// One with other zygotes, and else the same.
    pub(super) fn start(like: &Arc<Self>, lineage: Lineage) -> Arc<Self> {
        let shared = (like.permits.clone(), like.room.clone());
        let inner = Self::new(like.config, lineage, shared, like.modules.clone(), like.null.clone());
        inner.check_ancestor();
        inner.keep_warm(Instant::now(), true);
        inner
    }

    /// Refuses wherever this handle is only a copy.
    pub(super) fn check_owner(&self) -> Result<(), Error> {
        if role::get() == role::Role::Worker {
            return Err(Error::InsideWorker);
        }
        if self.owner != process::pid() {
            return Err(Error::WrongProcess);
        }
        Ok(())
    }

    /// The driver, serving this zygote.
    pub(super) fn driver(self: &Arc<Self>) -> std::io::Result<&'static Driver> {
        let driver = driver::get()?;
        if self.served.get().is_none() {
            driver.serve_once(self, &self.served)?;
        }
        Ok(driver)
    }

    pub(super) fn warm(&self) -> MutexGuard<'_, WarmSet> {
        self.warm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many tasks are under way.
    pub(super) fn busy(&self) -> usize {
        self.config.max_processes.min(Semaphore::MAX_PERMITS).saturating_sub(self.permits.available_permits())
    }

    /// Asked for a process when there is no room for one more.
    pub(super) fn add_holder(&self, holder: Weak<dyn Holder>) {
        let mut holders = self.room.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.retain(|holder| holder.strong_count() > 0);
        holders.push(holder);
    }

    /// Somebody waits for room: an idle worker of a pool makes some. `false` if there is none.
    pub(super) fn ask_for_room(&self) -> bool {
        self.holders().iter().any(|holder| holder.let_one_go())
    }

    /// Lets all idle workers of this zygote's pools go.
    pub(super) fn let_idle_go(&self) {
        for holder in self.holders().iter().filter(|holder| holder.is_of(self)) {
            while holder.let_one_go() {}
        }
    }

    /// Not under the lock: to let a worker go takes others.
    fn holders(&self) -> Vec<Arc<dyn Holder>> {
        let holders = self.room.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.iter().filter_map(Weak::upgrade).collect()
    }

    /// Brings the warm workers to their number, and says when to look again though nothing happens.
    pub(super) fn keep_warm(&self, now: Instant, refill: bool) -> Option<Instant> {
        let mut warm = self.warm();
        let surplus = warm.surplus(now);
        if refill {
            let _ = warm.refill(&self.lineage.link(), now);
        }
        let next = warm.next(now);
        drop(warm);
        // Closes their sockets, and they end.
        drop(surplus);
        next
    }

    /// What the zygote says of a worker that no task had: it was not forked, it ended, or somebody stopped it.
    pub(super) fn lost_spare(&self, fact: Fact, worker: WorkerId) {
        let mut warm = self.warm();
        if let Fact::NotForked { .. } = fact {
            warm.failed(Instant::now());
        }
        let spare = warm.remove(worker);
        if let (Fact::Stopped { .. }, Some(spare)) = (fact, spare) {
            // It would not see the end of its socket.
            let _ = spare.link.send(Order::Signal { worker, signal: Signal::KILL, group: true }, &[]);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.owner == process::pid() && role::get() == role::Role::Parent {
            self.lineage.link().close();
        }
    }
}

impl Zygote {
    /// Starts to describe a zygote.
    pub fn builder() -> ZygoteBuilder {
        ZygoteBuilder {
            max_processes: None,
            max_queued: None,
            queue_timeout: None,
            warm: None,
            startup_timeout: None,
            grace_period: None,
            result_limit: None,
            argument_limit: None,
        }
    }

    /// The pid of the process that forks the workers now. If that dies, another one takes its place.
    pub fn pid(&self) -> u32 {
        self.0.lineage.pid()
    }

    /// A task with options of its own, to run with this zygote.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # let zygote = tokio_run_in_process::Zygote::builder().start().unwrap();
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let two = zygote.task().timeout(Duration::from_secs(5)).run(async |a: u8, b: u8| a + b, (1, 1)).await;
    /// assert_eq!(two.unwrap(), 2);
    /// # })
    /// ```
    pub fn task(&self) -> Task {
        Task::with(Some(self.clone()))
    }

    /// [`run_in_process`](crate::run_in_process) with this zygote.
    pub fn run_in_process<F, A, M>(&self, function: F, arguments: A) -> Run<F::Output>
    where
        F: AsyncTask<A, M>,
        A: serde::Serialize + serde::de::DeserializeOwned + 'static,
        F::Output: serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
    {
        self.task().run(function, arguments)
    }

    /// [`open_in_process`](crate::open_in_process) with this zygote.
    pub fn open_in_process<F, A, M>(&self, function: F, arguments: A) -> Open<F::Output>
    where
        F: AsyncTask<A, M>,
        A: serde::Serialize + serde::de::DeserializeOwned + 'static,
        F::Output: serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
    {
        self.task().open(function, arguments)
    }

    /// [`run_blocking_in_process`](crate::run_blocking_in_process) with this zygote.
    pub fn run_blocking_in_process<F, A, M>(&self, function: F, arguments: A) -> Run<F::Output>
    where
        F: BlockingTask<A, M>,
        A: serde::Serialize + serde::de::DeserializeOwned + 'static,
        F::Output: serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
    {
        self.task().run_blocking(function, arguments)
    }

    /// [`open_blocking_in_process`](crate::open_blocking_in_process) with this zygote.
    pub fn open_blocking_in_process<F, A, M>(&self, function: F, arguments: A) -> Open<F::Output>
    where
        F: BlockingTask<A, M>,
        A: serde::Serialize + serde::de::DeserializeOwned + 'static,
        F::Output: serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
    {
        self.task().open_blocking(function, arguments)
    }

    /// How many more processes could hold a task right now.
    ///
    /// ```
    /// let zygote = tokio_run_in_process::Zygote::builder().max_processes(3).start().unwrap();
    /// assert_eq!(zygote.available_processes(), 3);
    /// ```
    pub fn available_processes(&self) -> usize {
        self.0.permits.available_permits()
    }
}

/// Describes a zygote: made by [`Zygote::builder`]. What it does not say comes from the environment
/// (`TOKIO_RUN_IN_PROCESS_MAX_PROCS`, `TOKIO_RUN_IN_PROCESS_WARM`, `TOKIO_RUN_IN_PROCESS_STARTUP_TIMEOUT` in seconds), or
/// else is the default.
///
/// ```
/// use std::time::Duration;
/// use tokio_run_in_process::Zygote;
///
/// let zygote = Zygote::builder()
///     .max_processes(32)
///     .startup_timeout(Duration::from_secs(10))
///     .grace_period(Duration::from_millis(500))
///     .result_limit(1 << 20)
///     .start()
///     .unwrap();
/// assert_eq!(zygote.available_processes(), 32);
/// ```
#[derive(Clone, Debug)]
#[must_use = "it starts nothing before `start`"]
pub struct ZygoteBuilder {
    max_processes: Option<usize>,
    max_queued: Option<usize>,
    queue_timeout: Option<Duration>,
    warm: Option<usize>,
    startup_timeout: Option<Duration>,
    grace_period: Option<Duration>,
    result_limit: Option<u64>,
    argument_limit: Option<u64>,
}

impl ZygoteBuilder {
    /// How many processes may hold a task at a time; one more waits for its turn. Default [`MAX_PROCESSES`].
    pub fn max_processes(mut self, count: usize) -> Self {
        self.max_processes = Some(count);
        self
    }

    /// How many tasks may wait for their turn, of all generations together; one more is refused at once, with
    /// [`Error::Saturated`]. 0: none waits. Default: no limit. A server that is asked for more than it can do says so early,
    /// and its memory is bounded. Tasks of a pool are not refused: they wait for the pool's workers.
    ///
    /// ```
    /// # use tokio_run_in_process::{Error, Zygote};
    /// let zygote = Zygote::builder().max_processes(1).max_queued(0).start().unwrap();
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let _busy = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
    /// let refused = zygote.run_in_process(async || 1, ()).await.unwrap_err();
    /// assert!(matches!(refused, Error::Saturated { limit: 0, .. }) && refused.is_retryable());
    /// # })
    /// ```
    pub fn max_queued(mut self, count: usize) -> Self {
        self.max_queued = Some(count);
        self
    }

    /// How long a task may wait for its turn, unless it says otherwise ([`Task::queue_timeout`]). Default: no limit.
    pub fn queue_timeout(mut self, limit: Duration) -> Self {
        self.queue_timeout = Some(limit);
        self
    }

    /// How many warm workers stand ready: single-use processes, runtime built, that only wait for a task. Default
    /// [`WARM_WORKERS`]; 0 means none, ever. They come on top of [`max_processes`](Self::max_processes); under load there
    /// are more for a while. Each costs a process of about 100 kB, and two descriptors of this program.
    ///
    /// ```
    /// let zygote = tokio_run_in_process::Zygote::builder().warm(1).start().unwrap();
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// assert_eq!(zygote.run_in_process(async || 42, ()).await.unwrap(), 42);
    /// # })
    /// ```
    pub fn warm(mut self, count: usize) -> Self {
        self.warm = Some(count);
        self
    }

    /// How long a worker may take to come up and start its task. Default 5 seconds.
    pub fn startup_timeout(mut self, timeout: Duration) -> Self {
        self.startup_timeout = Some(timeout);
        self
    }

    /// How long a task that is asked to end (SIGTERM) has before it is killed (SIGKILL). Default 2 seconds.
    pub fn grace_period(mut self, period: Duration) -> Self {
        self.grace_period = Some(period);
        self
    }

    /// The largest encoded result that is accepted, in bytes. Default 1 GiB. A value can take more memory than its bytes (an
    /// empty `String` is one byte, and 24 in memory): if workers may turn hostile, set it to what your tasks need.
    pub fn result_limit(mut self, bytes: u64) -> Self {
        self.result_limit = Some(bytes);
        self
    }

    /// The largest encoded arguments, in bytes. Default 1 GiB.
    pub fn argument_limit(mut self, bytes: u64) -> Self {
        self.argument_limit = Some(bytes);
        self
    }

    /// Forks the zygote.
    ///
    /// The first one of a program must be started when there is one thread and no runtime, so first thing in `main`:
    /// after privileges were dropped, the program daemonised and log subscribers are installed (the workers inherit
    /// them), before anything starts a thread. Later ones are forked from a zygote that is there, at any time.
    ///
    /// # Errors
    ///
    /// [`StartError`] names the cause: a second thread, a runtime, a worker, a variable that is malformed, or what the
    /// system refused. Nothing is left behind then.
    pub fn start(self) -> Result<Zygote, StartError> {
        let mut config = Config::from_env(|name| std::env::var_os(name))?;
        config.max_processes = self.max_processes.unwrap_or(config.max_processes);
        config.max_queued = self.max_queued;
        config.queue_timeout = self.queue_timeout;
        config.warm = self.warm.or(config.warm);
        config.startup_timeout = self.startup_timeout.unwrap_or(config.startup_timeout);
        config.grace_period = self.grace_period.unwrap_or(config.grace_period);
        config.result_limit = self.result_limit.unwrap_or(config.result_limit);
        config.argument_limit = self.argument_limit.unwrap_or(config.argument_limit);
        let config = config.check()?;
        if let Some(warm) = config.warm.filter(|&warm| warm > 0) {
            let needed = (warm as u64).saturating_mul(2).saturating_add(FEW);
            let limit = fd::limit().map_err(StartError::system("ask for the limit of descriptors"))?;
            if needed > limit {
                return Err(StartError::Descriptors { needed, limit });
            }
        }
        let null = Arc::new(launch::open_null()?);
        let modules = sys::code_modules();
        let (launched, ancestor) = launch::launch(config.startup_timeout)?;
        let lineage = Lineage::new(launched, ancestor, true);
        let permits = Arc::new(Semaphore::new(config.max_processes.min(Semaphore::MAX_PERMITS)));
        let inner = Inner::new(config, lineage, (permits, Arc::default()), modules, null);
        inner.check_ancestor();
        inner.warm().fill(&inner.lineage.link(), config.startup_timeout);
        Ok(Zygote(inner))
    }
}
