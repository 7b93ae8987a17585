//! One worker of a pool, as the future that uses it sees it.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
};

use bytes::Bytes;
use tokio::runtime::{Handle, Id};

use super::{
    super::{
        bare::BareJob,
        conversation::NO_ROOM,
        driver::{self, Driver},
        process::Process,
        race::{Either, race},
        warm::job_socket,
        worker::Status,
    },
    builder::Config,
};
use crate::{
    error::{Coded, Error, TaskId},
    model::{Failure, State, Terminal},
    pass::stream::{Stream, Unwatched},
    sys::socket,
    wire::frame::{Frame, Reader},
};

/// A worker and the line to it. Dropping it ends the worker.
pub(super) struct Lane {
    process: Process<()>,
    line: Line,
    driver: &'static Driver,
    served: u64,
}

/// The parent's end: watched by the runtime that used it last, so that one task after another costs no registration.
enum Line {
    Unwatched(OwnedFd),
    Watched(Stream, Id),
    Lost,
}

/// Why a lane gave no outcome.
pub(super) enum LaneError {
    /// The worker went before it read the job, so the task did not begin.
    Unread,
    /// The worker is gone, or will be: the task's outcome.
    Ended(Error),
}

impl Lane {
    /// A new worker, once it is initialized. `name`: of the task that it is for, for errors.
    pub(super) async fn start(pool: &Config, name: &Arc<str>) -> Result<Self, Error> {
        let failed = |source| Error::Spawn {
            task: TaskId { name: pool.name.clone(), pid: None },
            step: "make a socket pair".to_owned(),
            source: Arc::new(source),
        };
        let driver = driver::get().map_err(failed)?;
        let (ours, theirs) = job_socket().map_err(failed)?;
        let process = pool.worker.open_pool(pool.initializer, theirs).await?;
        let mut lane = Self { process, line: Line::Unwatched(ours), driver, served: 0 };
        match lane.hears_that_it_is_initialized(name).await {
            Ok(()) => Ok(lane),
            Err(LaneError::Ended(error)) => Err(error),
            Err(LaneError::Unread) => Err(lane.never_began(name).await),
        }
    }

    async fn hears_that_it_is_initialized(&mut self, name: &Arc<str>) -> Result<(), LaneError> {
        let (mut reader, mut buffer) = (Reader::new(0), [0; 64]);
        loop {
            let (process, stream) = self.watch(false, name)?;
            let n = match race(stream.read(&mut buffer), process.wait_until(is_gone)).await {
                Either::First(Ok(n)) if n > 0 => n,
                Either::First(Err(e)) if tokio::runtime::is_rt_shutdown_err(&e) => {
                    return Err(LaneError::Ended(Error::ShutDown));
                }
                Either::First(_) | Either::Second(_) => return Err(LaneError::Unread),
            };
            match reader.next(&mut &buffer[..n]) {
                Ok(None) => {}
                Ok(Some(Frame::Executing { .. })) => return Ok(()),
                Ok(Some(Frame::Terminal(..))) => return Err(LaneError::Unread),
                Err(reason) => return Err(LaneError::Ended(Error::Protocol { task: self.task_id(name), reason })),
            }
        }
    }

    pub(super) fn served(&self) -> u64 {
        self.served
    }

    pub(super) fn driver(&self) -> &'static Driver {
        self.driver
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether there is room for another process once this lane is dropped: not if its worker is gone, whose place may be
    /// taken.
    pub(super) fn makes_room(&self) -> bool {
        self.process.holds_a_place()
    }

    pub(super) fn is_alive(&self) -> bool {
        self.process.state() != State::Exited
    }

