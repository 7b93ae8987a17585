//! The talk with one worker on its job socket: the job goes out, `Executing` and one terminal frame come back.
//!
//! The same code runs on the caller's runtime (`run`) and on the driver's (`Process`).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use super::{
    driver::Driver,
    metrics::{Outcome, Stage},
    race::{Either, race},
    roster,
    stream::{Stream, Unwatched},
    worker::{Exit, Status, Worker},
    zygote::Inner,
};
use crate::{
    error::{Coded, Error},
    model::{Cause, Ending, Event, ExitStatus, Failure, Limits, Phase, Signal, Terminal, settle},
    sys::{arm, process, socket},
    wire::frame::{Frame, Reader},
};

/// A job as it goes over the socket.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<Arc<OwnedFd>>,
    pub(super) result_limit: u64,
    pub(super) limits: Limits,
}

/// The parent's end of a job socket, before a runtime watches it.
pub(super) struct Line {
    driver: &'static Driver,
    zygote: Arc<Inner>,
    worker: Arc<Worker>,
    job: Arc<Job>,
    socket: Option<OwnedFd>,
    /// The worker's end, until all is sent and it is armed (see `sys::arm`).
    theirs: Option<Arc<OwnedFd>>,
    sent: usize,
    owner: i32,
    /// When its stage began, for the metrics.
    since: Instant,
    /// The worker stood ready before the task came. If it ends before the task begins, another takes its place unseen.
    warm: bool,
}

impl Line {
    pub(super) fn new(
        driver: &'static Driver,
        zygote: Arc<Inner>,
        worker: Arc<Worker>,
        job: Arc<Job>,
        (ours, theirs): (OwnedFd, Arc<OwnedFd>),
        warm: bool,
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
            owner: process::pid(),
            since: Instant::now(),
            warm,
        }
    }

    fn stage_ends(&mut self, stage: Stage) {
        let now = Instant::now();
        self.zygote.counters.took(stage, now.saturating_duration_since(self.since));
        self.since = now;
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

    /// Sends what fits at once: the whole of most jobs, before any reactor is involved.
    pub(super) fn send_first(&mut self) {
        let Some(socket) = &self.socket else { return };
        let fds: Vec<BorrowedFd<'_>> = self.job.fds.iter().map(|fd| fd.as_fd()).collect();
        // An error shows again when the conversation goes on.
        self.sent = socket::send(socket.as_fd(), &self.job.bytes, &fds, false).unwrap_or(0);
        self.arm_if_sent();
    }

    /// Arms the worker's end once nothing more will be sent.
    fn arm_if_sent(&mut self) {
        if self.sent == self.job.bytes.len() {
            if let Some(theirs) = self.theirs.take() {
                arm::arm_for_worker(&*theirs);
            }
        }
    }

    /// Registers the socket with the current tokio runtime.
    pub(super) fn register(mut self) -> Result<Conversation, Error> {
        let Some(socket) = self.socket.take() else { return Err(Error::ShutDown) };
        let task = self.worker.task_id();
        let error = match Stream::register(socket, self.sent < self.job.bytes.len()) {
            Ok(stream) => {
                self.listens_on(&stream);
                let reader = Reader::new(self.job.result_limit);
                return Ok(Conversation { line: self, stream: Some(stream), reader, done: false, given_up: false });
            }
            Err(Unwatched::Io(e)) if tokio::runtime::is_rt_shutdown_err(&e) => Error::ShutDown,
            Err(Unwatched::Io(e)) => {
                Error::Spawn { task, step: "watch the job socket".to_owned(), source: Arc::new(e) }
            }
            Err(Unwatched::NoReactor) => Error::NoReactor { task },
        };
        // The socket is closed by now, which ends a worker that runs already.
        self.driver.roster().leave(self.worker.id, None);
        self.driver.tell(self.worker.id, Event::End(Cause::Dropped));
        Err(error)
    }

    /// Should this not be polled in time, the driver looks for `Executing` itself.
    fn listens_on(&self, stream: &Stream) {
        if let Stream::Reading(_) = stream {
            self.driver.roster().set_listener(self.worker.id, Some(stream.as_fd().as_raw_fd()));
        }
    }
}

impl Drop for Line {
    /// Never watched: the job is taken back, and the worker ended.
    fn drop(&mut self) {
        if self.socket.is_some() && self.owner == process::pid() {
            hand_over(self, None);
        }
    }
}

