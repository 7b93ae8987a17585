//! The talk with one worker on its job socket: the job goes out, `Executing` (unless the job is quiet) and one terminal
//! frame come back.
//!
//! The same code runs on the caller's runtime (`run`) and on the driver's (`Process`).

use std::{io, os::fd::AsFd, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    line::{Line, hand_over},
    metrics::{Outcome, Stage},
    race::{Either, race},
    roster,
    worker::{Exit, Status},
};
use crate::{
    error::{Coded, Error},
    model::{Cause, Ending, Event, ExitStatus, Failure, Phase, Signal, Terminal, settle},
    pass::stream::Stream,
    sys::{process, socket},
    wire::frame::{Frame, Reader},
};

/// A conversation in progress. Dropping it ends the worker.
pub(super) struct Conversation {
    line: Line,
    stream: Option<Stream>,
    reader: Reader,
    done: bool,
    /// The job was taken back from a worker that was stopped before it began.
    given_up: bool,
    /// The worker is gone, and did not read all of its job.
    unread: bool,
    /// The job was revoked before it was read: whatever becomes of its worker, the task has not begun.
    revoked: bool,
    /// The zygote did not say who its worker is.
    nameless: bool,
    /// The outcome is counted, or the task goes on elsewhere.
    settled: bool,
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
            (socket, _) => {
                if !self.settled {
                    self.line.zygote.counters.finished(Outcome::Cancelled);
                }
                hand_over(&mut self.line, socket);
            }
        }
    }
}

/// Why a result of which the first bytes are there is given up.
pub(super) const NO_ROOM: &str = "there is not enough memory for it";

/// How long an outcome waits for the zygote to say who its worker was.
const PATIENCE: Duration = Duration::from_secs(1);

/// The worker's last words, or how it broke the protocol.
type Words = Result<Terminal<Bytes>, String>;

/// Why reading stopped.
enum Heard {
    Words(Words),
    /// The socket ended.
    End,
    /// Something is known of the worker that changes what to wait for.
    Status,
    /// The runtime that watches the socket is going away.
    ShutDown,
    /// The job cannot be sent, now.
    Unsendable(io::Error),
    /// There is no memory for the result.
    NoRoom,
}

impl Conversation {
    pub(super) fn new(line: Line, stream: Stream) -> Self {
        let limit = line.job.result_limit;
        let reader = if line.job.quiet { Reader::of_terminal(limit) } else { Reader::new(limit) };
        Self {
            line,
            stream: Some(stream),
            reader,
            done: false,
            given_up: false,
            unread: false,
            revoked: false,
            nameless: false,
            settled: false,
        }
    }

    /// Holds the conversation to its end, and gives the one outcome of the task.
    pub(super) async fn hold(mut self) -> Result<Bytes, Error> {
        let outcome = self.converse().await;
        // A task that did not begin in a warm worker goes on in another.
        let goes_on = match outcome {
            Err(Error::EndedEarly { .. }) => self.line.warm,
            Err(Error::ZygoteLost { started, .. }) => started == Some(false),
            _ => false,
        };
        if !goes_on {
            if self.line.dated {
                self.line.zygote.counters.took(Stage::Result, self.line.since.elapsed());
            }
            self.line.zygote.counters.finished(Outcome::of(&outcome));
        }
        self.settled = true;
        outcome
    }

