//! What the driver does when a zygote is gone.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::net::unix::pipe;

use super::{
    driver::Driver,
    launch::{self, Launched},
    lineage::{self, Ancestor, Serving},
    link::Link,
    race::{Either, race},
    zygote::Inner,
};
use crate::{
    sys::{ParentWatch, fd, socket},
    wire::control::{FACT_SIZE, Fact},
};

impl Driver {
    /// A zygote is gone: its workers get another parent or none, and those that need it another zygote. The link is closed.
    ///
    /// `false` if no handle needed it any more.
    pub(super) fn lost(&'static self, link: &Arc<Link>) -> bool {
        let family = lineage::family();
        let mut needed = false;
        for inner in family.iter().filter(|inner| inner.lineage.serves_by(link)) {
            needed = true;
            if inner.is_closing() {
                // It needs none.
                continue;
            }
            inner.counters.lost_zygote();
            // Before anything else is done: whoever waits for the next one must not take this one for it.
            let wait = inner.lineage.is_down(inner.counters.returned());
            self.spawn(self.recover(Arc::downgrade(inner), wait));
        }
        for inner in family.iter().filter(|inner| Arc::ptr_eq(&inner.lineage.ancestor().link, link)) {
            needed = true;
            self.spawn(self.replace_ancestor(Arc::downgrade(inner)));
        }
        needed
    }

    /// Forks the next zygote, as soon as one can be had.
    async fn recover(&'static self, zygote: Weak<Inner>, mut wait: Duration) {
        loop {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let Some(inner) = zygote.upgrade().filter(|inner| !inner.is_closing()) else { return };
            match ancestor_for(&inner) {
                Source::None => return inner.lineage.is_lost(),
                Source::Soon => {}
                Source::Ancestor(ancestor) => {
                    let launched = fork_from(&ancestor.link, inner.config.startup_timeout).await;
                    // Meanwhile its own ancestor may have been replaced, by one that serves: then that is there already.
                    if inner.lineage.is_up() {
                        return;
                    }
                    if let Ok(Some(launched)) = launched {
                        if self.install(&inner, launched) {
                            if !Arc::ptr_eq(&ancestor, &inner.lineage.ancestor()) {
                                inner.lineage.set_ancestor(ancestor);
                            }
                            drop(inner);
                            // It may be gone since.
                            return self.replace_ancestor(zygote).await;
                        }
                    }
                }
            }
            wait = inner.lineage.has_failed();
        }
    }

    /// While the ancestor is gone: the one that serves forks its successor and is the ancestor from then on.
    pub(super) async fn replace_ancestor(&'static self, zygote: Weak<Inner>) {
        for failures in 0_u32.. {
            let Some(inner) = zygote.upgrade().filter(|inner| !inner.is_closing()) else { return };
            if !inner.lineage.ancestor().link.is_closed() {
                return;
            }
            // A handle that was not used yet is not heard either. From here on it is, and if its zygote is dead, `recover`
            // finds both.
            let is_heard = inner.driver().is_ok();
            if !inner.lineage.is_up() {
                return;
            }
            let link = inner.lineage.link();
            let launched = fork_from(&link, inner.config.startup_timeout).await;
            // Somebody else was quicker, or it is gone itself by now. A second `Ancestor` with its link would close that.
            let still = is_heard && inner.lineage.serves_by(&link) && inner.lineage.is_up();
            if let (Ok(Some(launched)), true) = (launched, still) {
                if self.install(&inner, launched) {
                    let ancestor = Ancestor::new(link, None);
                    // The driver hears it already, as the one that served.
                    let _ = ancestor.served.set(());
                    inner.lineage.set_ancestor(ancestor);
                    continue;
                }
            }
            drop(inner);
            tokio::time::sleep(Duration::from_millis(1 << failures.min(10))).await;
        }
    }

    /// Lets a zygote serve. `false` if there are no means to hear it, or if none is needed any more.
    fn install(&'static self, inner: &Arc<Inner>, launched: Launched) -> bool {
        let next = Serving::new(launched);
        // First, so that no task is given to one that nobody hears.
        if self.serve(&next.link, Arc::downgrade(inner)).is_err() {
            return false;
        }
        let link = next.link.clone();
        // Looked at where it takes its place: a shutdown asks who serves after it has set this, and ends that one.
        let serves = inner.lineage.succeed(next, inner.counters.returned(), || !inner.is_closing());
        if !serves {
            link.close();
        }
        serves
    }
}

/// Who can fork the next zygote.
pub(super) enum Source {
    Ancestor(Arc<Ancestor>),
    /// Another handle's serving zygote will be its ancestor.
    Soon,
    None,
}

pub(super) fn ancestor_for(inner: &Arc<Inner>) -> Source {
    let own = inner.lineage.ancestor();
    if !own.link.is_closed() {
        return Source::Ancestor(own);
    }
    let family = lineage::family();
    let others = || family.iter().filter(|other| inner.lineage.pristine && other.lineage.pristine);
    let ancestor = others().map(|other| other.lineage.ancestor()).find(|ancestor| !ancestor.link.is_closed());
    match ancestor {
        Some(ancestor) => Source::Ancestor(ancestor),
        None if others().any(|other| other.lineage.is_up()) => Source::Soon,
        None => Source::None,
    }
}

/// Forks a zygote from another. `None` if that is gone, or could not.
pub(super) async fn fork_from(source: &Arc<Link>, timeout: Duration) -> io::Result<Option<Launched>> {
    let (ours, theirs) = socket::pair()?;
    launch::order(source, &Arc::new(theirs), ParentWatch::new().as_ref())?;
    let copy = fd::duplicate(ours.as_raw_fd())?;
    fd::set_nonblocking(copy.as_raw_fd(), true)?;
    let facts = pipe::Receiver::from_owned_fd_unchecked(copy)?;
    let ready = async {
        let (mut bytes, mut fds) = (Vec::new(), Vec::new());
        loop {
            facts.readable().await?;
            let room = FACT_SIZE - bytes.len();
            let receive = || socket::receive_into(facts.as_fd(), &mut bytes, room, &mut fds, false);
            match facts.try_io(receive) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
                Ok(received) if received.bytes == 0 => return Ok(None),
                Ok(_) => {}
            }
            if let Some(bytes) = bytes.first_chunk::<FACT_SIZE>() {
                return Fact::decode(bytes).map(|fact| Some((fact, fds.pop()))).map_err(io::Error::other);
            }
        }
    };
    match race(ready, tokio::time::sleep(timeout)).await {
        Either::First(Ok(Some((Fact::Ready { pid, huge_text }, rope)))) => {
            // No more is to be read here than that.
            drop(facts);
            Ok(Some(Launched { link: Link::new(ours, rope), pid, huge_text }))
        }
        Either::First(Err(e)) => Err(e),
        Either::First(Ok(_)) => Ok(None),
        Either::Second(()) => Err(io::ErrorKind::TimedOut.into()),
    }
}
