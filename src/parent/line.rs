//! One worker's job socket on the parent's side, from the job's first byte until a runtime watches it.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    conversation::Conversation,
    driver::Driver,
    metrics::{Outcome, Stage},
    parcel::Parcel,
    roster::{self, Listener},
    worker::Worker,
    zygote::Inner,
};
use crate::{
    error::Error,
    model::{Cause, Event, Limits},
    pass::stream::{Stream, Unwatched},
    sys::{arm, process, socket},
};

/// A worker that stood ready and begins so long after its job was sent had to wait for a processor.
const LATE: Duration = Duration::from_millis(1);

/// A job as it goes over the socket.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) parcel: Parcel,
    /// Somebody waits for the last copy of a descriptor to be closed, so the parent must hear when the worker has them.
    pub(super) gives_away: bool,
    /// Its worker will not say that it executes. It counts as begun when it has read all of the job.
    pub(super) quiet: bool,
    /// That depended on what was learned, and how long this task takes is learned from.
    pub(super) teaches: bool,
    /// Its worker serves a pool: it begins once, and then the tasks of the pool do.
    pub(super) serves_pool: bool,
    pub(super) result_limit: u64,
    pub(super) limits: Limits,
}

/// The parent's end of a job socket, before a runtime watches it.
pub(super) struct Line {
    pub(super) driver: &'static Driver,
    pub(super) zygote: Arc<Inner>,
    pub(super) worker: Arc<Worker>,
    pub(super) job: Arc<Job>,
    socket: Option<OwnedFd>,
    /// The worker's end, until all is sent and it is armed (see `sys::arm`).
    pub(super) theirs: Option<Arc<OwnedFd>>,
    pub(super) sent: usize,
    /// To send at least a part.
    tried: bool,
    pub(super) owner: i32,
    /// When its turn came; then when the job was sent; then, if that is known (`dated`), when the task began. For the
    /// metrics.
    pub(super) since: Instant,
    pub(super) dated: bool,
    /// When the job was sent.
    sent_at: Instant,
    /// The worker stood ready before the task came. If it ends before the task begins, another takes its place unseen.
    pub(super) warm: bool,
}

impl Line {
    pub(super) fn new(
        driver: &'static Driver,
        zygote: Arc<Inner>,
        worker: Arc<Worker>,
        job: Arc<Job>,
        (ours, theirs): (OwnedFd, Arc<OwnedFd>),
        warm: bool,
        turn: Instant,
    ) -> Self {
        let theirs = arm::is_armed_by_sender().then_some(theirs);
        Self {
            driver,
            zygote,
            worker,
            job,
            socket: Some(ours),
            theirs,
            sent: 0,
            tried: false,
            owner: process::pid(),
            since: turn,
            dated: false,
            sent_at: turn,
            warm,
        }
    }

    /// Its worker says how long ago its task began.
    pub(super) fn began(&mut self, age: Duration) {
        let time = self.since.elapsed();
        let before = time.saturating_sub(age);
        self.zygote.counters.took(Stage::Executing, before);
        if self.warm && before > LATE && self.zygote.has_much_to_do() {
            self.zygote.warm().was_late(Instant::now());
        }
        self.since += before;
        self.dated = true;
    }

    /// Its worker's last words are here. How old its task was then is no time of ours.
    pub(super) fn ended(&self, age: Duration) {
        let zygote = &self.zygote;
        if self.job.teaches && self.warm == zygote.config.keeps_warm() {
            zygote.word.took(self.job.quiet, self.sent_at.elapsed().saturating_sub(age));
        }
    }

    /// The task executes.
    pub(super) fn begins(&self) {
        // A worker that says so before it has everything is not to be believed.
        if self.is_sent() {
            self.job.parcel.let_go();
        }
        if !self.worker.status.borrow().started {
            self.driver.tell(self.worker.id, Event::Executing);
            // What it said of itself came before that, so if its zygote is lost later it is looked at then. And it is now,
            // before anybody is told that it began, and finds that its pid is not known.
            if self.worker.status.borrow().orphaned {
                self.driver.orphan(self.worker.id);
            }
            self.worker.status.send_modify(|status| status.started = true);
        }
    }

    /// Whether the job is a quiet one, and the worker has read all of it or is gone.
    pub(super) fn is_read(&self, stream: Option<&Stream>) -> bool {
        self.job.quiet && self.is_sent() && stream.is_some_and(|stream| socket::all_is_read(stream.as_fd().as_raw_fd()))
    }

