//! What a zygote is started with.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::{
    config::Config,
    launch,
    lineage::Lineage,
    zygote::{Inner, Zygote},
};
use crate::{
    error::StartError,
    sys::{self, fd},
};

/// Descriptors for what is neither a warm worker nor a task: the library's own, and the program's.
const FEW: u64 = 24;

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
}

impl ZygoteBuilder {
    /// How many processes may hold a task at a time; one more waits for its turn. Default
    /// [`MAX_PROCESSES`](crate::MAX_PROCESSES).
    pub fn max_processes(mut self, count: usize) -> Self {
        self.max_processes = Some(count);
        self
    }

    /// How many tasks may wait for their turn, of all generations together; one more is refused at once, with
    /// [`Error::Saturated`](crate::Error::Saturated). 0: none waits. Default: no limit. A server that is asked for more than
    /// it can do says so early, and its memory is bounded. Tasks of a pool are not refused: they wait for the pool's workers.
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

    /// How long a task may wait for its turn, unless it says otherwise ([`Task::queue_timeout`](crate::Task::queue_timeout)).
    /// Default: no limit.
    pub fn queue_timeout(mut self, limit: Duration) -> Self {
        self.queue_timeout = Some(limit);
        self
    }

    /// How many warm workers stand ready: single-use processes, runtime built, that only wait for a task. Default
    /// [`WARM_WORKERS`](crate::WARM_WORKERS); 0 means none, ever. They come on top of
    /// [`max_processes`](Self::max_processes); under load there are more for a while, unless tasks wait for processors: none
    /// is made ready then. Each costs a process of about 100 kB, and two descriptors of this program.
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
