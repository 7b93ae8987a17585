//! From a prepared task to a worker: its turn, then its socket, its order, its job.

use std::{
    future::poll_fn,
    io,
    num::NonZeroUsize,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    contain::Contain,
    line::{Job, Line},
    link::Link,
    metrics::{Outcome, Stage},
    race::{Either, race},
    roster::{Record, next_id},
    waits::Waits,
    warm::job_socket,
    worker::Worker,
    zygote::{Inner, Zygote},
};
use crate::{
    error::{Error, TaskId},
    model::Phase,
    sys::{self, socket},
    wire::{
        control::{Order, Prepare},
        job,
    },
};

/// A task, checked and encoded: nothing of the caller's is borrowed any more.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) zygote: Zygote,
    pub(super) name: Arc<str>,
    pub(super) job: Arc<Job>,
    pub(super) prepare: Prepare,
    pub(super) queue_timeout: Option<Duration>,
    /// Whether the parent wants to know the worker's pid while it lives.
    pub(super) announce: bool,
    /// Where its worker is to have a control group.
    pub(super) cgroup: Option<Contain>,
}

/// For tests: as if there were much to do.
pub(crate) static ALWAYS_QUIET: AtomicBool = AtomicBool::new(false);

/// For tests: what was learned.
pub(crate) fn times_with_and_without_word(zygote: &Zygote) -> (u64, u64) {
    zygote.0.word.medians()
}

pub(super) fn processors() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get))
}

/// A task that lost so many warm workers before it began orders one of its own.
const MOST_WARM: usize = 3;

impl Prepared {
    fn task_id(&self) -> TaskId {
        TaskId { name: self.name.clone(), pid: None }
    }

    /// Nobody looks at this task before its outcome: where the kernel says whether a job was read, its worker need not
    /// say that it begins, and the caller is woken once.
    ///
    /// That saves work where there is much to do. Where there is not, what takes less time here is learned ([`word`]).
    ///
    /// [`word`]: super::word
    pub(super) fn job_may_be_quiet(&mut self) {
        // A timeout counts from the start of execution.
        let Job { limits, gives_away, parcel, .. } = &*self.job;
        if limits.running.is_some() || *gives_away || parcel.is_large() || !socket::knows_what_is_read() {
            return;
        }
        let inner = &self.zygote.0;
        let Some(job) = Arc::get_mut(&mut self.job) else { return };
        job.teaches = inner.busy() < processors() && !ALWAYS_QUIET.load(Ordering::Relaxed);
        job.quiet = !job.teaches || inner.word.is_spared();
        if job.quiet {
            job::set_quiet(job.parcel.head_mut());
        }
    }

    fn failed(&self, step: &'static str) -> impl FnOnce(io::Error) -> Error {
        let task = self.task_id();
        move |source| match socket::is_peer_gone(&source) {
            // The zygote's end of the control socket is closed.
            true => Error::ZygoteLost { task, started: Some(false) },
            false => Error::Spawn { task, step: step.to_owned(), source: Arc::new(source) },
        }
    }