/// Ends the worker whose caller is gone. The driver carries that on.
fn hand_over(line: &mut Line, socket: Option<OwnedFd>) {
    line.zygote.counters.finished(Outcome::Cancelled);
    let Some(socket) = socket.or_else(|| line.socket.take()) else {
        // It went with the runtime that watched it, which ends the worker.
        line.driver.roster().leave(line.worker.id, None);
        return line.driver.tell(line.worker.id, Event::End(Cause::Dropped));
    };
    // A worker that has not begun cannot begin any more, and one that sends a result is not kept waiting.
    roster::revoke(&socket);
    // It may be executing if it has its whole job: closing our end would kill it before its grace period is over.
    let kept = line.sent == line.job.bytes.len();
    line.driver.roster().leave(line.worker.id, kept.then_some(socket));
    line.driver.tell(line.worker.id, Event::End(Cause::Dropped));
}

/// A conversation in progress. Dropping it ends the worker.
pub(super) struct Conversation {
    line: Line,
    stream: Option<Stream>,
    reader: Reader,
    done: bool,
    /// The job was taken back from a worker that was stopped before it began.
    given_up: bool,
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if self.line.owner != process::pid() {
            // A fork of the parent shares the reactor's kernel object: leaving would unregister the parent's socket.
            return std::mem::forget(self.stream.take());
        }
        let status = self.line.worker.status.borrow().clone();
        if !self.done && !status.started {
            self.line.driver.roster().set_listener(self.line.worker.id, None);
        }
        let socket = self.stream.take().and_then(|stream| stream.into_socket().ok());
        match (socket, status.cause) {
            (_, _) if status.exit.is_some() => {}
            (socket, _) if self.done => self.line.driver.roster().leave_done(self.line.worker.id, socket),
            (_, _) if status.cut => self.line.driver.roster().leave(self.line.worker.id, None),
            // A limit cut the task and its caller knows; the worker still has its grace period.
            (Some(socket), Some(_)) => self.line.driver.roster().leave(self.line.worker.id, Some(socket)),
            (socket, _) => hand_over(&mut self.line, socket),
        }
    }
}

/// Why reading stopped.
enum Heard {
    Words(Result<Terminal, String>),
    /// The socket ended.
    End,
    /// Something is known of the worker that changes what to wait for.
    Status,
    /// The runtime that watches the socket is going away.
    ShutDown,
}

impl Conversation {
    /// Holds the conversation to its end, and gives the one outcome of the task.
    pub(super) async fn hold(mut self) -> Result<Vec<u8>, Error> {
        let outcome = self.converse().await;
        // A task that did not begin in a warm worker goes on in another.
        if !(self.line.warm && matches!(outcome, Err(Error::EndedEarly { .. }))) {
            self.line.stage_ends(Stage::Result);
            self.line.zygote.counters.finished(Outcome::of(&outcome));
        }
        outcome
    }

    async fn converse(&mut self) -> Result<Vec<u8>, Error> {
        let mut words = None;
        let mut socket_ended = false;
        loop {
            let mut status = self.line.worker.status.borrow().clone();
            if status.orphaned {
                // Nobody will say that it is gone but the end of its socket, which a copy of its end would hide.
                self.line.theirs = None;
            }
            if status.exit.is_some() && words.is_none() && !socket_ended {
                // It is gone, perhaps before we first listened. What it said is in the socket.
                words = self.drain();
                socket_ended = true;
                status = self.line.worker.status.borrow().clone();
            } else if status.cause.is_some() && !status.started && words.is_none() && !socket_ended {
                // Its time is over, and that it did not run is a promise; or its handle was dropped, and nobody wants it
                // to. It may be about to: from here on it cannot begin.
                if let Some(stream) = &self.stream {
                    roster::revoke(stream);
                }
                words = self.drain();
                status = self.line.worker.status.borrow().clone();
            } else if self.line.warm && status.stopped && !status.started && !self.given_up {
                // Somebody stopped it while it stood ready. If it has not begun it cannot any more; another one will.
                if let Some(stream) = &self.stream {
                    roster::revoke(stream);
                }
                words = self.drain();
                status = self.line.worker.status.borrow().clone();
                self.given_up = !status.started;
                if self.given_up {
                    let _ = self.line.driver.roster().signal(self.line.worker.id, Signal::KILL);
                }
            } else if status.cut && words.is_none() && !socket_ended {
                words = self.drain();
                self.stream = None;
                socket_ended = true;
                continue;
            } else if socket_ended && status.orphaned && status.exit.is_none() {
                // No zygote and, if there were a pidfd, the driver would know: the socket's end is all there is.
                self.line.driver.roster().gone(self.line.worker.id, Exit::Lost);
                continue;
            }
            if let Some(outcome) = self.outcome(&status, &mut words) {
                return outcome;
            }
            if words.is_some() || socket_ended {
                self.wait_for_news(&status).await;
                continue;
            }
            match self.listen(&status).await {
                Heard::Words(heard) => {
                    let event = if heard.is_ok() { Event::Finished } else { Event::Violated };
                    self.line.driver.tell(self.line.worker.id, event);
                    self.done = true;
                    words = Some(heard);
                }
                Heard::End => socket_ended = true,
                Heard::Status => {}
                Heard::ShutDown => return Err(Error::ShutDown),
            }
        }
    }

