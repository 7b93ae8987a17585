//! Every worker that was ordered and is not known to be gone: its lifecycle, its deadline, and what signals it.
//!
//! Shared by the callers and the driver under one lock, held for microseconds. The lock order is roster, then link.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::{AsFd, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::OwnedSemaphorePermit;

use super::{
    link::Link,
    metrics::Stage,
    worker::{Exit, Worker},
    zygote::Inner,
};
use crate::{
    model::{Action, Event, ExitStatus, Lifecycle, Limits, Signal, WorkerId},
    sys::{process, socket},
    wire::control::{Fact, Order},
};

/// Where a worker will be heard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listener {
    /// The number of our end.
    pub(super) socket: RawFd,
    /// It will not say that it executes.
    pub(super) quiet: bool,
}

impl Listener {
    fn has_begun(self) -> bool {
        socket::has_input(self.socket) || self.quiet && socket::all_is_read(self.socket)
    }
}

/// What the parent holds for one worker until it is gone.
pub(super) struct Record {
    worker: Arc<Worker>,
    life: Lifecycle,
    /// When its outcome was known.
    finished: Option<Instant>,
    pidfd: Option<OwnedFd>,
    /// It has a pid that a signal can reach: the zygote said so, or will not say it and knows it when it is asked.
    reachable: bool,
    /// Signals that were asked for before the worker had a pid.
    early: Vec<Signal>,
    /// The worker's end of its job socket. Kept until the zygote has it: where descriptors travel by reference to the
    /// sender (macOS), one that is closed on its way is lost.
    theirs: Option<Arc<OwnedFd>>,
    /// Our end, until its reader knows that the task executes. Whoever closes it takes this away first.
    listener: Option<Listener>,
    /// SIGKILL was due. A zygote that was asked for it may die before it does it.
    killed: bool,
    /// No zygote knows it.
    orphan: bool,
    /// Nobody reads our end of its job socket any more.
    unheard: bool,
    /// Our end, when nobody reads it any more but the worker still runs: closing it would kill the worker at once.
    ours: Option<OwnedFd>,
    /// Keeps the zygote: a worker that was let go of needs it to the end.
    zygote: Arc<Inner>,
    /// To the zygote that is its parent.
    link: Arc<Link>,
    /// Counts until the process is gone, not until the task is done.
    _permit: OwnedSemaphorePermit,
}

impl Record {
    pub(super) fn new(
        worker: Arc<Worker>,
        limits: Limits,
        (zygote, link): (Arc<Inner>, Arc<Link>),
        permit: OwnedSemaphorePermit,
        theirs: Option<Arc<OwnedFd>>,
        announced: bool,
        now: Instant,
    ) -> Self {
        Self {
            worker,
            life: Lifecycle::new(limits, now),
            finished: None,
            pidfd: None,
            reachable: !announced,
            early: Vec::new(),
            theirs,
            listener: None,
            killed: false,
            orphan: false,
            unheard: false,
            ours: None,
            zygote,
            link,
            _permit: permit,
        }
    }

    fn signal(&mut self, signal: Signal) -> io::Result<()> {
        self.killed |= signal == Signal::KILL;
        if !self.reachable {
            // The zygote may be stopped. Where the worker's own word is enough, nobody waits for it.
            self.recognise();
            if self.pidfd.is_none() {
                self.early.push(signal);
                return Ok(());
            }
        }
        if let Some(pidfd) = &self.pidfd {
            match process::signal_pidfd(pidfd, signal) {
                Ok(()) => return Ok(()),
                // It is gone; nothing else can have its descriptor.
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Err(e),
                // EPERM, if privileges were dropped after `init`: the zygote still has them.
                Err(_) => {}
            }
        }
        // SIGKILL is for all that the worker started. By pidfd the zygote does that when it reaps.
        let group = signal == Signal::KILL;
        let order = Order::Signal { worker: self.worker.id, signal, group };
        // One that is there and does not know the worker would take the order in silence.
        let sent = match self.orphan {
            true => Err(io::Error::from_raw_os_error(libc::EPIPE)),
            false => self.link.send(order, &[]),
        };
        if sent.is_err() && signal == Signal::KILL {
            // No zygote either. An armed worker dies of the end of its job socket.
            self.ours = None;
            self.worker.status.send_modify(|status| status.cut = true);
            return Ok(());
        }
        sent
    }