    /// Waits for this task's turn: first come, first served. Where too many wait it is refused, unless it waited before or is
    /// a worker of a pool, of which there are no more than the pool may have.
    async fn admit(&self, tries: usize) -> Result<OwnedSemaphorePermit, Error> {
        let inner: &Arc<Inner> = &self.zygote.0;
        let permits: &Arc<Semaphore> = &inner.permits;
        if inner.is_closing() {
            return Err(Error::ShutDown);
        }
        if let Ok(permit) = permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let _queued = Waits::new(&inner.counters.queued);
        // Before idle workers are asked for room: one that becomes idle from now on finds that somebody waits.
        let refuses = tries == 0 && !self.job.serves_pool;
        let most = inner.config.max_queued.filter(|_| refuses).unwrap_or(usize::MAX);
        let (_waits, has_room) = match Waits::among(&inner.room.queued, most) {
            Some(waits) => (waits, false),
            None if inner.ask_for_room() => (Waits::new(&inner.room.queued), true),
            None => return Err(Error::Saturated { task: self.task_id(), limit: most }),
        };
        let turn = async {
            let mut turn = pin!(permits.clone().acquire_owned());
            // Before that, too: the room that is made is for this one, and not for whoever comes next.
            if let Poll::Ready(permit) = poll_fn(|context| Poll::Ready(turn.as_mut().poll(context))).await {
                return permit.map_err(|_| Error::ShutDown);
            }
            if !has_room {
                inner.ask_for_room();
            }
            // Who has his turn all the same is refused by the roster.
            match race(turn, inner.is_closed()).await {
                Either::First(permit) => permit.map_err(|_| Error::ShutDown),
                Either::Second(()) => Err(Error::ShutDown),
            }
        };
        let Some(limit) = self.queue_timeout else {
            return turn.await;
        };
        let driver = inner.driver().map_err(self.failed("start the driver thread"))?;
        let timeout = driver.enter(|| tokio::time::sleep(limit));
        match race(turn, timeout).await {
            Either::First(permit) => permit,
            Either::Second(()) => Err(Error::TimedOut { task: self.task_id(), phase: Phase::Queued, limit }),
        }
    }

    /// Waits for a turn and finds a worker for the job: a warm one if there is one, else one that is ordered now.
    ///
    /// `tries` counts the workers that ended before they began this task.
    async fn dispatch(&self, tries: usize) -> Result<Line, Error> {
        // Polled in a fork of the process that made the future, perhaps.
        self.zygote.0.check_owner()?;
        let counters = &self.zygote.0.counters;
        let asked = Instant::now();
        let permit = self.admit(tries).await?;
        counters.took(Stage::Queued, asked.elapsed());
        // A warm worker has its job sooner than a zygote with much to do has the order before it.
        let in_order = self.cgroup.as_ref().is_none_or(|cgroup| cgroup.tell(&self.zygote.0.lineage));
        let line = match if tries < MOST_WARM && in_order { self.take_warm(permit)? } else { Err(permit) } {
            Ok(line) => line,
            Err(permit) => self.order(permit)?,
        };
        if tries == 0 {
            counters.started(line.is_warm());
        }
        Ok(line)
    }

    /// Gives the job to a warm worker. The permit comes back if none stands.
    fn take_warm(&self, permit: OwnedSemaphorePermit) -> Result<Result<Line, OwnedSemaphorePermit>, Error> {
        let inner = &self.zygote.0;
        let driver = inner.driver().map_err(self.failed("start the driver thread"))?;
        let turn = Instant::now();
        let (worker, spare) = {
            // One lock over both: what the zygote says of the worker finds the spare or the record.
            let mut roster = driver.roster();
            let Some(spare) = inner.warm().take(self.prepare, inner.busy(), turn) else { return Ok(Err(permit)) };
            let worker = Worker::new(spare.id, self.name.clone());
            let kept = (!sys::SENT_FDS_ARE_SAFE).then(|| spare.theirs.clone());
            let record = Record::new(
                worker.clone(),
                self.job.limits,
                (inner.clone(), spare.link.clone()),
                permit,
                kept,
                self.announce,
                turn,
            );
            let Some(sooner) = roster.add(record) else { return Err(Error::ShutDown) };
            driver.wake_if(sooner);
            (worker, spare)
        };
        let id = worker.id;
        if let Some(cgroup) = &self.cgroup {
            // Another one than was told, if a zygote was replaced just now.
            cgroup.tell_one(&spare.link);
        }
        let sockets = (spare.socket, spare.theirs);
        if self.announce {
            // If the zygote is gone, the driver will see it.
            let _ = spare.link.send(Order::Announce { worker: id }, &[]);
        }
        Ok(Ok(Line::new(driver, inner.clone(), worker, self.job.clone(), sockets, true, turn)))
    }