    /// The outcome, if what is known decides it.
    fn outcome(&self, status: &Status, words: &mut Option<Result<Terminal, String>>) -> Option<Result<Vec<u8>, Error>> {
        let task = self.line.worker.task_id();
        let exit = match &status.exit {
            None => None,
            Some(Exit::Reaped { status, .. }) => Some(*status),
            Some(Exit::NotForked(errno)) => {
                let source = Arc::new(io::Error::from_raw_os_error(*errno));
                return Some(Err(Error::Spawn { task, step: "fork the worker".to_owned(), source }));
            }
            Some(Exit::Lost) if words.is_none() => {
                return Some(Err(Error::ZygoteLost { task, started: Some(status.started) }));
            }
            Some(Exit::Lost) => Some(ExitStatus::Unknown),
        };
        // An outcome that is not good names the pid; the zygote's word of it is under way.
        let good = matches!(words, Some(Ok(Terminal::Returned(_))));
        if !good && status.pid.is_none() && exit.is_none() && !status.orphaned && !timed_out(status) {
            return None;
        }
        let ending = match settle(status.cause, status.started, words.take(), exit)? {
            Ok(bytes) => return Some(Ok(bytes)),
            Err(ending) => ending,
        };
        let limits = &self.line.job.limits;
        Some(Err(match ending {
            Ending::Panicked(report) => Error::Panicked { task, report: Arc::from(report) },
            Ending::Cancelled => Error::Cancelled { task },
            Ending::TimedOut(phase) => {
                let (phase, limit) = match phase {
                    Phase::Running => (phase, limits.running.unwrap_or_default()),
                    // It began just as its time was over.
                    _ if status.started => (Phase::Running, limits.startup),
                    Phase::Queued | Phase::Starting => (phase, limits.startup),
                };
                Error::TimedOut { task, phase, limit }
            }
            Ending::Failed(Failure::Setup { what, errno }) => {
                let source = match errno {
                    0 => io::Error::other("it is not possible"),
                    errno => io::Error::from_raw_os_error(errno),
                };
                Error::Spawn { task, step: what, source: Arc::new(source) }
            }
            Ending::Failed(Failure::Decode(reason)) => Error::Decode { task, what: Coded::Arguments, reason },
            Ending::Failed(Failure::Encode(reason)) => Error::Decode { task, what: Coded::ResultInWorker, reason },
            Ending::Failed(Failure::TooLarge { size, limit }) => Error::TooLarge { task, size, limit },
            Ending::Protocol(reason) => Error::Protocol { task, reason },
            Ending::Exited { status, started: false } => Error::EndedEarly { task, status },
            Ending::Exited { status: ExitStatus::Exited(code), .. } => Error::Exited { task, code },
            Ending::Exited { status: ExitStatus::Signaled { signal, core_dumped }, .. } => {
                Error::Signaled { task, signal, core_dumped }
            }
            Ending::Exited { status: ExitStatus::Unknown, .. } => Error::ZygoteLost { task, started: Some(true) },
        }))
    }

    /// Waits until more is known than `seen`.
    async fn wait_for_news(&self, seen: &Status) {
        self.line.worker.wait_until(|status| is_news(seen, status)).await;
    }

