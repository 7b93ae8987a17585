//! The one thread of the library in the user's program, but for that of `events`.
//!
//! It starts with the first task and lives as long as the program. It never blocks and never runs user code.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak, mpsc},
    time::{Duration, Instant},
};

use tokio::{
    net::unix::pipe,
    runtime::{self, Runtime},
    sync::Notify,
};

use super::{
    link::{self, Link},
    race::{Either, race},
    roster::{Roster, Sooner},
    worker::{Exit, Worker},
    zygote::Inner,
};
use crate::{
    model::{Cause, Event, ExitStatus, WorkerId},
    pass::reactor,
    sys::{process, signal, socket},
    wire::control::{FACT_SIZE, Fact, FactBytes},
};

pub(super) struct Driver {
    runtime: runtime::Handle,
    roster: Mutex<Roster>,
    /// A deadline came that is sooner than the one the sweeper sleeps for.
    sooner: Notify,
}

static DRIVER: OnceLock<&'static Driver> = OnceLock::new();

/// The driver, started with the first call.
pub(super) fn get() -> io::Result<&'static Driver> {
    if let Some(driver) = DRIVER.get() {
        return Ok(driver);
    }
    static STARTING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = STARTING.lock();
    if let Some(driver) = DRIVER.get() {
        return Ok(driver);
    }
    // The thread first: a runtime that got none would be dropped inside the caller's, where tokio panics.
    let (give, take) = mpsc::channel::<(Runtime, &'static Driver)>();
    let body = move || {
        if let Ok((runtime, driver)) = take.recv() {
            runtime.block_on(driver.sweep());
        }
    };
    // A signal to the program is the program's: no handler of it ever runs on this thread.
    signal::with_all_blocked(|| std::thread::Builder::new().name("run-in-process".to_owned()).spawn(body))?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    // Ends of channels that are polled by another executor need a reactor too.
    reactor::offer(runtime.handle());
    let driver = Driver { runtime: runtime.handle().clone(), roster: Mutex::default(), sooner: Notify::new() };
    let driver: &'static Driver = Box::leak(Box::new(driver));
    // It waits for this.
    let _ = give.send((runtime, driver));
    Ok(DRIVER.get_or_init(|| driver))
}

impl Driver {
    pub(super) fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the roster, and wakes the sweeper if that made a sooner deadline.
    pub(super) fn with_roster(&self, change: impl FnOnce(&mut Roster) -> Sooner) {
        let sooner = change(&mut self.roster());
        self.wake_if(sooner);
    }

    /// Wakes the sweeper if there is a deadline before the one it sleeps for.
    pub(super) fn wake_if(&self, Sooner(sooner): Sooner) {
        if sooner {
            self.sooner.notify_one();
        }
    }

    /// Tells a worker's lifecycle what happened.
    pub(super) fn tell(&self, id: WorkerId, event: Event) {
        self.with_roster(|roster| roster.on(id, event));
    }

    pub(super) fn runtime_id(&self) -> runtime::Id {
        self.runtime.id()
    }