    /// Runs one task. Dropped half-way, the lane must not be used again.
    pub(super) async fn run(&mut self, job: &BareJob) -> Result<Result<Bytes, Error>, LaneError> {
        // Most jobs go at once, before any reactor is involved.
        let mut sent = 0;
        let mut tried = match &self.line {
            Line::Unwatched(socket) => job.parcel.send(socket.as_fd(), &mut sent),
            Line::Watched(stream, _) => job.parcel.send(stream.as_fd(), &mut sent),
            Line::Lost => return Err(LaneError::Unread),
        };
        if matches!(tried, Ok(false)) || matches!(&tried, Err(e) if e.kind() == io::ErrorKind::WouldBlock) {
            let (process, stream) = self.watch(true, &job.name)?;
            let write = stream.write(|socket| job.parcel.send(socket, &mut sent));
            tried = match race(write, process.wait_until(is_gone)).await {
                Either::First(wrote) => wrote.map(|()| true),
                Either::Second(_) => Err(io::Error::from_raw_os_error(libc::EPIPE)),
            };
        }
        match tried {
            Ok(_) => {}
            Err(e) if socket::is_peer_gone(&e) || tokio::runtime::is_rt_shutdown_err(&e) => {
                return Err(self.ended(&e, job).await);
            }
            // The worker is there, and would be waited for in vain.
            Err(e) => {
                let (task, step) = (self.task_id(&job.name), "send its job".to_owned());
                return Err(LaneError::Ended(Error::Spawn { task, step, source: Arc::new(e) }));
            }
        }
        let limit = job.result_limit;
        let mut reader = if job.announces { Reader::new(limit) } else { Reader::of_terminal(limit) };
        let mut buffer = vec![0; 2048];
        let mut gone = false;
        loop {
            let (process, stream) = self.watch(false, &job.name)?;
            let read = if gone {
                // What it said before is there.
                let received = socket::receive(stream.as_fd(), &mut buffer, &mut Vec::new(), false);
                received.map(|n| (n, n)).map_err(|e| last_word(e, stream))
            } else {
                let read = async {
                    match reader.is_filling() {
                        true => stream.fill(&mut reader).await.map(|n| (n, 0)),
                        false => stream.read(&mut buffer).await.map(|n| (n, n)),
                    }
                };
                // The end of the line alone would not do: what a task forked and left behind may hold the worker's end.
                match race(read, process.wait_until(is_gone)).await {
                    Either::First(read) => read,
                    Either::Second(_) => {
                        gone = true;
                        continue;
                    }
                }
            };
            let n = match read {
                Ok((0, _)) => return Err(self.ended(&io::ErrorKind::UnexpectedEof.into(), job).await),
                Ok((_, n)) => n,
                Err(e) if e.kind() == io::ErrorKind::OutOfMemory => {
                    let (task, reason) = (self.task_id(&job.name), NO_ROOM.to_owned());
                    return Err(LaneError::Ended(Error::Decode { task, what: Coded::Result, reason }));
                }
                Err(e) => return Err(self.ended(&e, job).await),
            };
            let mut bytes = &buffer[..n];
            loop {
                match reader.next(&mut bytes) {
                    Ok(None) => break,
                    Ok(Some(Frame::Executing { .. })) => job.parcel.let_go(),
                    Ok(Some(Frame::Terminal(terminal, _))) => {
                        self.served += 1;
                        return Ok(self.outcome(terminal, job));
                    }
                    Err(reason) => {
                        return Err(LaneError::Ended(Error::Protocol { task: self.task_id(&job.name), reason }));
                    }
                }
            }
        }
    }

    /// The line, watched by the runtime that polls this, or else by the driver's, in the direction asked for.
    fn watch(&mut self, writing: bool, name: &Arc<str>) -> Result<(&Process<()>, &mut Stream), LaneError> {
        let current = Handle::try_current().ok();
        let id = current.as_ref().map_or_else(|| self.driver.runtime_id(), Handle::id);
        let fits = matches!(&self.line, Line::Watched(stream, by) if *by == id && stream.is_writing() == writing);
        if !fits {
            let socket = match std::mem::replace(&mut self.line, Line::Lost) {
                Line::Unwatched(socket) => socket,
                Line::Watched(stream, _) => stream.into_socket().map_err(|_| LaneError::Ended(Error::ShutDown))?,
                Line::Lost => return Err(LaneError::Ended(Error::ShutDown)),
            };
            let register = || Stream::register(socket, writing);
            let watched = if current.is_some() { register() } else { self.driver.enter(register) };
            self.line = Line::Watched(
                watched.map_err(|unwatched| {
                    let task = TaskId { name: name.clone(), pid: Some(self.process.pid()) };
                    LaneError::Ended(match unwatched {
                        Unwatched::NoReactor => Error::NoReactor { task },
                        Unwatched::Io(e) => {
                            Error::Spawn { task, step: "watch a socket".to_owned(), source: Arc::new(e) }
                        }
                    })
                })?,
                id,
            );
        }
        match &mut self.line {
            Line::Watched(stream, _) => Ok((&self.process, stream)),
            _ => Err(LaneError::Ended(Error::ShutDown)),
        }
    }

