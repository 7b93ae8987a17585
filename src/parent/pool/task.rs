//! A task of a pool that runs in the background. The driver drives it; the handle looks at what became of it.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};

use super::{
    super::{
        bare::BareJob,
        decode,
        race::{Either, race},
        zygote,
    },
    Inner,
};
use crate::error::{Error, TaskId};

/// What is known of it.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// The worker that has it.
    pid: Option<u32>,
    outcome: Option<decode::Kept>,
}

/// A task that runs in a worker of a pool, in the background: what [`Pool::open`](crate::Pool::open) gives.
///
/// The outcome stays: asked twice, it is the same. Dropping the handle ends the task, by ending its worker.
///
/// ```
/// use tokio_run_in_process::{Pool, block_on};
///
/// async fn square(n: u64) -> u64 {
///     n * n
/// }
///
/// block_on(async {
///     let pool = Pool::builder().build().unwrap();
///     let task = pool.open(square, 7).await.unwrap();
///     println!("worker {} has it", task.pid());
///     // ... do other things here ...
///     assert_eq!(task.wait().await.unwrap(), 49);
/// })
/// .unwrap();
/// ```
#[must_use = "dropping it ends the task: keep it or wait for it"]
pub struct PoolTask<T> {
    /// Of the pool: not the pool itself, whose workers do not outlive its tasks for a handle that is kept.
    zygote: Weak<zygote::Inner>,
    name: Arc<str>,
    seen: watch::Receiver<Seen>,
    cancelled: Arc<Notify>,
    _value: PhantomData<fn() -> T>,
}

/// The future of [`Pool::open`](crate::Pool::open) and its like: gives the handle once a worker has the task.
#[must_use = "futures do nothing unless they are awaited"]
pub struct PoolOpen<T>(Pin<Box<dyn Future<Output = Result<PoolTask<T>, Error>> + Send>>);

impl<T: 'static> PoolOpen<T> {
    pub(super) fn new(pool: Arc<Inner>, job: Result<BareJob, Error>) -> Self {
        Self(Box::pin(async move {
            let job = job?;
            pool.zygote.0.check_owner()?;
            let task = PoolTask::start(pool, job)?;
            let mut seen = task.seen.clone();
            // The driver holds the other end until it knows the outcome.
            let seen = seen.wait_for(|seen| seen.pid.is_some() || seen.outcome.is_some()).await;
            let failed = seen.map_err(|_| Error::ShutDown)?.clone();
            match failed.outcome.as_deref() {
                Some(Err(error)) if failed.pid.is_none() => Err(error.clone()),
                _ => Ok(task),
            }
        }))
    }
}

impl<T> PoolTask<T> {
    fn start(pool: Arc<Inner>, job: BareJob) -> Result<Self, Error> {
        let driver = pool.driver(&job.name)?;
        let (tell, seen) = watch::channel(Seen::default());
        let cancelled = Arc::new(Notify::new());
        let task = Self {
            zygote: Arc::downgrade(&pool.zygote.0),
            name: job.name.clone(),
            seen,
            cancelled: cancelled.clone(),
            _value: PhantomData,
        };
        driver.spawn(async move {
            let served = pool.serve(&job, |pid| tell.send_modify(|seen| seen.pid = Some(pid)));
            let outcome = match race(served, cancelled.notified()).await {
                Either::First(outcome) => outcome,
                Either::Second(()) => {
                    let pid = tell.borrow().pid;
                    Err(Error::Cancelled { task: TaskId { name: job.name.clone(), pid } })
                }
            };
            // The pool first: whoever knows the outcome may count on its worker being idle, or gone.
            drop(pool);
            tell.send_modify(|seen| seen.outcome = Some(Arc::new(outcome)));
        });
        Ok(task)
    }

    /// The process that runs it, or ran it. Other tasks of the pool run there before and after.
    pub fn pid(&self) -> u32 {
        self.seen.borrow().pid.unwrap_or(0)
    }

    /// The path of its function.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ends the task, by ending its worker. If it had no outcome yet, that is [`Error::Cancelled`].
    ///
    /// ```
    /// use tokio_run_in_process::{Error, Pool, block_on};
    ///
    /// block_on(async {
    ///     let pool = Pool::builder().build().unwrap();
    ///     let task = pool.open(std::future::pending::<()>, ()).await.unwrap();
    ///     assert!(task.try_wait().is_none());
    ///     task.cancel();
    ///     assert!(matches!(task.wait().await, Err(Error::Cancelled { .. })));
    /// })
    /// .unwrap();
    /// ```
    pub fn cancel(&self) {
        self.cancelled.notify_one();
    }

    fn task_id(&self) -> TaskId {
        TaskId { name: self.name.clone(), pid: self.seen.borrow().pid }
    }
}

impl<T: DeserializeOwned + Send + 'static> PoolTask<T> {
    /// Waits for the task's outcome.
    ///
    /// # Errors
    ///
    /// [`Error`], by cause, as [`Pool::run`](crate::Pool::run).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn wait(&self) -> Result<T, Error> {
        if let Some(zygote) = self.zygote.upgrade() {
            zygote.check_owner()?;
        }
        let mut seen = self.seen.clone();
        let outcome = seen.wait_for(|seen| seen.outcome.is_some()).await.ok().and_then(|seen| seen.outcome.clone());
        let outcome = outcome.ok_or(Error::ShutDown)?;
        decode::decode_kept(outcome, || self.task_id()).await
    }

    /// The task's outcome if it is known. A result is decoded here and now, however large it is.
    pub fn try_wait(&self) -> Option<Result<T, Error>> {
        let outcome = self.seen.borrow().outcome.clone()?;
        Some(decode::decode_kept_here(&outcome, || self.task_id()))
    }
}

impl<T> Drop for PoolTask<T> {
    fn drop(&mut self) {
        // In a fork of the parent this notifies nobody.
        self.cancel();
    }
}

impl<T> Future for PoolOpen<T> {
    type Output = Result<PoolTask<T>, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

impl<T> fmt::Debug for PoolOpen<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PoolOpen")
    }
}

impl<T> fmt::Debug for PoolTask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolTask").field("name", &self.name).field("pid", &self.pid()).finish_non_exhaustive()
    }
}