    fn order(&self, permit: OwnedSemaphorePermit) -> Result<Line, Error> {
        let inner = &self.zygote.0;
        let driver = inner.driver().map_err(self.failed("start the driver thread"))?;
        let turn = Instant::now();
        let (ours, theirs) = job_socket().map_err(self.failed("make a socket pair"))?;
        let theirs = Arc::new(theirs);
        let worker = Worker::new(next_id(), self.name.clone());
        let id = worker.id;
        // Before the order: the answer finds its record.
        let kept = (!sys::SENT_FDS_ARE_SAFE).then(|| theirs.clone());
        let link = inner.lineage.link();
        if let Some(cgroup) = &self.cgroup {
            cgroup.tell_one(&link);
        }
        let record = Record::new(
            worker.clone(),
            self.job.limits,
            (inner.clone(), link.clone()),
            permit,
            kept,
            self.announce,
            turn,
        );
        let Some(sooner) = driver.roster().add(record) else { return Err(Error::ShutDown) };
        driver.wake_if(sooner);
        let order = Order::Fork { worker: id, prepare: self.prepare, announce: self.announce, spare: false };
        if let Err(e) = link.send(order, &[&theirs]) {
            driver.roster().remove(id);
            return Err(self.failed("order a worker")(e));
        }
        Ok(Line::new(driver, inner.clone(), worker, self.job.clone(), (ours, theirs), false, turn))
    }
}

/// The way of one task to the worker in which it begins: the first one mostly, another one if that is gone before.
pub(super) struct Tries<'a> {
    task: &'a Prepared,
    /// To the zygote that was asked last.
    link: Arc<Link>,
    lines: usize,
    warm: bool,
    /// How long it may wait for another zygote, from the first loss on.
    until: Option<Instant>,
}

/// What stands for no limit, which the clock could not hold.
const LONGEST_START: Duration = Duration::from_secs(1 << 30);

impl<'a> Tries<'a> {
    pub(super) fn new(task: &'a Prepared) -> Self {
        Self { task, link: task.zygote.0.lineage.link(), lines: 0, warm: false, until: None }
    }

    /// The next worker.
    pub(super) async fn line(&mut self) -> Result<Line, Error> {
        loop {
            // Before the zygote is asked: the next one is another than this.
            self.link = self.task.zygote.0.lineage.link();
            match self.task.dispatch(self.lines).await {
                Ok(line) => {
                    self.lines += 1;
                    self.warm = line.is_warm();
                    return Ok(line);
                }
                Err(Error::ZygoteLost { started: Some(false), .. }) if self.outlive_zygote().await => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the task, of which the last worker gave this, did not begin and goes to another one, unseen.
    pub(super) async fn go_on(&mut self, error: &Error) -> bool {
        match error {
            Error::EndedEarly { .. } => self.warm,
            Error::ZygoteLost { started: Some(false), .. } => {
                let goes_on = self.outlive_zygote().await;
                let inner = &self.task.zygote.0;
                if !goes_on || inner.is_closing() {
                    inner.counters.finished(Outcome::of::<()>(&Err(error.clone())));
                }
                goes_on
            }
            _ => false,
        }
    }

    /// Waits for another zygote. `false` if there is none in the time that the task has for its start. `true` also if the
    /// handle is shut down: the next try says so.
    async fn outlive_zygote(&mut self) -> bool {
        let inner = &self.task.zygote.0;
        let Ok(driver) = inner.driver() else { return false };
        let now = Instant::now();
        let until = *self.until.get_or_insert(now + self.task.job.limits.startup.min(LONGEST_START));
        let timeout = driver.enter(|| tokio::time::sleep_until(until.into()));
        let successor = async { until > now && inner.lineage.successor_of(&self.link, timeout).await };
        match race(inner.is_closed(), successor).await {
            Either::First(()) => true,
            Either::Second(found) => found,
        }
    }
}
