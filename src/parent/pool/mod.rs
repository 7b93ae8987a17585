//! Reuse, asked for by name: workers that serve many tasks.
//!
//! A pool is a list of idle [`lane`]s and a count of permits. Each lane is an ordinary `Process` (so its worker is armed,
//! signalled, reaped and reported as any other) with a socket of its own for one task after another. A lane is either
//! in the list or owned by the one future that uses it; a future that is dropped half-way drops its lane, and with that
//! ends the worker.

mod builder;
mod lane;
mod map;
mod supply;
mod task;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::AtomicUsize},
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};

use self::{
    builder::Config,
    lane::{Lane, LaneError},
};
use super::{
    bare::BareJob,
    decode,
    driver::{self, Driver},
    init::default_zygote,
    race::{Either, race},
    zygote::Zygote,
};
use crate::{
    error::{Error, TaskId},
    model::Phase,
    task::{AsyncTask, BlockingTask, Entry},
};

pub use builder::PoolBuilder;
pub use map::Map;
pub use task::{PoolOpen, PoolTask};

/// Workers that serve one task after another: for speed, at the price of isolation between tasks.
///
/// A task costs little more than the trip over a socket. What it leaves in its process (statics, environment, open
/// files, spawned tasks, damaged memory) the next one finds. What stays as with [`run_in_process`](crate::run_in_process):
/// the parent is isolated from all of them, a panic or a crash costs exactly the task it happened in, and dropping a
/// future ends its task, by ending its worker, which is replaced.
///
/// Cheap to clone. The workers end when the last clone is dropped and its tasks are done. They count towards the
/// zygote's `max_processes` as long as they live; one that is idle makes room for a task that waits for it. So does one now
/// and then of a pool that has too much to do to have an idle one.
///
/// ```
/// use tokio_run_in_process::{Pool, block_on};
///
/// async fn square(n: u64) -> u64 {
///     n * n
/// }
///
/// block_on(async {
///     let pool = Pool::builder().workers(2).build().unwrap();
///     assert_eq!(pool.run(square, 7).await.unwrap(), 49);
///     let squares = pool.map(square, 1..=4).collect().await.unwrap();
///     assert_eq!(squares, [1, 4, 9, 16]);
/// })
/// .unwrap();
/// ```
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, workers) = (&self.0.config.name, self.0.config.workers);
        f.debug_struct("Pool").field("name", name).field("workers", &workers).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Inner {
    zygote: Zygote,
    config: Config,
    permits: Semaphore,
    /// The last one used is used next.
    idle: Mutex<Vec<(Lane, Instant)>>,
    /// One became idle.
    freed: Notify,
    /// Tasks that wait for a lane.
    waiting: AtomicUsize,
    /// When somebody else had his turn last, while tasks waited for a lane.
    last_turn: Mutex<Instant>,
    /// Dropped with it, which whoever watches over it hears.
    _end: watch::Sender<()>,
}

impl Inner {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(Lane, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver. `name` is what an error is about.
    fn driver(&self, name: &Arc<str>) -> Result<&'static Driver, Error> {
        driver::get().map_err(|e| Error::Spawn {
            task: TaskId { name: name.clone(), pid: None },
            step: "start the driver thread".to_owned(),
            source: Arc::new(e),
        })
    }