    pub(super) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(future);
    }

    /// Runs `make` where timers and sockets belong to this runtime, whoever polls them later.
    pub(super) fn enter<T>(&self, make: impl FnOnce() -> T) -> T {
        let _guard = self.runtime.enter();
        make()
    }

    /// Keeps the deadlines of all workers.
    async fn sweep(&self) -> ! {
        loop {
            let next = self.roster().expire(Instant::now());
            let sooner = self.sooner.notified();
            match next {
                Some(next) => {
                    race(sooner, tokio::time::sleep_until(next.into())).await;
                }
                None => sooner.await,
            }
        }
    }

    /// Hears a handle's zygotes from now on, if nobody does yet.
    pub(super) fn serve_once(&'static self, zygote: &Arc<Inner>, served: &OnceLock<()>) -> io::Result<()> {
        static STARTING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = STARTING.lock();
        if served.get().is_none() {
            self.serve(&zygote.lineage.link(), Arc::downgrade(zygote))?;
            let _ = served.set(());
        }
        let ancestor = zygote.lineage.ancestor();
        if ancestor.served.get().is_none() {
            self.serve(&ancestor.link, Weak::new())?;
            let _ = ancestor.served.set(());
        }
        Ok(())
    }

    /// Hears a zygote, which may have spares of this handle.
    pub(super) fn serve(&'static self, link: &Arc<Link>, zygote: Weak<Inner>) -> io::Result<()> {
        let socket = link::duplicate(link)?;
        // For one direction, whatever it is: a stream would wake this thread each time the zygote reads an order.
        let facts = self.enter(|| pipe::Receiver::from_owned_fd_unchecked(socket))?;
        self.spawn(send_on(link.clone()));
        let link = link.clone();
        self.spawn(async move {
            let ended = self.receive_facts(&facts, &zygote).await;
            link.close();
            // Nobody would tell how a spare ended.
            if let Some(zygote) = zygote.upgrade() {
                zygote.warm().clear();
            }
            // The sender waits for orders that will not come.
            link.has_unsent.notify_one();
            let Err(e) = ended;
            self.zygote_lost(&link, &e);
            link.set_ended();
        });
        Ok(())
    }

    /// Takes in facts until the socket ends, and keeps the warm workers at their number.
    async fn receive_facts(
        &'static self,
        socket: &pipe::Receiver,
        zygote: &Weak<Inner>,
    ) -> Result<std::convert::Infallible, io::Error> {
        let mut bytes = Vec::new();
        // `None` stands for one that the limit of this process did not let through.
        let mut fds: VecDeque<Option<OwnedFd>> = VecDeque::new();
        // Whether workers went, so that others may be ordered: never at the cost of a task that is being dispatched.
        let mut gone = false;
        loop {
            match zygote.upgrade().and_then(|zygote| zygote.keep_warm(Instant::now(), std::mem::take(&mut gone))) {
                None => socket.readable().await?,
                Some(next) => match race(socket.readable(), tokio::time::sleep_until(next.into())).await {
                    Either::First(readable) => readable?,
                    Either::Second(()) => {
                        gone = true;
                        continue;
                    }
                },
            }
            let mut more = Vec::new();
            let mut buffer = [0; 64 * FACT_SIZE];
            let receive = || socket::receive_at_the_limit(socket.as_fd(), &mut buffer, &mut more, false);
            let received = match socket.try_io(receive) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                // It left orders unread. What it said before comes after this, and then the end.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => continue,
                Err(e) => return Err(e),
                Ok(received) if received.bytes == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(received) => received,
            };
            let n = received.bytes;
            fds.extend(more.into_iter().map(Some));
            if received.dropped {
                // One call takes the descriptors of one message at most, and a fact has one.
                fds.push_back(None);
            }
            bytes.extend_from_slice(&buffer[..n]);
            let mut roster = self.roster();
            let mut at = 0;
            while let Some(fact) = bytes.get(at..).and_then(|rest: &[u8]| rest.first_chunk::<FACT_SIZE>()) {
                let fact: &FactBytes = fact;
                let fact = Fact::decode(fact).map_err(io::Error::other)?;
                at += FACT_SIZE;
                let pidfd: Option<OwnedFd> = if fact.fds() > 0 { fds.pop_front().flatten() } else { None };
                gone |= !matches!(fact, Fact::Forked { .. });
                if let Fact::Unknown { worker } = fact {
                    let pidfd = roster.orphan(worker);
                    self.watch_orphan(worker, pidfd);
                    continue;
                }
                match (fact.worker(), zygote.upgrade()) {
                    // Of a spare: it is of no use any more.
                    (Some(worker), Some(zygote)) if !roster.knows(worker) => zygote.lost_spare(fact, worker),
                    _ => roster.learn(fact, pidfd),
                }
            }
            drop(roster);
            bytes.drain(..at);
        }
    }

    /// Workers of a dead zygote go on; how each ends its ancestor says, or else its pidfd, or its job socket.
    fn zygote_lost(&'static self, link: &Arc<Link>, why: &io::Error) {
        let orphans: Vec<_> = {
            let mut roster = self.roster();
            let orphans = roster.zygote_lost(link);
            orphans.into_iter().map(|id| (id, roster.orphan(id))).collect()
        };
        for (id, pidfd) in orphans {
            self.watch_orphan(id, pidfd);
        }
        if self.lost(link) {
            warn_zygote_lost(why);
        }
    }

    /// No zygote will tell of this worker any more.
    pub(super) fn orphan(&'static self, id: WorkerId) {
        let pidfd = self.roster().orphan(id);
        self.watch_orphan(id, pidfd);
    }

    fn watch_orphan(&'static self, id: WorkerId, pidfd: Option<OwnedFd>) {
        let Some(pidfd) = pidfd else { return };
        self.spawn(async move {
            let status = wait_for_pidfd(pidfd).await;
            self.roster().gone(id, Exit::Reaped { status, usage: None });
        });
    }
}

