//! Lines of a worker as `tracing` events.
//!
//! The driver reads the pipe and passes the bytes on; the thread of [`events`] makes lines of them and events of the
//! lines. What waits for that thread is bounded for each stream, so that one that floods takes nothing from the others,
//! and for all together; more is dropped, counted, and told in an event of its own. To hold the worker up instead would
//! let a subscriber that blocks stop every task that prints.
//!
//! The caller's span and subscriber are those of the call to `run` or `open`. The driver never drops them: that is the
//! program's code too.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::net::unix::pipe;
use tracing::{Dispatch, Level, Span, dispatcher, subscriber::NoSubscriber};

use super::{
    super::{driver::Driver, events, race::race, worker::Worker},
    reader::{OutputPipe, PIECE, PIECES, Rest, worker_gone},
};
use crate::model::{Line, Lines};

/// The target of every event.
const TARGET: &str = "tokio_run_in_process::stdio";
/// What may wait of one stream, in bytes.
const STREAM: usize = 1 << 20;
/// What a piece costs beside its bytes.
const OVERHEAD: usize = 128;
/// More streams than that, most of them of tasks that are over, are there only if the subscriber blocks.
const STREAMS: usize = 8192;

/// What the lines of a stream become.
#[derive(Debug)]
pub(super) struct Tracer {
    level: Level,
    stream: &'static str,
    span: Span,
    dispatch: Dispatch,
}

impl Tracer {
    /// With the span and the subscriber of here. `level` is for both streams, else stdout has `INFO` and stderr `WARN`.
    pub(super) fn here(number: usize, level: Option<Level>) -> Self {
        let (stream, usual) = if number == 1 { ("stdout", Level::INFO) } else { ("stderr", Level::WARN) };
        let dispatch = dispatcher::get_default(Dispatch::clone);
        Self { level: level.unwrap_or(usual), stream, span: Span::current(), dispatch }
    }

    /// Lets the driver read the pipe.
    pub(super) fn connect(self, driver: &'static Driver, pipe: OwnedFd, worker: Arc<Worker>) -> io::Result<()> {
        let traced = Traced { worker, tracer: self, lines: Mutex::default(), waiting: AtomicUsize::new(0) };
        let traced = Arc::new(traced);
        if open().add(&traced) {
            let pipe = driver.enter(|| pipe::Receiver::from_owned_fd(pipe)).inspect_err(|_| open().remove(&traced))?;
            driver.spawn(forward(pipe, traced));
        } else {
            UNTOLD.fetch_add(1, Relaxed);
            // It is read all the same, or it would hold its worker up.
            OutputPipe::read(driver, pipe, traced.worker.clone(), 0)?.release();
        }
        Ok(())
    }
}

/// A stream that becomes events.
struct Traced {
    worker: Arc<Worker>,
    tracer: Tracer,
    /// Only for the thread of the events.
    lines: Mutex<Lines>,
    /// What its pieces cost that wait for their turn.
    waiting: AtomicUsize,
}

/// Streams of which not all is told, and those that there was no room for.
#[derive(Default)]
struct Open(Vec<Arc<Traced>>);

static OPEN: Mutex<Open> = Mutex::new(Open(Vec::new()));
static UNTOLD: AtomicU64 = AtomicU64::new(0);

fn open() -> MutexGuard<'static, Open> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Open {
    /// Says whether there is room for it.
    fn add(&mut self, traced: &Arc<Traced>) -> bool {
        let fits = self.0.len() < STREAMS;
        if fits {
            self.0.push(traced.clone());
        }
        fits
    }

    fn remove(&mut self, traced: &Arc<Traced>) {
        self.0.retain(|open| !Arc::ptr_eq(open, traced));
    }
}

/// Reads a worker's pipe until the worker is gone and all of its own is read, and passes it on.
async fn forward(pipe: pipe::Receiver, traced: Arc<Traced>) {
    let worker = traced.worker.clone();
    let mut bytes = vec![0; PIECE];
    let mut rest = Rest::default();
    let mut missed = 0;
    for turn in 1_u64.. {
        if turn % PIECES == 0 {
            tokio::task::yield_now().await;
        }
        let n = if worker.status.borrow().exit.is_some() {
            let Some(n) = rest.read(&pipe, &mut bytes) else { break };
            n
        } else {
            race(pipe.readable(), worker_gone(&worker)).await;
            match pipe.try_read(&mut bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) | Ok(0) => break,
                Ok(n) => n,
            }
        };
        traced.pass_on(&bytes[..n], &mut missed);
    }
    events::tell_surely(move || {
        traced.end(missed);
        open().remove(&traced);
    });
}