    /// A job's turn, which a shutdown takes from those that wait for it.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, Error> {
        if let Ok(permit) = self.permits.try_acquire() {
            return Ok(permit);
        }
        match race(self.permits.acquire(), self.zygote.0.is_closed()).await {
            Either::First(permit) => permit.map_err(|_| Error::ShutDown),
            Either::Second(()) => Err(Error::ShutDown),
        }
    }

    /// What a job waits for, until `since` is too long ago.
    async fn wait<T>(
        &self,
        job: &BareJob,
        since: Instant,
        what: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let Some(limit) = self.config.queue_timeout else { return what.await };
        let left = limit.saturating_sub(since.elapsed());
        let timer = self.driver(&self.config.name)?.enter(|| tokio::time::sleep(left));
        match race(what, timer).await {
            Either::First(done) => done,
            Either::Second(()) => {
                let task = TaskId { name: job.name.clone(), pid: None };
                Err(Error::TimedOut { task, phase: Phase::Queued, limit })
            }
        }
    }

    /// Runs one job from its turn to its result. `taken` hears of the worker that has it, of each if the first ones go
    /// before they read it.
    async fn serve(&self, job: &BareJob, mut taken: impl FnMut(u32)) -> Result<Bytes, Error> {
        self.zygote.0.check_owner()?;
        if self.zygote.0.is_closing() {
            return Err(Error::ShutDown);
        }
        let since = Instant::now();
        let turn = async { Ok((self.turn().await?, self.lane(&job.name).await?)) };
        let (_permit, mut lane) = self.wait(job, since, turn).await?;
        loop {
            taken(lane.pid());
            let outcome = match self.config.task_timeout {
                None => lane.run(job).await,
                Some(limit) => {
                    let timer = lane.driver().enter(|| tokio::time::sleep(limit));
                    match race(lane.run(job), timer).await {
                        Either::First(outcome) => outcome,
                        Either::Second(()) => {
                            let task = TaskId { name: job.name.clone(), pid: Some(lane.pid()) };
                            return Err(Error::TimedOut { task, phase: Phase::Running, limit });
                        }
                    }
                }
            };
            match outcome {
                // It went before it read the job: another worker will do it, unseen.
                Err(LaneError::Unread) => lane = self.wait(job, since, self.lane(&job.name)).await?,
                // The worker is gone or of no use; dropped with its lane.
                Err(LaneError::Ended(error)) => return Err(error),
                Ok(outcome) => {
                    if self.config.most_tasks.is_none_or(|most| lane.served() < most) {
                        self.put_back(lane);
                    }
                    return outcome;
                }
            }
        }
    }
}

/// The future of [`Pool::run`] and its like: runs the task when it is polled, and ends it when it is dropped.
#[must_use = "futures do nothing unless they are awaited"]
pub struct PoolRun<T>(Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>);

impl<T> Future for PoolRun<T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

impl<T> fmt::Debug for PoolRun<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PoolRun")
    }
}

impl Pool {
    fn new(zygote: Zygote, mut config: Config) -> Result<Self, Error> {
        zygote.0.check_owner()?;
        config.worker = config.worker.for_pool(&zygote, &config.name)?;
        let permits = Semaphore::new(config.workers.min(Semaphore::MAX_PERMITS));
        let idle_timeout = config.idle_timeout;
        let (idle, freed, waiting) = (Mutex::default(), Notify::new(), AtomicUsize::new(0));
        let last_turn = Mutex::new(Instant::now());
        let (end, ended) = watch::channel(());
        let inner = Arc::new(Inner { zygote, config, permits, idle, freed, waiting, last_turn, _end: end });
        let holder: Weak<Inner> = Arc::downgrade(&inner);
        inner.zygote.0.add_holder(holder);
        if let Some(time) = idle_timeout {
            inner.clone().keep_idle_for(time, ended)?;
        }
        Ok(Self(inner))
    }