    async fn converse(&mut self) -> Result<Bytes, Error> {
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
                words = self.look();
                socket_ended = true;
                status = self.line.worker.status.borrow().clone();
            } else if status.cause.is_some() && !status.started && words.is_none() && !socket_ended {
                // Its time is over, and that it did not run is a promise; or its handle was dropped, and nobody wants it
                // to. It may be about to: from here on it cannot begin.
                words = self.take_back();
                status = self.line.worker.status.borrow().clone();
            } else if self.gives_up_on(&status) && words.is_none() && !socket_ended {
                // Somebody stopped it while it stood ready. If it has not begun it cannot any more; another one will.
                words = self.take_back();
                status = self.line.worker.status.borrow().clone();
                self.given_up = !status.started;
                if self.given_up {
                    let _ = self.line.driver.roster().signal(self.line.worker.id, Signal::KILL);
                }
            } else if status.cut && words.is_none() && !socket_ended {
                words = self.look();
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
            if words.is_some() {
                // All that is missing is a name. A zygote that somebody stopped does not give one.
                let patience = self.line.driver.enter(|| tokio::time::sleep(PATIENCE));
                self.nameless |= matches!(race(self.wait_for_news(&status), patience).await, Either::Second(()));
                continue;
            }
            if socket_ended {
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
                Heard::End => {
                    words = self.look();
                    socket_ended = true;
                }
                Heard::Status => {}
                Heard::ShutDown => return Err(Error::ShutDown),
                Heard::Unsendable(source) => {
                    let (task, step) = (self.line.worker.task_id(), "send its job".to_owned());
                    return Err(Error::Spawn { task, step, source: Arc::new(source) });
                }
                Heard::NoRoom => {
                    let (task, reason) = (self.line.worker.task_id(), NO_ROOM.to_owned());
                    return Err(Error::Decode { task, what: Coded::Result, reason });
                }
            }
        }
    }

    /// Whether its worker was stopped while it stood ready, and may not have begun.
    fn gives_up_on(&self, status: &Status) -> bool {
        self.line.warm && status.stopped && !status.started && !self.given_up
    }

    /// The outcome, if what is known decides it.
    fn outcome(&self, status: &Status, words: &mut Option<Words>) -> Option<Result<Bytes, Error>> {
        let task = self.line.worker.task_id();
        // What a worker says of a quiet job may be the first that is heard of its beginning.
        let started = status.started || self.line.dated;
        let exit = match &status.exit {
            None => None,
            Some(Exit::Reaped { status, .. }) => Some(*status),
            Some(Exit::NotForked(errno)) => {
                let source = Arc::new(io::Error::from_raw_os_error(*errno));
                return Some(Err(Error::Spawn { task, step: "fork the worker".to_owned(), source }));
            }
            Some(Exit::Lost) if words.is_none() => {
                return Some(Err(Error::ZygoteLost { task, started: Some(started) }));
            }
            Some(Exit::Lost) => Some(ExitStatus::Unknown),
        };
        // An outcome that is not good names the pid. If the worker did not say it, the zygote's word is under way.
        let good = matches!(words, Some(Ok(Terminal::Returned(_))));
        let named = task.pid.is_some() || self.nameless || exit.is_some() || status.orphaned;
        if !good && !named && !timed_out(status) {
            return None;
        }
        let ending = match settle(status.cause, started, words.take(), exit)? {
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
                    _ if started => (Phase::Running, limits.startup),
                    Phase::Queued | Phase::Starting => (phase, limits.startup),
                };
                Error::TimedOut { task, phase, limit }
            }
            Ending::Failed(Failure::Setup { what, errno }) => {
                let (step, source) = match (errno, what.split_once(": ")) {
                    (0, Some((step, why))) => (step.to_owned(), io::Error::other(why.to_owned())),
                    (0, None) => (what, io::Error::other("it is not possible")),
                    // After a task has begun no error of the system's says that it may be tried again.
                    (errno, _) if started && !self.line.job.serves_pool => {
                        (what, io::Error::other(io::Error::from_raw_os_error(errno)))
                    }
                    (errno, _) => (what, io::Error::from_raw_os_error(errno)),
                };
                Error::Spawn { task, step, source: Arc::new(source) }
            }
            Ending::Failed(Failure::Decode(reason)) => Error::Decode { task, what: Coded::Arguments, reason },
            Ending::Failed(Failure::Encode(reason)) => Error::Decode { task, what: Coded::ResultInWorker, reason },
            Ending::Failed(Failure::TooLarge { size, limit }) => {
                Error::TooLarge { task, what: Coded::Result, size, limit }
            }
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
            let read = match self.reader.is_filling() {
                true => stream.fill(&mut self.reader).await.map(|n| (n, 0)),
                false => stream.read(&mut buffer).await.map(|n| (n, n)),
            };
            match read {
                Err(e) if tokio::runtime::is_rt_shutdown_err(&e) => return Heard::ShutDown,
                // ECONNRESET comes before what the worker said is read: read on.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => self.unread = true,
                Err(e) if e.kind() == io::ErrorKind::OutOfMemory => return Heard::NoRoom,
                Err(_) | Ok((0, _)) => return Heard::End,
                Ok((_, n)) => {
                    if let Some(words) = take_in(&mut self.reader, &mut self.line, &buffer[..n]) {
                        return Heard::Words(words);
                    }
                }
            }
        }
    }

    /// Sends what did not go at once, and turns to reading.
    async fn send_rest(&mut self) -> Result<(), Heard> {
        let Self { line, stream, .. } = self;
        let Some(writing) = stream else { return Err(Heard::End) };
        let Line { job, sent, .. } = line;
        match writing.write(|socket| job.parcel.send(socket, sent)).await {
            Err(e) if tokio::runtime::is_rt_shutdown_err(&e) => return Err(Heard::ShutDown),
            // It waits for the rest of its job, and would for ever.
            Err(e) if !socket::is_peer_gone(&e) => return Err(Heard::Unsendable(e)),
            // The worker is gone, or is leaving: what it said, or its exit, tells why.
            Ok(()) | Err(_) => {}
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

    /// Sees to it that a task which has not begun cannot begin any more, and gives what its worker said.
    fn take_back(&mut self) -> Option<Words> {
        let words = self.look();
        // Of one that has begun the words are still wanted.
        if words.is_none() && !self.line.worker.status.borrow().started {
            if let Some(stream) = &self.stream {
                roster::revoke(stream);
            }
            let words = self.look();
            self.revoked = words.is_none() && !self.line.worker.status.borrow().started;
            return words;
        }
        words
    }

    /// Finds out whether the task has begun, and what its worker said.
    ///
    /// A worker commits to a quiet job after it has read all of it, and cannot once the job is revoked. So one that has not
    /// read it has not begun, and one that has read it counts as begun: it may be a step before that.
    fn look(&mut self) -> Option<Words> {
        // Before the words: a worker that leaves its job unread says so there before its job is gone.
        let read = self.line.is_read(self.stream.as_ref());
        let words = self.drain();
        // One that could not be set up says so, and not how old its task is.
        let begun = !matches!(words, Some(Ok(_))) || self.line.dated;
        if read && begun && !self.unread && !self.revoked {
            self.line.begins();
        }
        words
    }

    /// Reads what is in the socket without waiting.
    fn drain(&mut self) -> Option<Words> {
        let stream = self.stream.as_ref()?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match socket::receive(stream.as_fd(), &mut buffer, &mut Vec::new(), false) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => self.unread = true,
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
fn take_in(reader: &mut Reader, line: &mut Line, mut bytes: &[u8]) -> Option<Words> {
    loop {
        match reader.next(&mut bytes) {
            Ok(None) => return None,
            Ok(Some(Frame::Executing { pid })) => {
                line.worker().says(pid);
                line.began(Duration::ZERO);
                line.begins();
            }
            Ok(Some(Frame::Terminal(terminal, age))) => {
                if line.job.quiet && !age.is_zero() {
                    line.began(age);
                }
                line.ended(age);
                return Some(Ok(terminal));
            }
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