/// Sends what the zygote was too busy to take.
async fn send_on(link: Arc<Link>) {
    loop {
        link.has_unsent.notified().await;
        if link.is_closed() {
            return;
        }
        // Watched only while it is full.
        let Ok(Ok(socket)) = link::duplicate(&link).map(pipe::Sender::from_owned_fd_unchecked) else {
            // No descriptor to be had now.
            tokio::time::sleep(Duration::from_millis(10)).await;
            link.has_unsent.notify_one();
            continue;
        };
        loop {
            match socket.try_io(|| link.flush()) {
                Ok(()) => break,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // The reader sees the same and cleans up.
                Err(e) if socket::is_peer_gone(&e) || link.is_closed() => return,
                // Too many descriptors in flight, or no memory: that passes.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            }
            if socket.writable().await.is_err() {
                return;
            }
        }
    }
}

/// Waits for the end of the process that a pidfd means. Not its parent, so nothing is reaped here.
pub(super) async fn wait_for_pidfd(pidfd: OwnedFd) -> ExitStatus {
    // Any descriptor that can be polled will do; only its readiness is used.
    let Ok(pipe) = pipe::Receiver::from_owned_fd_unchecked(pidfd) else { return ExitStatus::Unknown };
    if pipe.readable().await.is_err() {
        return ExitStatus::Unknown;
    }
    // Readable is not yet reaped: init does that in its own time, and only then is the status there.
    for look in 0..11 {
        if let Some(status) = process::exit_of_pidfd(&pipe) {
            return status;
        }
        // About a second in all.
        tokio::time::sleep(Duration::from_millis(1 << look.min(8))).await;
    }
    ExitStatus::Unknown
}

/// A worker did not end by itself and is killed.
pub(super) fn warn_killed(worker: &Worker, cause: Option<Cause>) {
    #[cfg(feature = "tracing")]
    {
        let (task, pid) = (worker.name.clone(), worker.status.borrow().pid);
        warn(move || {
            tracing::warn!(task = &*task, pid, reason = ?cause, "the worker did not end by itself and is killed");
        });
    }
    #[cfg(not(feature = "tracing"))]
    let _ = (worker, cause);
}

fn warn_zygote_lost(why: &io::Error) {
    #[cfg(feature = "tracing")]
    {
        let why = why.to_string();
        warn(move || tracing::warn!(error = why, "a zygote is gone; another one takes its place"));
    }
    #[cfg(not(feature = "tracing"))]
    let _ = why;
}

/// Not here: a subscriber is the program's code, and the roster may be locked.
#[cfg(feature = "tracing")]
fn warn(event: impl FnOnce() + Send + 'static) {
    // About what it takes. If it does not fit, a subscriber blocks and would not hear it either.
    let _ = super::events::tell(512, event);
}
