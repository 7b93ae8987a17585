//! What the driver does when a zygote is gone.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::net::unix::pipe;

use super::{
    driver::Driver,
    launch::{self, Launched},
    lineage::{self, Ancestor},
    link::Link,
    race::{Either, race},
    zygote::Inner,
};
use crate::{
    sys::{ParentWatch, fd, socket},
    wire::control::{FACT_SIZE, Fact},
};

/// How often the loss of an ancestor is made good, if the system has no process for it now.
const TRIES: u32 = 10;

impl Driver {
    /// A zygote is gone: its workers get another parent or none, and those that need it another zygote.
    ///
    /// `false` if no handle needed it any more.
    pub(super) fn lost(&'static self, link: &Arc<Link>) -> bool {
        let (served, descended): (Vec<_>, Vec<_>) = {
            let family = lineage::family();
            let served = family.iter().filter(|inner| inner.lineage.serves_by(link)).cloned();
            let descended = family.iter().filter(|inner| Arc::ptr_eq(&inner.lineage.ancestor().link, link)).cloned();
            (served.collect(), descended.collect())
        };
        let needed = !served.is_empty() || !descended.is_empty();
        // One that is shut down needs none.
        for inner in served.into_iter().filter(|inner| !inner.is_closing()) {
            inner.counters.zygotes_lost.fetch_add(1, Relaxed);
            // Before anything else is done: whoever waits for the next one must not take this one for it.
            let wait = inner.lineage.is_down();
            self.spawn(self.recover(Arc::downgrade(&inner), wait));
        }
        if !descended.is_empty() {
            self.spawn(self.replace_ancestor(descended.iter().map(Arc::downgrade).collect()));
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
            let sources = sources(&inner);
            if sources.is_empty() {
                return inner.lineage.is_lost();
            }
            for source in sources {
                if let Ok(Some(launched)) = fork_from(&source, inner.config.startup_timeout).await {
                    self.install(&inner, launched);
                    if inner.lineage.ancestor().link.is_closed() {
                        self.spawn(self.replace_ancestor(vec![zygote]));
                    }
                    return;
                }
            }
            wait = inner.lineage.has_failed();
        }
    }

    /// The one that serves forks its successor and is the ancestor from then on.
    async fn replace_ancestor(&'static self, descended: Vec<Weak<Inner>>) {
        for n in 0..TRIES {
            for inner in descended.iter().filter_map(Weak::upgrade) {
                if !inner.lineage.ancestor().link.is_closed() {
                    return;
                }
                let link = inner.lineage.link();
                let Ok(Some(launched)) = fork_from(&link, inner.config.startup_timeout).await else { continue };
                let ancestor = Ancestor::new(link, None);
                // The driver hears it already, as the one that served.
                let _ = ancestor.served.set(());
                for other in descended.iter().filter_map(Weak::upgrade) {
                    other.lineage.set_ancestor(ancestor.clone());
                }
                return self.install(&inner, launched);
            }
            tokio::time::sleep(Duration::from_millis(10 << n)).await;
        }
    }

    fn install(&'static self, inner: &Arc<Inner>, launched: Launched) {
        inner.lineage.succeed(launched);
        // Without the means to hear it, it is as good as gone.
        if self.serve(&inner.lineage.link(), Arc::downgrade(inner)).is_err() {
            inner.lineage.link().close();
            self.lost(&inner.lineage.link());
        }
    }
}

/// The zygotes that can fork the next one, the best first.
pub(super) fn sources(inner: &Arc<Inner>) -> Vec<Arc<Link>> {
    let own = inner.lineage.ancestor().link.clone();
    let others = lineage::family().into_iter().filter(|other| inner.lineage.pristine && other.lineage.pristine);
    let others = others.flat_map(|other| [other.lineage.ancestor().link.clone(), other.lineage.link()]);
    let mut sources = vec![own];
    sources.extend(others);
    sources.retain(|link| !link.is_closed());
    sources
}

/// Forks a zygote from another. `None` if that is gone, or could not.
pub(super) async fn fork_from(source: &Arc<Link>, timeout: Duration) -> io::Result<Option<Launched>> {
    let (ours, theirs) = socket::pair()?;
    launch::order(source, &Arc::new(theirs), ParentWatch::new().as_ref())?;
    let copy = fd::duplicate(ours.as_raw_fd())?;
    fd::set_nonblocking(copy.as_raw_fd(), true)?;
    let facts = pipe::Receiver::from_owned_fd_unchecked(copy)?;
    let ready = async {
        let mut bytes = Vec::new();
        loop {
            facts.readable().await?;
            let room = FACT_SIZE - bytes.len();
            let receive = || socket::receive_into(facts.as_fd(), &mut bytes, room, &mut Vec::new(), false);
            match facts.try_io(receive) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
                Ok(received) if received.bytes == 0 => return Ok(None),
                Ok(_) => {}
            }
            if let Some(bytes) = bytes.first_chunk::<FACT_SIZE>() {
                return Fact::decode(bytes).map(Some).map_err(io::Error::other);
            }
        }
    };
    match race(ready, tokio::time::sleep(timeout)).await {
        Either::First(Ok(Some(Fact::Ready { pid }))) => {
            // No more is to be read here than that.
            drop(facts);
            Ok(Some(Launched { link: Link::new(ours), pid }))
        }
        Either::First(Err(e)) => Err(e),
        Either::First(Ok(_)) => Ok(None),
        Either::Second(()) => Err(io::ErrorKind::TimedOut.into()),
    }
}