    /// Asks another zygote for what the one that is gone may not have done.
    fn repeat(&mut self) {
        if self.reachable && self.pidfd.is_none() {
            self.do_again();
        }
    }

    /// What a zygote was asked for it may not have done. Done twice, it does no harm.
    fn do_again(&mut self) {
        if self.killed {
            let _ = self.signal(Signal::KILL);
        } else if self.life.is_ending() {
            self.perform(Action::Terminate);
        }
    }

    /// Nobody else says who the worker is, yet: believes what it said itself, before anything of the user's ran in it.
    fn recognise(&mut self) {
        let Some((pid, heard)) = self.worker.said().filter(|_| self.pidfd.is_none()) else { return };
        self.pidfd = i32::try_from(pid).ok().and_then(|pid| process::open_pidfd_since(pid, heard));
        if self.pidfd.is_some() {
            self.send_early();
        }
    }

    /// Sends what was asked for before there was a pid to send it to.
    fn send_early(&mut self) {
        for signal in std::mem::take(&mut self.early) {
            let _ = self.signal(signal);
        }
    }

    fn perform(&mut self, action: Action) {
        // A worker that is gone needs no signal, and if the zygote is gone its job socket is the last word.
        match action {
            Action::None => {}
            Action::Terminate => {
                let _ = self.signal(Signal::TERM);
                // A stopped worker must go on to see it.
                let _ = self.signal(Signal::CONT);
            }
            Action::Kill => {
                super::driver::warn_killed(&self.worker, self.life.cause());
                let _ = self.signal(Signal::KILL);
                // An armed worker dies of this by the kernel's hand, should the zygote be stopped.
                self.ours = None;
            }
        }
    }
}

#[derive(Default)]
pub(super) struct Roster {
    records: HashMap<WorkerId, Record>,
    deadlines: BTreeSet<(Instant, WorkerId)>,
    /// Until when the driver sleeps; a deadline before that must wake it.
    sleeps_until: Option<Instant>,
}

/// A number that no other worker of this program has.
pub(super) fn next_id() -> WorkerId {
    static LAST: AtomicU64 = AtomicU64::new(0);
    WorkerId(LAST.fetch_add(1, Ordering::Relaxed) + 1)
}

/// A driver that is this late was not just busy.
const OVERSLEPT: Duration = Duration::from_secs(1);

/// Whether the driver must be woken, because a deadline came that is sooner than the one it waits for.
#[must_use]
pub(super) struct Sooner(pub(super) bool);

impl Roster {
    /// `None` if its zygote is being shut down. A shutdown says so before it looks here for who is left: whom it does not see
    /// is refused.
    pub(super) fn add(&mut self, record: Record) -> Option<Sooner> {
        if record.zygote.is_closing() {
            return None;
        }
        let id = record.worker.id;
        let sooner = self.schedule(record.life.deadline(), id);
        self.records.insert(id, record);
        Some(sooner)
    }

    /// Takes back what was added, when the order could not be sent.
    pub(super) fn remove(&mut self, id: WorkerId) {
        if let Some(record) = self.records.remove(&id) {
            self.unschedule(record.life.deadline(), id);
            // A shutdown may have seen it and wait for its end.
            record.zygote.gone.notify_waiters();
        }
    }

    /// Whether a worker has a task, so that what happens to it is the task's business.
    pub(super) fn knows(&self, id: WorkerId) -> bool {
        self.records.contains_key(&id)
    }

    fn schedule(&mut self, deadline: Option<Instant>, id: WorkerId) -> Sooner {
        let Some(deadline) = deadline else { return Sooner(false) };
        self.deadlines.insert((deadline, id));
        Sooner(self.sleeps_until.is_none_or(|until| deadline < until))
    }

