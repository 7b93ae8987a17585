//! What a pool is like.

use std::{sync::Arc, time::Duration};

use super::{
    super::{task::Task, zygote::Zygote},
    Pool,
};
use crate::{
    error::Error,
    task::{AsyncTask, Entry},
};

/// What it says.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) name: Arc<str>,
    pub(super) workers: usize,
    pub(super) most_tasks: Option<u64>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) queue_timeout: Option<Duration>,
    pub(super) task_timeout: Option<Duration>,
    pub(super) initializer: Entry,
    /// What its workers are made with.
    pub(super) worker: Task,
}

/// Describes a pool: made by [`Pool::builder`].
#[derive(Clone, Debug)]
#[must_use = "it makes nothing before `build`"]
pub struct PoolBuilder {
    zygote: Result<Zygote, Error>,
    config: Config,
}

impl PoolBuilder {
    /// How many workers there are at most. They are started when they are needed. Default 2.
    ///
    /// # Panics
    ///
    /// If `count` is 0.
    pub fn workers(mut self, count: usize) -> Self {
        assert!(count > 0, "a pool needs a worker");
        self.config.workers = count;
        self
    }

    /// How many tasks a worker serves before another takes its place: bounds what leaks can add up to. Default: no limit.
    pub fn max_tasks_per_worker(mut self, count: u64) -> Self {
        self.config.most_tasks = Some(count.max(1));
        self
    }

    /// How long a worker without a task is kept. Default: as long as the pool.
    pub fn idle_timeout(mut self, time: Duration) -> Self {
        self.config.idle_timeout = Some(time);
        self
    }

    /// How long a task may wait for a worker, with the time that a new one takes to be initialized. Then its outcome is
    /// [`Error::TimedOut`] in the phase `Queued`. Default: no limit.
    pub fn queue_timeout(mut self, limit: Duration) -> Self {
        self.config.queue_timeout = Some(limit);
        self
    }

    /// How long a task may run, from when a worker that is initialized has it. Then its worker is ended and its outcome is
    /// [`Error::TimedOut`]. Default: no limit.
    pub fn task_timeout(mut self, limit: Duration) -> Self {
        self.config.task_timeout = Some(limit);
        self
    }

    /// The name of its workers, in `ps` and in errors. Default `pool`.
    pub fn name(mut self, name: impl AsRef<str>) -> Self {
        self.config.name = name.as_ref().into();
        self
    }

    /// What its workers are made with: their environment, directory, control group, stdout and stderr, their start-up timeout
    /// and grace period; and the limits that hold for the arguments and the result of each task. Their name is that of the
    /// pool, their zygote the pool's. What is about one task is said to the pool instead: with a timeout, a queue timeout,
    /// a runtime or a pipe, which no handle reads, [`build`](Self::build) fails.
    ///
    /// ```
    /// use tokio_run_in_process::{Pool, Task, block_on};
    ///
    /// async fn threads() -> Option<String> {
    ///     std::env::var("OMP_NUM_THREADS").ok()
    /// }
    ///
    /// block_on(async {
    ///     let worker = Task::new().env("OMP_NUM_THREADS", "1").current_dir("/tmp").result_limit(1 << 20);
    ///     let pool = Pool::builder().worker(worker).build().unwrap();
    ///     assert_eq!(pool.run(threads, ()).await.unwrap().as_deref(), Some("1"));
    /// })
    /// .unwrap();
    /// ```
    pub fn worker(mut self, task: Task) -> Self {
        self.config.worker = task;
        self
    }

    /// What every new worker does first: loads a model into a static, opens a connection. If it panics, the task that
    /// needed the worker has that as its outcome. If that task is given up first, so is the worker.
    ///
    /// ```
    /// use std::sync::OnceLock;
    /// use tokio_run_in_process::{Pool, block_on};
    ///
    /// static TABLE: OnceLock<Vec<u64>> = OnceLock::new();
    ///
    /// async fn build_table() {
    ///     let _ = TABLE.set((0..100).map(|n| n * n).collect());
    /// }
    ///
    /// block_on(async {
    ///     let pool = Pool::builder().initializer(build_table).build().unwrap();
    ///     let looked_up = pool.run(async |n: usize| TABLE.get().unwrap()[n], 9).await;
    ///     assert_eq!(looked_up.unwrap(), 81);
    /// })
    /// .unwrap();
    /// ```
    pub fn initializer<F, M>(mut self, function: F) -> Self
    where
        F: AsyncTask<(), M, Output = ()>,
    {
        self.config.initializer = Entry::of_async::<F, (), M>(function);
        self
    }

    /// Makes the pool. No worker is started yet.
    ///
    /// # Errors
    ///
    /// [`Error::NotInitialized`] and the like, as for a task; [`Error::InvalidOption`] if its [`worker`](Self::worker) has
    /// one.
    pub fn build(self) -> Result<Pool, Error> {
        Pool::new(self.zygote?, self.config)
    }
}

impl PoolBuilder {
    pub(super) fn of(zygote: Result<Zygote, Error>) -> Self {
        let config = Config {
            name: "pool".into(),
            workers: 2,
            most_tasks: None,
            idle_timeout: None,
            queue_timeout: None,
            task_timeout: None,
            initializer: Entry::of_async(async || ()),
            worker: Task::new(),
        };
        Self { zygote, config }
    }
}
