//! Where the lane for a task comes from, and where it goes afterwards: to the next task of the pool, to whoever else waits
//! for a process, or away.

use std::{
    pin::pin,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    super::{
        race::{Either, race},
        zygote::{self, Holder},
    },
    Inner, Lane,
};
use crate::error::Error;

/// How long a pool that has more to do than it has workers keeps them all from others who wait for a process.
const TURN: Duration = Duration::from_millis(50);

impl Holder for Inner {
    fn is_of(&self, zygote: &zygote::Inner) -> bool {
        std::ptr::eq(&*self.zygote.0, zygote)
    }

    fn let_one_go(&self) -> bool {
        loop {
            let oldest = {
                let mut idle = self.idle();
                (!idle.is_empty()).then(|| idle.remove(0))
            };
            match oldest {
                None => return false,
                Some((lane, _)) if lane.makes_room() => return true,
                Some(_) => {}
            }
        }
    }
}

impl Inner {
    /// Lets workers go that had no task for so long, until the pool has `ended`. On the driver.
    pub(super) fn keep_idle_for(self: Arc<Self>, time: Duration, mut ended: watch::Receiver<()>) -> Result<(), Error> {
        let driver = self.driver(&self.config.name)?;
        let pool = Arc::downgrade(&self);
        drop(self);
        driver.spawn(async move {
            loop {
                // It never changes.
                race(ended.changed(), tokio::time::sleep((time / 4).max(Duration::from_millis(1)))).await;
                let Some(pool) = pool.upgrade() else { return };
                let mut idle = pool.idle();
                let old = idle.partition_point(|(_, since)| since.elapsed() >= time);
                let old: Vec<_> = idle.drain(..old).collect();
                drop(idle);
                drop(old);
            }
        });
        Ok(())
    }

    /// A lane to use: the one that was used last, or a new one. If there is no room for a new one, there may be none until
    /// a lane of this pool is idle again: whichever comes first. (If somebody else takes the last place just now, he waits
    /// in the queue, and [`put_back`](Self::put_back) makes room.)
    ///
    /// `name`: of the task, for errors.
    pub(super) async fn lane(&self, name: &Arc<str>) -> Result<Lane, Error> {
        if let Some((lane, _)) = self.idle().pop() {
            return Ok(lane);
        }
        let start = Lane::start(&self.config, name);
        if self.zygote.available_processes() > 0 {
            return start.await;
        }
        // Before `start`: that does not count among those who wait for a process any more when this is dropped.
        let _waiting = Waiting::new(self);
        let mut start = pin!(start);
        loop {
            // Before the look: one that becomes idle in between is not missed. Not by a second one who waits, either: of those
            // that are not enabled, `notify_one` remembers one.
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            let idle = self.idle().pop();
            if let Some((lane, _)) = idle {
                // It may have been given back after the last look of a shutdown.
                return if self.zygote.0.is_closing() { Err(Error::ShutDown) } else { Ok(lane) };
            }
            if let Either::First(lane) = race(start.as_mut(), freed).await {
                return lane;
            }
        }
    }

    /// Takes a lane back that served.
    pub(super) fn put_back(&self, lane: Lane) {
        if self.owes_a_turn() {
            // The tasks of this pool that wait stand in the queue for processes, too.
            return drop(lane);
        }
        self.idle().push((lane, Instant::now()));
        self.freed.notify_one();
        // After the push: whoever starts to wait now finds it, and so does a shutdown that begins now.
        if self.zygote.0.is_closing() {
            self.let_one_go();
        } else {
            self.make_room(1);
        }
    }

    /// Whether it is somebody else's turn though tasks of this pool wait: with lanes that pass from one to the next, they would
    /// be before him for ever. Not at each task: another worker costs more than most tasks do.
    fn owes_a_turn(&self) -> bool {
        let waiting = self.waiting.load(Relaxed);
        // Each that waits for a lane waits for a process as well.
        if waiting == 0 || self.zygote.0.room.queued.load(Relaxed) <= waiting {
            return false;
        }
        let mut last = self.last_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let owes = last.elapsed() >= TURN;
        if owes {
            *last = Instant::now();
        }
        owes
    }

    /// Idle lanes go if nobody of this pool waits for them: one for each that waits for a process, and so many at most.
    fn make_room(&self, most: usize) {
        if self.waiting.load(Relaxed) == 0 {
            let queued = self.zygote.0.room.queued.load(Relaxed);
            (0..queued.min(most)).all(|_| self.let_one_go());
        }
    }
}

/// A task of the pool that waits for a lane, as long as it lives.
struct Waiting<'a>(&'a Inner);

impl<'a> Waiting<'a> {
    fn new(pool: &'a Inner) -> Self {
        pool.waiting.fetch_add(1, Relaxed);
        Self(pool)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
        if self.0.zygote.0.check_owner().is_err() {
            // A fork of the parent, where another thread may have held the locks.
            return;
        }
        // Lanes may have been kept for this one, which took another or gave up: nobody else would look at them.
        self.0.make_room(usize::MAX);
    }
}
