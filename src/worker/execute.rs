//! The task itself, under supervision: one future that polls it, catches its panic, and ends it on a signal.

use std::{
    cell::Cell,
    future::Future,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, Waker},
};

use tokio::runtime::LocalRuntime;

use super::{
    cancel, farewell,
    host::{Reactor, Watch, build_tokio},
    panic, signals,
};
use crate::{
    model::{Failure, Signal, Terminal},
    task::{BoxedTask, RuntimeEntry, WorkerTask},
    wire::job::Host,
};

thread_local! {
    static TASK_THREAD: Cell<bool> = const { Cell::new(false) };
}

static SUPERVISED: AtomicBool = AtomicBool::new(false);

/// Whether the task is a future that is polled, and not a plain function.
pub(super) fn is_supervised() -> bool {
    SUPERVISED.load(Ordering::Relaxed)
}

/// Whether this is the thread that the task's own code runs on.
pub(super) fn on_task_thread() -> bool {
    TASK_THREAD.get()
}

/// Runs the task to its end and ends the process.
pub(super) fn run(job: OwnedFd, task: BoxedTask, host: Host, runtime: Option<io::Result<LocalRuntime>>) -> ! {
    TASK_THREAD.set(true);
    let reactor = match host {
        Host::Tokio | Host::Pool => Reactor::Tokio,
        #[cfg(feature = "smol")]
        Host::Custom(address) if RuntimeEntry::of::<super::Smol>().address() == address => Reactor::Smol,
        Host::Blocking | Host::Custom(_) => Reactor::Thread,
    };
    SUPERVISED.store(host != Host::Blocking, Ordering::Relaxed);
    let supervised = Supervised { task: Some(task), job: Some(UnixStream::from(job)), watches: Vec::new(), reactor };
    let ran = catch_unwind(AssertUnwindSafe(|| run_on(host, supervised, runtime)));
    match (ENDED_BY.get(), ran) {
        (Some(signal), _) => farewell::die_of(signal),
        // Only a runtime of the user's gets here: the supervised task ends the process, or is ended by a signal.
        (None, Err(payload)) => farewell::say(panic::caught(payload)),
        (None, Ok(())) => farewell::say(Terminal::Failed(Failure::Setup {
            what: "run the task: the runtime returned before the task was done".to_owned(),
            errno: 0,
        })),
    }
}

fn run_on(host: Host, supervised: Supervised, runtime: Option<io::Result<LocalRuntime>>) {
    match host {
        Host::Tokio | Host::Pool => match runtime.unwrap_or_else(build_tokio) {
            Ok(runtime) => {
                runtime.block_on(supervised);
                // Destructors of the tasks that were spawned run; blocking threads are not waited for.
                runtime.shutdown_background();
            }
            Err(e) => farewell::say(Terminal::Failed(Failure::Setup {
                what: "build its tokio runtime".to_owned(),
                errno: e.raw_os_error().unwrap_or(0),
            })),
        },
        Host::Blocking => {
            // Ready at its first poll, or it does not come back.
            let _ = pin!(supervised).poll(&mut Context::from_waker(Waker::noop()));
        }
        Host::Custom(address) => RuntimeEntry::from_job(address).run(WorkerTask::new(supervised)),
    }
}

thread_local! {
    static ENDED_BY: Cell<Option<Signal>> = const { Cell::new(None) };
}

/// Polls the task; is ready only if a signal ended it, and else ends the process with the task's outcome.
struct Supervised {
    task: Option<BoxedTask>,
    /// Not watched before the task has waited once: most tasks never do.
    job: Option<UnixStream>,
    watches: Vec<Watch>,
    reactor: Reactor,
}

impl Future for Supervised {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            if let Some(signal) = signals::ending() {
                return this.end_by(signal);
            }
            let Some(task) = &mut this.task else { return Poll::Pending };
            panic::forget_last();
            match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(context))) {
                Err(payload) => farewell::say(panic::caught(payload)),
                // A signal that came while it ran its last stretch still ends it: nobody took it over.
                Ok(Poll::Ready(_)) if signals::ending().is_some() => continue,
                Ok(Poll::Ready(Ok(bytes))) => farewell::say(Terminal::Returned(bytes)),
                Ok(Poll::Ready(Err(failure))) => farewell::say(Terminal::Failed(failure)),
                Ok(Poll::Pending) => {}
            }
            if cancel::cancels_itself() {
                this.drop_task();
                farewell::say(Terminal::Cancelled);
            }
            // The waker before the watches: a poke in between must find it.
            signals::set_root(context.waker());
            let sockets = this.job.take().into_iter().chain(signals::take_new_pair());
            this.watches.extend(sockets.map(|socket| this.reactor.watch(socket)));
            for watch in &mut this.watches {
                let _ = watch.as_mut().poll(context);
            }
            if !signals::take_poke() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Supervised {
    /// A runtime of the user's dropped it: how the task ended is still to be said on this socket.
    fn drop(&mut self) {
        std::mem::forget(self.job.take());
    }
}

impl Supervised {
    fn end_by(&mut self, signal: Signal) -> Poll<()> {
        self.drop_task();
        ENDED_BY.set(Some(signal));
        if self.reactor == Reactor::Thread {
            // A runtime of the user's may wait for whatever it likes: it is not asked.
            farewell::die_of(signal);
        }
        Poll::Ready(())
    }

    /// Runs the task's destructors. One that panics makes that the outcome.
    fn drop_task(&mut self) {
        let task = self.task.take();
        panic::forget_last();
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(task))) {
            farewell::say(panic::caught(payload));
        }
    }
}
