//! Signals as a task sees them.
//!
//! The handler counts and pokes (`sys::wake`); the task's supervisor wakes and asks here what to do. A signal that
//! nobody took over ends the task; one that was taken over is delivered to its [`Signals`].

use std::{
    future::Future,
    io,
    os::unix::net::UnixStream,
    pin::pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::sync::Notify;

use super::{host, is_worker};
use crate::{
    model::Signal,
    sys::{
        signal::{self, Action, Disposition},
        wake,
    },
};

/// The signals that end a task unless it took them over.
pub(super) const ENDING: [Signal; 2] = [Signal::TERM, Signal::INT];

const SIGNALS: usize = 65;
/// How many live `Signals` there are for each.
static LISTENERS: [AtomicU32; SIGNALS] = [const { AtomicU32::new(0) }; SIGNALS];
/// How many deliveries of each were received.
static RECEIVED: [AtomicU32; SIGNALS] = [const { AtomicU32::new(0) }; SIGNALS];
/// What the signals did that are taken over. Locked while a handler comes or goes: one thread's last must not take another's
/// first along.
static BEFORE: Mutex<Vec<(usize, Action)>> = Mutex::new(Vec::new());
static ARRIVED: Notify = Notify::const_new();
static POKED: AtomicBool = AtomicBool::new(false);
/// The supervisor's waker.
static ROOT: Mutex<Option<Waker>> = Mutex::new(None);
/// The readable end of a pair that was just made, for the supervisor to watch.
static NEW_PAIR: Mutex<Option<UnixStream>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn slot(signal: Signal) -> Option<usize> {
    usize::try_from(signal.number()).ok().filter(|n| (1..SIGNALS).contains(n))
}

/// A reactor saw a poke.
pub(super) fn poked() {
    POKED.store(true, Ordering::SeqCst);
    ARRIVED.notify_waiters();
    wake_root();
}

pub(super) fn take_poke() -> bool {
    POKED.swap(false, Ordering::SeqCst)
}

pub(super) fn wake_root() {
    if let Some(waker) = &*lock(&ROOT) {
        waker.wake_by_ref();
    }
}

pub(super) fn set_root(waker: &Waker) {
    let mut root = lock(&ROOT);
    if root.as_ref().is_none_or(|root| !root.will_wake(waker)) {
        *root = Some(waker.clone());
    }
}

pub(super) fn take_new_pair() -> Option<UnixStream> {
    lock(&NEW_PAIR).take()
}

/// The signal that ends the task now: one that arrived and that nobody took over.
pub(super) fn ending() -> Option<Signal> {
    ENDING.into_iter().find(|&signal| {
        let n = slot(signal).expect("a known signal");
        wake::arrived(signal) != RECEIVED[n].load(Ordering::SeqCst) && LISTENERS[n].load(Ordering::SeqCst) == 0
    })
}

/// Takes those that would end the task as received. Whether there are any.
pub(super) fn take_ending() -> bool {
    let mut any = false;
    while let Some(signal) = ending() {
        let n = slot(signal).expect("a known signal");
        RECEIVED[n].store(wake::arrived(signal), Ordering::SeqCst);
        any = true;
    }
    any
}

/// Whether the task took over any of those that end it.
pub(super) fn is_taken_over() -> bool {
    ENDING.into_iter().filter_map(slot).any(|n| LISTENERS[n].load(Ordering::SeqCst) > 0)
}

/// Takes a signal over: from now on it does not end the task but is received here. When the last `Signals` of its kind
/// is dropped, the signal acts as before.
///
/// ```
/// use tokio_run_in_process::{Signal, open_in_process, worker};
///
/// async fn stubborn() -> u32 {
///     let mut interrupts = worker::signal(Signal::INT).unwrap();
///     interrupts.recv().await; // the first one is ignored
///     interrupts.recv().await;
///     9999
/// }
///
/// tokio_run_in_process::block_on(async {
///     let process = open_in_process(stubborn, ()).await.unwrap();
///     # tokio::time::sleep(std::time::Duration::from_millis(100)).await;
///     process.send_signal(Signal::INT).unwrap();
///     # tokio::time::sleep(std::time::Duration::from_millis(100)).await;
///     process.send_signal(Signal::INT).unwrap();
///     assert_eq!(process.wait().await.unwrap(), 9999);
/// })
/// .unwrap();
/// ```
///
/// # Errors
///
/// Outside a worker, for a signal that cannot be caught, one that the library needs (SIGIO where the kernel cannot kill
/// by itself), or at the limit of descriptors (a socket pair is made, once).
pub fn signal(signal: Signal) -> io::Result<Signals> {
    if !is_worker() {
        return Err(io::Error::other("signals are taken over inside a worker only"));
    }
    let uncatchable = [Signal::KILL, Signal::STOP].contains(&signal);
    let ours = signal == Signal::IO && signal::disposition(signal) == Disposition::Handled;
    if slot(signal).is_none() || uncatchable || ours {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{signal} cannot be taken over")));
    }
    if let Some(pair) = wake::make_pair()? {
        *lock(&NEW_PAIR) = Some(UnixStream::from(pair));
        if super::execute::is_supervised() {
            wake_root();
        } else {
            // A plain function: nothing polls.
            take_new_pair().into_iter().for_each(host::watch_with_thread);
        }
    }
    let mut before = lock(&BEFORE);
    let action = signal::take_over(signal, wake::COUNT)?;
    let listener = Signals::new(signal);
    if !before.iter().any(|&(slot, _)| slot == listener.slot) {
        before.push((listener.slot, action));
    }
    Ok(listener)
}

/// Receives a signal that was taken over: made by [`signal`](crate::worker::signal()).
#[derive(Debug)]
pub struct Signals {
    signal: Signal,
    slot: usize,
    seen: u32,
}

impl Signals {
    pub(super) fn new(signal: Signal) -> Self {
        let slot = slot(signal).expect("checked by the callers");
        LISTENERS[slot].fetch_add(1, Ordering::SeqCst);
        Self { signal, slot, seen: RECEIVED[slot].load(Ordering::SeqCst) }
    }

    /// Waits for the next delivery. Several that arrive at once may count as one, as the kernel has it.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if this is dropped before it is ready.
    pub async fn recv(&mut self) {
        loop {
            let mut notified = pin!(ARRIVED.notified());
            // Before the count is looked at, or a delivery in between would go unnoticed.
            notified.as_mut().enable();
            if self.try_recv() {
                return;
            }
            notified.await;
        }
    }

    /// Takes the next delivery if there is one.
    pub fn try_recv(&mut self) -> bool {
        let arrived = wake::arrived(self.signal) != self.seen;
        if arrived {
            self.seen = self.seen.wrapping_add(1);
            RECEIVED[self.slot].fetch_max(self.seen, Ordering::SeqCst);
        }
        arrived
    }

    /// Blocks the thread until the next delivery: for plain functions.
    ///
    /// ```
    /// use tokio::io::AsyncReadExt;
    /// use tokio_run_in_process::{Signal, Stdio, Task, block_on, worker};
    ///
    /// fn last_words() -> u32 {
    ///     let mut term = worker::signal(Signal::TERM).unwrap();
    ///     println!("ready");
    ///     term.recv_blocking();
    ///     7
    /// }
    ///
    /// block_on(async {
    ///     let process = Task::new().stdout(Stdio::piped()).open_blocking(last_words, ()).await.unwrap();
    ///     process.take_stdout().unwrap().read_exact(&mut [0; 6]).await.unwrap(); // "ready\n"
    ///     process.terminate().unwrap();
    ///     assert_eq!(process.wait().await.unwrap(), 7);
    /// })
    /// .unwrap();
    /// ```
    pub fn recv_blocking(&mut self) {
        let parked = std::sync::Arc::new(Unpark(std::thread::current()));
        let waker = Waker::from(parked);
        let mut recv = pin!(self.recv());
        while recv.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Pending {
            std::thread::park();
        }
    }

    /// Leaves the signal taken over for the rest of the task.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let mut before = lock(&BEFORE);
        let last = LISTENERS[self.slot].fetch_sub(1, Ordering::SeqCst) == 1;
        if !last {
            return;
        }
        if ENDING.contains(&self.signal) && super::execute::is_supervised() {
            drop(before);
            // One that arrived and was not received acts now, as if it had not been taken over.
            wake_root();
        } else if let Some(at) = before.iter().position(|&(slot, _)| slot == self.slot) {
            signal::restore(self.signal, &before.swap_remove(at).1);
        }
    }
}

struct Unpark(std::thread::Thread);

impl std::task::Wake for Unpark {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.unpark();
    }
}
