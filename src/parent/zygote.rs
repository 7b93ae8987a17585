//! The handle to a zygote.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak, atomic::AtomicUsize},
    time::Instant,
};

use tokio::sync::{Notify, Semaphore, watch};

pub use super::config::{MAX_PROCESSES, WARM_WORKERS};
use super::{
    config::Config,
    dispatch::processors,
    driver::{self, Driver},
    lineage::{self, Lineage},
    metrics::Counters,
    run::{Open, Run},
    task::Task,
    warm::WarmSet,
    word::Word,
};
use crate::{
    error::Error,
    model::{Signal, WorkerId},
    sys::{CodeModules, process, role},
    task::{AsyncTask, BlockingTask},
    wire::control::{Fact, Order},
};

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
    pub(super) word: Word,
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
    pub(super) fn new(
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
            word: Word::default(),
            served: OnceLock::new(),
            room,
            closing: watch::Sender::new(false),
            gone: Notify::new(),
        });
        lineage::remember(&inner);
        inner
    }

    /// After the handle was made known: its ancestor may have gone before anybody knew that it needs it.
    pub(super) fn check_ancestor(self: &Arc<Self>) {
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

    /// Whether more is under way than the processors can be at, some of it waiting for something else.
    pub(super) fn has_much_to_do(&self) -> bool {
        self.busy() > 2 * processors()
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
            let _ = warm.refill(&self.lineage.link(), self.has_much_to_do(), now);
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
