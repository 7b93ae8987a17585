//! The zygotes behind one handle: the one that serves, and the ancestor that it was forked from and that can fork the
//! next one.
//!
//! ```text
//! ancestor A --fork--> serving zygote S --fork--> workers
//! ```
//!
//! The ancestor is idle, and the parent of what its descendants leave (a subreaper, on Linux). When S dies, A inherits
//! its workers, reports how they end, and forks the next S. When A dies, S forks the next one that serves, and is the
//! ancestor from then on. Both at once is the end of the handle, unless another one's zygotes are there to fork from.
//!
//! All handles of a program share one ancestor, until that dies: then each has its own. One whose zygotes both died takes the
//! ancestor of another. Never another's serving zygote: that kills what it forked when its own handle is dropped.

use std::{
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicI32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{launch::Launched, link::Link, zygote::Inner};
use crate::sys::{process, role};

/// The zygote that serves.
#[derive(Clone, Debug)]
pub(super) struct Serving {
    pub(super) link: Arc<Link>,
    pub(super) pid: u32,
    huge_text: bool,
    life: Life,
    since: Instant,
    /// How many tasks of the handle had returned when it began.
    returned: u64,
    /// How many before this one came to nothing.
    setbacks: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Up,
    /// It is gone; the next one is being forked.
    Down,
    /// There will be no other.
    Lost,
}

/// One that died sooner had no time to do anything.
const SETBACK: Duration = Duration::from_millis(10);
/// One that lived as long is part of no crash loop, even if it had nothing to do.
const SETTLED: Duration = Duration::from_millis(250);
/// The longest wait between two tries.
const LONGEST: Duration = Duration::from_secs(1);

/// Whether a zygote that lived so long came to nothing. Not by its age alone: on a busy machine one that dies at its first
/// step may be tens of milliseconds old.
fn is_setback(age: Duration, returned: bool) -> bool {
    age < SETBACK || (!returned && age < SETTLED)
}

/// How long to wait before the next zygote is forked, after so many that came to nothing.
fn delay(setbacks: u32) -> Duration {
    match setbacks {
        0 => Duration::ZERO,
        n => Duration::from_millis(1 << n.min(10)).min(LONGEST),
    }
}

/// A zygote that only forks others. It ends when the last handle that needs it does.
#[derive(Debug)]
pub(super) struct Ancestor {
    pub(super) link: Arc<Link>,
    /// Whether the driver hears it.
    pub(super) served: OnceLock<()>,
    owner: i32,
    /// Forked this one, and would kill it when it leaves.
    _older: Option<Arc<Ancestor>>,
}

impl Ancestor {
    pub(super) fn new(link: Arc<Link>, older: Option<Arc<Ancestor>>) -> Arc<Self> {
        Arc::new(Self { link, served: OnceLock::new(), owner: process::pid(), _older: older })
    }
}

impl Drop for Ancestor {
    fn drop(&mut self) {
        if self.owner == process::pid() && role::get() == role::Role::Parent {
            self.link.close();
        }
    }
}

#[derive(Debug)]
pub(super) struct Lineage {
    serving: watch::Sender<Serving>,
    ancestor: Mutex<Arc<Ancestor>>,
    /// Another ancestor is there, or there will be none.
    changed: Condvar,
    /// Its image is the program's as it was at the first start, so any other such zygote can fork the next one.
    pub(super) pristine: bool,
}

impl Lineage {
    pub(super) fn new(launched: Launched, ancestor: Arc<Ancestor>, pristine: bool) -> Self {
        let serving = watch::Sender::new(Serving::new(launched));
        Self { serving, ancestor: Mutex::new(ancestor), changed: Condvar::new(), pristine }
    }

    pub(super) fn link(&self) -> Arc<Link> {
        self.serving.borrow().link.clone()
    }

    pub(super) fn pid(&self) -> u32 {
        self.serving.borrow().pid
    }

    pub(super) fn has_huge_text(&self) -> bool {
        self.serving.borrow().huge_text
    }

    pub(super) fn serves_by(&self, link: &Arc<Link>) -> bool {
        Arc::ptr_eq(&self.serving.borrow().link, link)
    }

    pub(super) fn ancestor(&self) -> Arc<Ancestor> {
        self.ancestor.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_ancestor(&self, ancestor: Arc<Ancestor>) {
        let before = std::mem::replace(&mut *self.ancestor.lock().unwrap_or_else(PoisonError::into_inner), ancestor);
        self.changed.notify_all();
        drop(before);
    }

    /// Waits for another ancestor than this. `None` if there will be none, or not in time.
    pub(super) fn ancestor_after(&self, before: &Arc<Ancestor>, timeout: Duration) -> Option<Arc<Ancestor>> {
        let ancestor = self.ancestor.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |now: &mut Arc<Ancestor>| Arc::ptr_eq(now, before) && self.life() != Life::Lost;
        let waited = self.changed.wait_timeout_while(ancestor, timeout, is_same);
        let (now, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (!Arc::ptr_eq(&now, before)).then(|| now.clone())
    }

    fn life(&self) -> Life {
        self.serving.borrow().life
    }

    /// Whether a zygote serves, as far as is known.
    pub(super) fn is_up(&self) -> bool {
        self.life() == Life::Up && !self.link().is_closed()
    }

    /// The zygote that served is gone, and so many tasks of the handle returned up to now. Says how long to wait before the
    /// next one is forked.
    pub(super) fn is_down(&self, returned: u64) -> Duration {
        let mut wait = Duration::ZERO;
        self.serving.send_modify(|serving| {
            serving.life = Life::Down;
            let setback = is_setback(serving.since.elapsed(), returned != serving.returned);
            serving.setbacks = if setback { serving.setbacks + 1 } else { 0 };
            wait = delay(serving.setbacks);
        });
        wait
    }

    /// There was none to be had now. Says how long to wait before the next try.
    pub(super) fn has_failed(&self) -> Duration {
        let mut wait = Duration::ZERO;
        self.serving.send_modify(|serving| {
            serving.setbacks += 1;
            wait = delay(serving.setbacks);
        });
        wait
    }

    /// There will be no other.
    pub(super) fn is_lost(&self) {
        self.serving.send_modify(|serving| serving.life = Life::Lost);
        // With the lock, or it comes between the look and the wait of somebody.
        drop(self.ancestor.lock());
        self.changed.notify_all();
    }

    /// Another one serves from now on, if it still `may`. So many tasks returned before it.
    pub(super) fn succeed(&self, next: Serving, returned: u64, may: impl FnOnce() -> bool) -> bool {
        self.serving.send_if_modified(|serving| {
            let may = may();
            if may {
                *serving = Serving { returned, setbacks: serving.setbacks, ..next };
            }
            may
        })
    }

    /// Waits until another zygote serves than the one of this link. `false` if there will be none, or not in time.
    pub(super) async fn successor_of(&self, link: &Arc<Link>, sleep: impl Future<Output = ()>) -> bool {
        let mut serving = self.serving.subscribe();
        let other = serving.wait_for(|serving| match serving.life {
            Life::Up => !Arc::ptr_eq(&serving.link, link),
            Life::Down => false,
            Life::Lost => true,
        });
        match super::race::race(other, sleep).await {
            super::race::Either::First(Ok(serving)) => serving.life == Life::Up,
            _ => false,
        }
    }
}

impl Serving {
    pub(super) fn new(launched: Launched) -> Self {
        let pid = launched.pid.unsigned_abs();
        let (link, huge_text) = (Arc::new(launched.link), launched.huge_text);
        Self { link, pid, huge_text, life: Life::Up, since: Instant::now(), returned: 0, setbacks: 0 }
    }
}

/// Every handle's zygotes.
static FAMILY: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());
/// The process that they belong to: a fork of it must leave them alone. 0 before there are any.
static OWNER: AtomicI32 = AtomicI32::new(0);

/// Makes a handle known.
pub(super) fn remember(inner: &Arc<Inner>) {
    OWNER.store(process::pid(), Ordering::Relaxed);
    let mut family = FAMILY.lock().unwrap_or_else(PoisonError::into_inner);
    family.retain(|inner| inner.strong_count() > 0);
    family.push(Arc::downgrade(inner));
}

/// Whether this process is a fork of the one that has the zygotes. Then `family` is not to be asked: another thread may
/// have held its lock at the fork.
pub(super) fn is_of_another_process() -> bool {
    ![0, process::pid()].contains(&OWNER.load(Ordering::Relaxed))
}

/// All handles that are there, the newest last.
pub(super) fn family() -> Vec<Arc<Inner>> {
    FAMILY.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_loop_backs_off_and_a_single_crash_does_not() {
        assert_eq!(delay(0), Duration::ZERO);
        assert_eq!([1, 2, 3].map(delay), [2, 4, 8].map(Duration::from_millis));
        assert_eq!(delay(40), LONGEST);
    }

    #[test]
    fn a_zygote_came_to_nothing_if_it_died_at_once_or_young_without_a_result() {
        let setback = |millis, returned| is_setback(Duration::from_millis(millis), returned);
        assert_eq!([5, 50, 300].map(|age| setback(age, false)), [true, true, false]);
        assert_eq!([5, 50, 300].map(|age| setback(age, true)), [true, false, false]);
    }
}
