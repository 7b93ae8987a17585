//! The thread that gives the program's `tracing` subscriber its events.
//!
//! A subscriber is the program's code: it may block, panic, print, or start a task. On the driver it would hold up the
//! deadlines and results of every task. On the caller's runtime nothing may be polled when there is something to tell: a
//! `Process` may be kept aside, the executor may not be tokio. So there is a thread for it, which starts when there is
//! something and ends when there was nothing for a while; like the driver it has all signals blocked.
//!
//! Who has an event leaves it in a queue and never waits. What the queue holds is bounded, so a subscriber that blocks
//! costs events, and no memory. One that panics costs the event that it was given.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::sys::signal;

/// What all that waits may cost together, in bytes.
const LIMIT: usize = 16 << 20;
/// How long the thread waits for more.
const LINGER: Duration = Duration::from_secs(1);

type Event = Box<dyn FnOnce() + Send>;

struct Queue {
    events: VecDeque<(usize, Event)>,
    /// What they cost, with the one that is being told.
    cost: usize,
    /// How many were put in and how many were told, ever.
    put: u64,
    told: u64,
    /// There is a thread.
    served: bool,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue { events: VecDeque::new(), cost: 0, put: 0, told: 0, served: false });
/// There is an event.
static MORE: Condvar = Condvar::new();
/// One was told.
static TOLD: Condvar = Condvar::new();

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has an event told, if it fits. Never waits.
pub(super) fn tell(cost: usize, event: impl FnOnce() + Send + 'static) -> bool {
    put(queue(), cost, LIMIT, Box::new(event))
}

/// The same for what there can only be so much of, and must not be lost.
pub(super) fn tell_surely(event: impl FnOnce() + Send + 'static) {
    put(queue(), 0, usize::MAX, Box::new(event));
}

fn put(mut queue: MutexGuard<'static, Queue>, cost: usize, limit: usize, event: Event) -> bool {
    if queue.cost.saturating_add(cost) > limit {
        // Not under the lock: what it holds is the program's.
        drop(queue);
        return false;
    }
    queue.cost += cost;
    queue.put += 1;
    queue.events.push_back((cost, event));
    // Should there be no thread to be had now, then perhaps for the next event.
    queue.served = queue.served || start();
    drop(queue);
    MORE.notify_one();
    true
}

fn start() -> bool {
    let thread = std::thread::Builder::new().name("in-process-log".to_owned());
    signal::with_all_blocked(|| thread.spawn(serve)).is_ok()
}

fn serve() {
    let mut idle = false;
    let mut queue = queue();
    loop {
        if let Some((cost, event)) = queue.events.pop_front() {
            drop(queue);
            guarded(event);
            queue = self::queue();
            queue.cost -= cost;
            queue.told += 1;
            TOLD.notify_all();
            idle = false;
        } else if idle {
            queue.served = false;
            return;
        } else {
            let (woken, timeout) = MORE.wait_timeout(queue, LINGER).unwrap_or_else(PoisonError::into_inner);
            (queue, idle) = (woken, timeout.timed_out());
        }
    }
}

/// Calls what may panic. With `panic = "abort"` that ends the program, as on any thread of its own.
pub(super) fn guarded(event: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(event)) {
        // Its destructor could panic again.
        std::mem::forget(payload);
    }
}

/// Waits until `done` holds and what is in the queue by now has been told, but not longer than `limit`; says whether it
/// came to that. `done` is asked again when an event was told.
pub(super) fn wait(limit: Duration, done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now().checked_add(limit);
    let mut queue = queue();
    let put = queue.put;
    while !(queue.told >= put && done()) {
        let left = deadline.map_or(LINGER, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return false;
        }
        queue = TOLD.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// One test: there is one queue.
    #[test]
    fn events_are_told_in_order_unless_there_are_too_many() {
        let told = Arc::new(AtomicUsize::new(0));
        let count = |n: usize| {
            let told = told.clone();
            move || assert_eq!(told.fetch_add(1, SeqCst), n)
        };
        assert!(tell(1, count(0)) && tell(1, || panic!("as asked")) && tell(1, count(1)));
        assert!(wait(LONG, || true));
        assert_eq!(told.load(SeqCst), 2);
        assert!(!wait(Duration::from_millis(1), || false));

        // While one blocks the rest waits, as much as fits.
        let (unblock, blocked) = mpsc::channel::<()>();
        tell_surely(move || blocked.recv().unwrap());
        assert!(tell(LIMIT - 1, count(2)) && tell(1, count(3)));
        let refused = Arc::new(());
        let held = refused.clone();
        assert!(!tell(1, move || drop(held)));
        assert_eq!(Arc::strong_count(&refused), 1, "it is not kept");
        tell_surely(count(4));
        assert!(!wait(Duration::from_millis(1), || true));
        unblock.send(()).unwrap();
        assert!(wait(LONG, || told.load(SeqCst) == 5));
        assert_eq!(queue().cost, 0);

        // The thread goes when there is nothing to tell, and comes back.
        let start = Instant::now();
        while queue().served {
            assert!(start.elapsed() < LONG);
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(tell(1, count(5)) && wait(LONG, || told.load(SeqCst) == 6));
    }
}