impl Traced {
    /// On the driver: has the bytes told, after those that were `missed`, or misses them too.
    fn pass_on(self: &Arc<Self>, bytes: &[u8], missed: &mut u64) {
        let cost = bytes.len() + OVERHEAD;
        let fits = self.waiting.load(Relaxed) + cost <= STREAM;
        let (traced, piece, before) = (self.clone(), if fits { bytes.to_vec() } else { Vec::new() }, *missed);
        self.waiting.fetch_add(cost, Relaxed);
        let told = fits
            && events::tell(cost, move || {
                traced.tell(&piece, before);
                traced.waiting.fetch_sub(cost, Relaxed);
            });
        if told {
            *missed = 0;
        } else {
            self.waiting.fetch_sub(cost, Relaxed);
            *missed += bytes.len() as u64;
        }
    }

    fn tell(&self, bytes: &[u8], missed: u64) {
        self.at_home(|lines| {
            self.tell_gap(lines, missed);
            lines.push(bytes, |line| events::guarded(|| self.event(&line)));
        });
    }

    fn end(&self, missed: u64) {
        self.at_home(|lines| {
            self.tell_gap(lines, missed);
            lines.end(false, |line| events::guarded(|| self.event(&line)));
            let untold = UNTOLD.swap(0, Relaxed);
            if untold > 0 {
                events::guarded(|| {
                    tracing::warn!(
                        target: TARGET,
                        streams = untold,
                        "the output of tasks was not forwarded: too much waits for the subscriber"
                    );
                });
            }
        });
    }

    fn tell_gap(&self, lines: &mut Lines, missed: u64) {
        if missed == 0 {
            return;
        }
        lines.end(true, |line| events::guarded(|| self.event(&line)));
        let pid = self.worker.status.borrow().pid;
        events::guarded(|| {
            tracing::warn!(
                target: TARGET,
                parent: &self.tracer.span,
                task = &*self.worker.name,
                pid,
                stream = self.tracer.stream,
                dropped = missed,
                "output was dropped: it came faster than the subscriber took it"
            );
        });
    }

    /// With the caller's subscriber, or the program's if the caller had none.
    fn at_home(&self, tell: impl FnOnce(&mut Lines)) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let dispatch = &self.tracer.dispatch;
        if dispatch.is::<NoSubscriber>() {
            tell(&mut lines);
        } else {
            dispatcher::with_default(dispatch, || tell(&mut lines));
        }
    }

    fn event(&self, line: &Line<'_>) {
        // Not borrowed in the macro: that would last as long as the subscriber takes.
        let pid = self.worker.status.borrow().pid;
        // The level of an event is a constant.
        macro_rules! event {
            ($($level:ident)*) => {
                match self.tracer.level {
                    $(Level::$level => tracing::event!(
                        target: TARGET,
                        parent: &self.tracer.span,
                        Level::$level,
                        task = &*self.worker.name,
                        pid,
                        stream = self.tracer.stream,
                        cut = line.cut.then_some(true),
                        "{}",
                        line.text
                    ),)*
                }
            };
        }
        event!(ERROR WARN INFO DEBUG TRACE);
    }
}

/// Waits until what tasks printed to streams that are [traced](crate::Stdio::traced) has become events: all of it of
/// tasks that have ended or are being ended, and of the others what was read so far. Not longer than `limit`; `false` if
/// that was not enough.
///
/// For the end of a program: what is still on its way then is lost. [`block_on`](crate::block_on) does this itself, for
/// up to a second. It blocks the thread, so it is not for async code.
///
/// ```
/// use std::time::Duration;
/// use tokio_run_in_process::{Stdio, Task, flush_traced, init};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     init()?;
///     let runtime = tokio::runtime::Runtime::new()?;
///     let task = Task::new().stdout(Stdio::traced());
///     runtime.block_on(task.run(async || println!("the last words"), ()))?;
///     assert!(flush_traced(Duration::from_secs(10)));
///     Ok(())
/// }
/// ```
pub fn flush_traced(limit: Duration) -> bool {
    events::wait(limit, || {
        open().0.iter().all(|traced| {
            let status = traced.worker.status.borrow();
            status.outcome.is_none() && status.cause.is_none()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::WorkerId;

    #[test]
    fn there_is_room_for_so_many_streams() {
        let stream = || {
            let worker = Worker::new(WorkerId(1), "task".into());
            let tracer = Tracer::here(1, None);
            Arc::new(Traced { worker, tracer, lines: Mutex::default(), waiting: AtomicUsize::new(0) })
        };
        let mut open = Open::default();
        let first = stream();
        assert!(open.add(&first));
        assert!((1..STREAMS).all(|_| open.add(&stream())));
        assert!(!open.add(&stream()));
        open.remove(&first);
        assert!(open.add(&stream()) && !open.add(&first));
    }
}