    pub(super) fn is_sent(&self) -> bool {
        self.sent == self.job.parcel.len()
    }

    pub(super) fn is_warm(&self) -> bool {
        self.warm
    }

    pub(super) fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    pub(super) fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// Sends what fits at once: the whole of most jobs.
    fn send_first(&mut self, socket: BorrowedFd<'_>) {
        self.tried = true;
        // An error shows again when the conversation goes on.
        let _ = self.job.parcel.send(socket, &mut self.sent);
        self.arm_if_sent();
        self.zygote.counters.took(Stage::Dispatched, self.since.elapsed());
        self.since = Instant::now();
        self.sent_at = self.since;
    }

    /// Arms the worker's end once nothing more will be sent.
    pub(super) fn arm_if_sent(&mut self) {
        if self.is_sent() {
            if let Some(theirs) = self.theirs.take() {
                arm::arm_for_worker(&*theirs);
            }
        }
    }

    /// Sends the job before any reactor is involved: its conversation will be held on the driver's runtime, which stays.
    pub(super) fn sent(mut self) -> Self {
        if let Some(socket) = self.socket.take() {
            self.send_first(socket.as_fd());
            self.socket = Some(socket);
        }
        self
    }

    /// Registers the socket with the current tokio runtime, and sends the job if it is not sent.
    ///
    /// In this order: a runtime that is going away refuses, and the socket is closed with that. That would kill a worker
    /// that has begun, without the grace period that is promised to it.
    pub(super) fn register(mut self) -> Result<Conversation, Error> {
        let Some(socket) = self.socket.take() else { return Err(Error::ShutDown) };
        let mut stream = self.watch(socket, self.tried && !self.is_sent())?;
        if !self.tried {
            self.send_first(stream.as_fd());
            if !self.is_sent() {
                let socket = stream.into_socket().map_err(|_| Error::ShutDown)?;
                stream = self.watch(socket, true)?;
            }
        }
        self.listens_on(&stream);
        Ok(Conversation::new(self, stream))
    }

    fn watch(&self, socket: OwnedFd, writing: bool) -> Result<Stream, Error> {
        let task = || self.worker.task_id();
        let refused = Err(match Stream::register(socket, writing) {
            Ok(stream) => return Ok(stream),
            Err(Unwatched::Io(e)) if tokio::runtime::is_rt_shutdown_err(&e) => Error::ShutDown,
            Err(Unwatched::Io(e)) => {
                Error::Spawn { task: task(), step: "watch the job socket".to_owned(), source: Arc::new(e) }
            }
            Err(Unwatched::NoReactor) => Error::NoReactor { task: task() },
        });
        self.zygote.counters.finished(Outcome::of(&refused));
        // The socket is closed by now, which ends a worker that runs already.
        self.driver.roster().leave(self.worker.id, None);
        self.driver.tell(self.worker.id, Event::End(Cause::Dropped));
        refused
    }

    /// Should this not be polled in time, the driver looks for `Executing` itself.
    pub(super) fn listens_on(&self, stream: &Stream) {
        if let Stream::Reading(_) = stream {
            let listener = Listener { socket: stream.as_fd().as_raw_fd(), quiet: self.job.quiet };
            self.driver.roster().set_listener(self.worker.id, Some(listener));
        }
    }
}

impl Drop for Line {
    /// Never watched: the job is taken back, and the worker ended.
    fn drop(&mut self) {
        if self.socket.is_some() && self.owner == process::pid() {
            self.zygote.counters.finished(Outcome::Cancelled);
            hand_over(self, None);
        }
    }
}

/// Ends the worker whose caller is gone. The driver carries that on.
pub(super) fn hand_over(line: &mut Line, socket: Option<OwnedFd>) {
    let Some(socket) = socket.or_else(|| line.socket.take()) else {
        // It went with the runtime that watched it, which ends the worker.
        line.driver.roster().leave(line.worker.id, None);
        return line.driver.tell(line.worker.id, Event::End(Cause::Dropped));
    };
    // A worker that has not begun cannot begin any more, and one that sends a result is not kept waiting.
    roster::revoke(&socket);
    // It may be executing if it has its whole job: closing our end would kill it before its grace period is over.
    let kept = line.is_sent();
    line.driver.roster().leave(line.worker.id, kept.then_some(socket));
    line.driver.tell(line.worker.id, Event::End(Cause::Dropped));
}