    /// Sends what is left of the job, then reads, until there is something to say.
    async fn listen(&mut self, seen: &Status) -> Heard {
        let worker = self.line.worker.clone();
        let news = worker.wait_until(|status| interrupts(seen, status));
        match race(self.exchange(), news).await {
            Either::First(heard) => heard,
            Either::Second(_) => Heard::Status,
        }
    }

    async fn exchange(&mut self) -> Heard {
        if let Some(Stream::Writing(_)) = &self.stream {
            if let Err(heard) = self.send_rest().await {
                return heard;
            }
        }
        let Some(stream) = self.stream.as_mut() else { return Heard::End };
        let mut buffer = vec![0; 4096];
        loop {
            match stream.read(&mut buffer).await {
                Err(e) if tokio::runtime::is_rt_shutdown_err(&e) => return Heard::ShutDown,
                // ECONNRESET comes before what the worker said is read (FAULTS P10): read on.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
                Err(_) | Ok(0) => return Heard::End,
                Ok(n) => {
                    if let Some(words) = take_in(&mut self.reader, &mut self.line, &buffer[..n]) {
                        return Heard::Words(words);
                    }
                    if self.reader.missing() > buffer.len() as u64 {
                        buffer.resize(256 << 10, 0);
                    }
                }
            }
        }
    }

    /// Sends what did not go at once, and turns to reading.
    async fn send_rest(&mut self) -> Result<(), Heard> {
        let Self { line, stream, .. } = self;
        let Some(writing) = stream else { return Err(Heard::End) };
        while line.sent < line.job.bytes.len() {
            let rest = &line.job.bytes[line.sent..];
            let fds: Vec<BorrowedFd<'_>> = match line.sent {
                0 => line.job.fds.iter().map(|fd| fd.as_fd()).collect(),
                _ => Vec::new(),
            };
            match writing.write(|socket| socket::send(socket, rest, &fds, false)).await {
                Ok(n) => line.sent += n,
                Err(e) if tokio::runtime::is_rt_shutdown_err(&e) => return Err(Heard::ShutDown),
                // The worker is gone, or is leaving: what it said, or its exit, tells why.
                Err(_) => break,
            }
        }
        line.arm_if_sent();
        let socket = stream.take().and_then(|stream| stream.into_socket().ok()).ok_or(Heard::End)?;
        match Stream::register(socket, false) {
            Ok(reading) => {
                line.listens_on(&reading);
                *stream = Some(reading);
            }
            Err(_) => return Err(Heard::ShutDown),
        }
        Ok(())
    }

    /// Reads what is in the socket without waiting: its worker is gone.
    fn drain(&mut self) -> Option<Result<Terminal, String>> {
        let stream = self.stream.as_ref()?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match socket::receive(stream.as_fd(), &mut buffer, &mut Vec::new(), false) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
                Err(_) | Ok(0) => return None,
                Ok(n) => {
                    if let Some(words) = take_in(&mut self.reader, &mut self.line, &buffer[..n]) {
                        return Some(words);
                    }
                }
            }
        }
    }
}

/// Gives bytes to the reader, and the worker's last words if they are complete.
fn take_in(reader: &mut Reader, line: &mut Line, mut bytes: &[u8]) -> Option<Result<Terminal, String>> {
    loop {
        match reader.next(&mut bytes) {
            Ok(None) => return None,
            Ok(Some(Frame::Executing)) => {
                line.stage_ends(Stage::Executing);
                line.driver.tell(line.worker.id, Event::Executing);
                line.worker.status.send_modify(|status| status.started = true);
            }
            Ok(Some(Frame::Terminal(terminal))) => return Some(Ok(terminal)),
            Err(violation) => return Some(Err(violation)),
        }
    }
}

fn timed_out(status: &Status) -> bool {
    matches!(status.cause, Some(Cause::TimedOut(_)))
}

/// Whether `now` has what reading must be interrupted for.
fn interrupts(seen: &Status, now: &Status) -> bool {
    (seen.exit.is_none() && now.exit.is_some())
        || (!timed_out(seen) && timed_out(now))
        || (seen.cause.is_none() && now.cause.is_some() && !now.started)
        || (!seen.orphaned && now.orphaned)
        || (!seen.stopped && now.stopped && !now.started)
        || (!seen.cut && now.cut)
}

/// Whether `now` may decide what `seen` did not.
fn is_news(seen: &Status, now: &Status) -> bool {
    interrupts(seen, now) || (seen.pid.is_none() && now.pid.is_some())
}