    fn task_id(&self, name: &Arc<str>) -> TaskId {
        TaskId { name: name.clone(), pid: Some(self.process.pid()) }
    }

    /// What became of a worker that never came to its first job: its initializer, most likely. Others would fare the same.
    async fn never_began(&self, name: &Arc<str>) -> Error {
        let task = self.task_id(name);
        match self.process.wait().await {
            Err(Error::Exited { .. } | Error::Signaled { .. }) => {
                Error::EndedEarly { task, status: self.process.exited().await.0 }
            }
            Err(error) => error.about(task),
            Ok(()) => Error::Protocol { task, reason: "it left without an answer".to_owned() },
        }
    }

    /// The line ended: how the worker did is the task's outcome.
    async fn ended(&self, error: &io::Error, job: &BareJob) -> LaneError {
        if tokio::runtime::is_rt_shutdown_err(error) {
            return LaneError::Ended(Error::ShutDown);
        }
        // What was sent was never read: Linux says so when the other end closes. Where the kernel does not, a worker that
        // was killed in the moment before its job was sent counts as killed by it.
        if socket::is_peer_gone(error) {
            if self.served > 0 {
                return LaneError::Unread;
            }
            return LaneError::Ended(self.never_began(&job.name).await);
        }
        LaneError::Ended(match self.process.wait().await {
            Err(error) => error.about(self.task_id(&job.name)),
            Ok(()) => Error::Protocol { task: self.task_id(&job.name), reason: "it left without an answer".to_owned() },
        })
    }

    fn outcome(&self, terminal: Terminal<Bytes>, job: &BareJob) -> Result<Bytes, Error> {
        let task = || self.task_id(&job.name);
        Err(match terminal {
            Terminal::Returned(bytes) => return Ok(bytes),
            Terminal::Panicked(report) => Error::Panicked { task: task(), report: Arc::from(report) },
            Terminal::Cancelled => Error::Cancelled { task: task() },
            Terminal::Failed(Failure::TooLarge { size, limit }) => {
                Error::TooLarge { task: task(), what: Coded::Result, size, limit }
            }
            Terminal::Failed(Failure::Decode(reason)) => Error::Decode { task: task(), what: Coded::Arguments, reason },
            Terminal::Failed(Failure::Encode(reason)) => {
                Error::Decode { task: task(), what: Coded::ResultInWorker, reason }
            }
            Terminal::Failed(Failure::Setup { what, errno }) => {
                let source = Arc::new(io::Error::from_raw_os_error(errno));
                Error::Spawn { task: task(), step: what, source }
            }
        })
    }
}

fn is_gone(status: &Status) -> bool {
    status.exit.is_some()
}

/// Why nothing is read of a worker that is gone, where its end of the line is not closed: that it left its job unread would
/// else be this error.
fn last_word(error: io::Error, line: &Stream) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock if left_unread(line) => io::Error::from_raw_os_error(libc::ECONNRESET),
        _ => error,
    }
}

fn left_unread(line: &Stream) -> bool {
    socket::knows_what_is_read() && !socket::all_is_read(line.as_fd().as_raw_fd())
}

impl Drop for Lane {
    fn drop(&mut self) {
        if !self.process.is_ours() {
            // A fork of the parent shares the reactor's kernel object: leaving would unregister the parent's socket.
            std::mem::forget(std::mem::replace(&mut self.line, Line::Lost));
        }
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("process", &self.process).field("served", &self.served).finish_non_exhaustive()
    }
}