    fn unschedule(&mut self, deadline: Option<Instant>, id: WorkerId) {
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, id));
        }
    }

    /// Tells the worker's lifecycle what happened and does what it answers.
    pub(super) fn on(&mut self, id: WorkerId, event: Event) -> Sooner {
        let Some(record) = self.records.get_mut(&id) else { return Sooner(false) };
        let (before, cause) = (record.life.deadline(), record.life.cause());
        if matches!(event, Event::Executing | Event::Finished) {
            record.theirs = None;
        }
        let now = Instant::now();
        let late = matches!(event, Event::Deadline { .. }) && record.listener.is_some_and(Listener::has_begun);
        // It did start: only its caller does not poll, and has not read that.
        let event = if late { Event::Executing } else { event };
        if event == Event::Finished {
            record.finished = Some(now);
        }
        let action = record.life.on(event, now);
        if !record.life.is_starting() {
            record.listener = None;
        }
        record.perform(action);
        let (after, new_cause) = (record.life.deadline(), record.life.cause());
        if new_cause != cause {
            record.worker.status.send_modify(|status| status.cause = new_cause);
        }
        if record.unheard && record.worker.status.borrow().cut {
            self.gone(id, Exit::Lost);
            return Sooner(false);
        }
        if before == after {
            return Sooner(false);
        }
        self.unschedule(before, id);
        self.schedule(after, id)
    }

    /// Signals a worker on behalf of the user. ESRCH if it is gone.
    pub(super) fn signal(&mut self, id: WorkerId, signal: Signal) -> io::Result<()> {
        match self.records.get_mut(&id) {
            Some(record) => record.signal(signal),
            None => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    /// Says where `Executing` will arrive, and that it will not be looked for there any more.
    pub(super) fn set_listener(&mut self, id: WorkerId, listener: Option<Listener>) {
        if let Some(record) = self.records.get_mut(&id) {
            record.listener = listener.filter(|_| record.life.is_starting());
        }
    }

    /// Nobody listens to the worker any more. Our end of its job socket, if it is given, stays open until it is gone.
    pub(super) fn leave(&mut self, id: WorkerId, socket: Option<OwnedFd>) {
        let Some(record) = self.records.get_mut(&id) else { return };
        record.unheard = true;
        record.ours = socket;
        if record.ours.is_none() && record.worker.status.borrow().orphaned {
            self.gone(id, Exit::Lost);
        }
    }

    /// The same of a worker that has said all it had to say. The driver closes the socket with the rest: the kernel may
    /// have more to do then (it collects what was in flight), and the caller has its value sooner.
    pub(super) fn leave_done(&mut self, id: WorkerId, socket: Option<OwnedFd>) {
        let orphaned = self.records.get(&id).is_some_and(|record| record.worker.status.borrow().orphaned);
        self.leave(id, socket.filter(|_| !orphaned));
    }

    /// The workers with a task of a handle.
    pub(super) fn ids(&self, zygote: &Arc<Inner>) -> Vec<WorkerId> {
        self.ids_where(|record| Arc::ptr_eq(&record.zygote, zygote))
    }

    /// How many of these have a task that is neither done nor told to end.
    pub(super) fn under_way(&self, ids: &[WorkerId]) -> usize {
        let records = ids.iter().filter_map(|id| self.records.get(id));
        records.filter(|record| record.life.is_under_way()).count()
    }

    /// The longest grace period of the workers with a task of a handle, if there are any.
    pub(super) fn longest_grace(&self, zygote: &Arc<Inner>) -> Option<Duration> {
        let of_it = self.records.values().filter(|record| Arc::ptr_eq(&record.zygote, zygote));
        of_it.map(|record| record.life.grace()).max()
    }

    /// When the last of these workers, which were told to end, is killed if it does not. `None` if one has all the time it
    /// wants.
    pub(super) fn last_kill(&self, ids: &[WorkerId], now: Instant) -> Option<Instant> {
        let lives = ids.iter().filter_map(|id| self.records.get(id)).map(|record| &record.life);
        let mut kills =
            lives.map(|life| if life.is_ending() { life.deadline() } else { Some(life.deadline().unwrap_or(now)) });
        kills.try_fold(now, |last, kill| Some(last.max(kill?)))
    }

    fn ids_where(&self, holds: impl Fn(&Record) -> bool) -> Vec<WorkerId> {
        self.records.values().filter(|record| holds(record)).map(|record| record.worker.id).collect()
    }

    /// Handles the deadlines that have passed, and says when the next one is.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Instant> {
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            let overslept = now.duration_since(deadline) > OVERSLEPT;
            let Sooner(_) = self.on(id, Event::Deadline { overslept });
            self.deadlines.remove(&(deadline, id));
        }
        self.sleeps_until = self.deadlines.first().map(|&(deadline, _)| deadline);
        self.sleeps_until
    }

    /// Takes in what a zygote said.
    pub(super) fn learn(&mut self, fact: Fact, pidfd: Option<OwnedFd>) {
        match fact {
            Fact::Forked { worker, pid, .. } => {
                let Some(record) = self.records.get_mut(&worker) else { return };
                record.reachable = true;
                record.pidfd = pidfd.or(record.pidfd.take());
                let theirs = record.theirs.take();
                record.send_early();
                record.worker.status.send_modify(|status| status.pid = u32::try_from(pid).ok());
                drop(theirs);
            }
            Fact::NotForked { worker, errno } => self.gone(worker, Exit::NotForked(errno)),
            Fact::Exited { worker, pid, status, usage } => {
                let status = ExitStatus::from_raw(status);
                if let Some(record) = self.records.get(&worker) {
                    // Who waits is told with the exit, below.
                    record.worker.status.send_if_modified(|status| {
                        status.pid = u32::try_from(pid).ok();
                        false
                    });
                }
                self.gone(worker, Exit::Reaped { status, usage: Some(usage) });
            }
            Fact::Stopped { worker } => {
                if let Some(record) = self.records.get(&worker) {
                    record.worker.status.send_modify(|status| status.stopped = true);
                }
            }
            // A driver that hears of it looks after it: see `orphan`.
            Fact::Unknown { .. } | Fact::Ready { .. } | Fact::ZygoteForked { .. } => {}
        }
    }

    /// The worker is gone: lets go of all that was held for it.
    pub(super) fn gone(&mut self, id: WorkerId, exit: Exit) {
        let Some(mut record) = self.records.remove(&id) else { return };
        self.unschedule(record.life.deadline(), id);
        let now = Instant::now();
        // The exit may be told before the last words were read.
        let took = record.finished.map_or(Duration::ZERO, |finished| now.saturating_duration_since(finished));
        record.zygote.counters.took(Stage::Exited, took);
        record.life.on(Event::Exited, now);
        let (worker, zygote) = (record.worker.clone(), record.zygote.clone());
        // The permit first: whoever sees the exit may count on it.
        drop(record);
        zygote.gone.notify_waiters();
        worker.status.send_modify(|status| {
            status.exit.get_or_insert(exit);
        });
    }

    /// A zygote is lost. Its workers are its ancestor's children now, if that is there: it is asked to report them. Gives
    /// the others.
    pub(super) fn zygote_lost(&mut self, link: &Arc<Link>) -> Vec<WorkerId> {
        let mut orphans = Vec::new();
        for id in self.ids_where(|record| Arc::ptr_eq(&record.link, link)) {
            let Some(record) = self.records.get_mut(&id) else { continue };
            record.theirs = None;
            let ancestor = record.zygote.lineage.ancestor().link.clone();
            let inherits = process::can_inherit() && !Arc::ptr_eq(&ancestor, link);
            if inherits && ancestor.send(Order::Announce { worker: id }, &[]).is_ok() {
                record.link = ancestor;
                record.repeat();
            } else {
                orphans.push(id);
            }
        }
        orphans
    }

    /// No zygote will tell how this worker ends. Its end can still be seen by a pidfd, which is given; else the job socket
    /// is the last word, and where nobody reads that any more there is none.
    pub(super) fn orphan(&mut self, id: WorkerId) -> Option<OwnedFd> {
        let record = self.records.get_mut(&id)?;
        record.orphan = true;
        // A signal that waits for its pid would wait for ever.
        record.reachable = true;
        let asked = record.pidfd.is_none() && record.early.is_empty();
        record.recognise();
        if asked && record.pidfd.is_some() {
            record.do_again();
        }
        match record.pidfd.as_ref().and_then(|pidfd| pidfd.try_clone().ok()) {
            Some(pidfd) => {
                record.worker.status.send_if_modified(|status| std::mem::take(&mut status.orphaned));
                return Some(pidfd);
            }
            None if record.unheard => self.gone(id, Exit::Lost),
            None => record.worker.status.send_modify(|status| {
                status.orphaned = true;
                status.cut |= record.killed;
            }),
        }
        None
    }
}

/// Ends the sending side of a job socket for good: a worker that has not said `Executing` cannot start any more.
pub(super) fn revoke(job: impl AsFd) {
    socket::shutdown(job, std::net::Shutdown::Read);
}