    /// Starts to describe a pool of the process-wide zygote. It stays with that, whatever
    /// [`set_default_zygote`](crate::set_default_zygote) sets later.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::of(default_zygote())
    }

    fn start<T>(&self, job: Result<BareJob, Error>) -> PoolRun<T>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let pool = self.0.clone();
        PoolRun(Box::pin(async move {
            let job = job?;
            let bytes = pool.serve(&job, |_| ()).await?;
            let name = job.name;
            decode::decode(bytes, move || TaskId { name, pid: None }).await
        }))
    }

    /// Runs an async function in a worker of the pool.
    ///
    /// # Errors
    ///
    /// [`Error`], by cause, as [`run_in_process`](crate::run_in_process).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the task, if it has begun, by ending its worker.
    pub fn run<F, A, M>(&self, function: F, arguments: A) -> PoolRun<F::Output>
    where
        F: AsyncTask<A, M>,
        A: Serialize + DeserializeOwned + 'static,
        F::Output: Serialize + DeserializeOwned + Send + 'static,
    {
        self.start(self.job::<F, A>(Entry::of_async(function), &arguments))
    }

    /// Runs a plain function in a worker of the pool.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    ///
    /// ```
    /// use tokio_run_in_process::{Pool, block_on};
    ///
    /// block_on(async {
    ///     let pool = Pool::builder().build().unwrap();
    ///     assert_eq!(pool.run_blocking(|a: u32, b: u32| a + b, (1, 2)).await.unwrap(), 3);
    /// })
    /// .unwrap();
    /// ```
    pub fn run_blocking<F, A, M>(&self, function: F, arguments: A) -> PoolRun<F::Output>
    where
        F: BlockingTask<A, M>,
        A: Serialize + DeserializeOwned + 'static,
        F::Output: Serialize + DeserializeOwned + Send + 'static,
    {
        self.start(self.job::<F, A>(Entry::of_blocking(function), &arguments))
    }

    /// Opens an async function in a worker of the pool: it runs in the background. The handle is there once a worker has
    /// the task.
    ///
    /// # Errors
    ///
    /// [`Error`] if no worker could be had. What becomes of the task, [`PoolTask::wait`] tells.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the task, as dropping its handle would.
    pub fn open<F, A, M>(&self, function: F, arguments: A) -> PoolOpen<F::Output>
    where
        F: AsyncTask<A, M>,
        A: Serialize + DeserializeOwned + 'static,
        F::Output: Serialize + DeserializeOwned + Send + 'static,
    {
        PoolOpen::new(self.0.clone(), self.job::<F, A>(Entry::of_async(function), &arguments))
    }

    /// Opens a plain function in a worker of the pool: see [`open`](Self::open).
    pub fn open_blocking<F, A, M>(&self, function: F, arguments: A) -> PoolOpen<F::Output>
    where
        F: BlockingTask<A, M>,
        A: Serialize + DeserializeOwned + 'static,
        F::Output: Serialize + DeserializeOwned + Send + 'static,
    {
        PoolOpen::new(self.0.clone(), self.job::<F, A>(Entry::of_blocking(function), &arguments))
    }

    /// Runs an async function for every item, as many at a time as there are workers: see [`Map`].
    pub fn map<F, A, M, I>(&self, function: F, items: I) -> Map<F::Output>
    where
        F: AsyncTask<A, M> + Send,
        A: Serialize + DeserializeOwned + 'static,
        F::Output: Serialize + DeserializeOwned + Send + 'static,
        I: IntoIterator<Item = A>,
        I::IntoIter: Send + 'static,
    {
        let pool = self.clone();
        let start = move |item| pool.start(pool.job::<F, A>(Entry::of_async(function), &item));
        Map::new(items.into_iter().map(start), self.0.config.workers)
    }

    /// Runs an async function for every item of a stream: as [`map`](Self::map), but the items come when they come.
    ///
    /// ```
    /// use futures_core::Stream;
    /// use std::{pin::Pin, task::{Context, Poll}};
    /// use tokio_run_in_process::{Pool, block_on};
    ///
    /// /// A request every now and then.
    /// struct Requests(u32, tokio::time::Interval);
    ///
    /// impl Stream for Requests {
    ///     type Item = u32;
    ///     fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<u32>> {
    ///         if self.0 == 3 {
    ///             return Poll::Ready(None);
    ///         }
    ///         self.1.poll_tick(context).map(|_| {
    ///             self.0 += 1;
    ///             Some(self.0)
    ///         })
    ///     }
    /// }
    ///
    /// block_on(async {
    ///     let pool = Pool::builder().build().unwrap();
    ///     let requests = Requests(0, tokio::time::interval(std::time::Duration::from_millis(5)));
    ///     let answers = pool.map_stream(async |n: u32| n * 10, requests).collect().await.unwrap();
    ///     assert_eq!(answers, [10, 20, 30]);
    /// })
    /// .unwrap();
    /// ```
    #[cfg(feature = "stream")]
    pub fn map_stream<F, A, M, S>(&self, function: F, items: S) -> Map<F::Output>
    where
        F: AsyncTask<A, M> + Send,
        A: Serialize + DeserializeOwned + 'static,
        F::Output: Serialize + DeserializeOwned + Send + 'static,
        S: futures_core::Stream<Item = A> + Send + 'static,
    {
        let pool = self.clone();
        let start = move |item| pool.start(pool.job::<F, A>(Entry::of_async(function), &item));
        Map::of_stream(items, start, self.0.config.workers)
    }

    fn job<F, A: Serialize>(&self, entry: Entry, arguments: &A) -> Result<BareJob, Error> {
        let Inner { zygote, config, .. } = &*self.0;
        BareJob::new::<F, A>(zygote, config.worker.limits(zygote), entry, arguments)
    }

    /// How many workers stand idle.
    pub fn idle_workers(&self) -> usize {
        self.0.idle().iter().filter(|(lane, _)| lane.is_alive()).count()
    }
}

impl Zygote {
    /// Starts to describe a pool of this zygote.
    ///
    /// ```
    /// # let zygote = tokio_run_in_process::Zygote::builder().start().unwrap();
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let pool = zygote.pool().workers(4).max_tasks_per_worker(1000).build().unwrap();
    /// assert_eq!(pool.run(async |n: u8| n, 1).await.unwrap(), 1);
    /// # })
    /// ```
    pub fn pool(&self) -> PoolBuilder {
        PoolBuilder::of(Ok(self.clone()))
    }
}
