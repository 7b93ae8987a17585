//! A worker of a pool: serves one task after another, on one runtime, until its line ends.
//!
//! It is itself a task, of an ordinary worker: born, armed, signalled, reaped and reported like any other. Its jobs come
//! on a line of their own, since nothing may be sent on an armed job socket. Between two tasks it blocks in a read of
//! that line, outside its reactor: a wake-up cheaper. So what an earlier task spawned goes on while later ones run, not
//! while the worker is idle.
//!
//! What belongs to one task only: its arguments, its future, its panic. Everything else (statics, environment,
//! directory, descriptors, spawned tasks) the next one finds as it was left.

use std::{
    future::Future,
    io,
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use super::{farewell, panic, prologue::Job, signals};
use crate::{
    model::{Failure, Terminal},
    pass,
    sys::{process, socket, wake},
    task::{BoxedTask, Encoded, Entry},
    wire::{frame, rope::Rope},
};

static LINE: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// The line came along with the job.
pub(super) fn set_line(line: OwnedFd) {
    *LINE.lock().unwrap_or_else(PoisonError::into_inner) = Some(line);
}

/// The task of a worker of a pool: the initializer, then the tasks.
pub(super) async fn serve(initializer: BoxedTask) -> Encoded {
    initializer.await?;
    let setup = |errno| Failure::Setup { what: "read a job of the pool".to_owned(), errno };
    let line = LINE.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(|| setup(libc::ENOTCONN))?;
    // From here on it may be given tasks. If nobody is there to hear it, the first read says so.
    let _ = socket::send_all(line.as_fd(), &frame::executing(process::pid()));
    loop {
        // A signal that comes while it is idle ends it at once, and not the task that comes next: one that is not read goes
        // to another worker. In this order, or a signal in between would be missed.
        wake::set_read((!signals::is_taken_over()).then_some(line.as_fd()));
        let read =
            if signals::ending().is_some() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Job::read(&line) };
        wake::set_read(None);
        let (mut job, leaves) = match read {
            // If the task came with the signal, no other worker will have it: it is done first.
            Ok(job) => (job, signals::take_ending()),
            // The pool has no more for it. Nothing is what `()` encodes to.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Rope::default()),
            Err(e) => return Err(setup(e.raw_os_error().unwrap_or(0))),
        };
        let arguments = job.arguments();
        if arguments.is_ok() && !job.header.quiet {
            // The parent closes its copies of what it gave away.
            let _ = socket::send_all(line.as_fd(), &frame::executing(process::pid()));
        }
        let terminal = match arguments {
            Ok(arguments) => run(Entry::from_job(job.header.entry).enter(arguments, job.header.result_limit)).await,
            Err(failure) => Terminal::Failed(failure),
        };
        let (header, body) = frame::encode(terminal, Duration::ZERO);
        match farewell::send(line.as_fd(), &header, &body) {
            // A pool that is gone has ended this worker's line, which the next read says.
            Err(e) if !socket::is_peer_gone(&e) => {
                // Half a frame may be out, and nothing can follow that.
                let what = "answer a task of the pool".to_owned();
                return Err(Failure::Setup { what, errno: e.raw_os_error().unwrap_or(0) });
            }
            Ok(()) | Err(_) => {}
        }
        pass::let_go();
        if leaves {
            return Ok(Rope::default());
        }
    }
}

/// Runs one task, and catches its panic: the worker goes on.
async fn run(task: BoxedTask) -> Terminal<Rope> {
    panic::forget_last();
    match Caught(Some(task)).await {
        Err(terminal) => terminal,
        Ok(Ok(bytes)) => Terminal::Returned(bytes),
        Ok(Err(failure)) => Terminal::Failed(failure),
    }
}

/// A task whose panic is its outcome, also one of its destructors.
struct Caught(Option<BoxedTask>);

impl Future for Caught {
    type Output = Result<Encoded, Terminal<Rope>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(task) = self.0.as_mut() else { return Poll::Pending };
        let task = pin!(task);
        let polled = catch_unwind(AssertUnwindSafe(|| task.poll(context)));
        let outcome = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(encoded)) => Ok(encoded),
            Err(payload) => Err(panic::caught(payload)),
        };
        let task = self.0.take();
        match catch_unwind(AssertUnwindSafe(|| drop(task))) {
            Ok(()) => Poll::Ready(outcome),
            Err(payload) => Poll::Ready(outcome.and_then(|_| Err(panic::caught(payload)))),
        }
    }
}
