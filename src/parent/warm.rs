//! Warm workers: processes that stand ready, runtime built, blocked on their job sockets.
//!
//! A spare was ordered like any worker, only before its task was there; so a task that takes one goes the same way as a
//! task that orders one, with the order left out. Spares are single-use, hold no permit, and end when their socket is
//! closed. They are replaced when a task's process has exited, by the driver, which is awake then anyway: never at the
//! cost of the task that is being dispatched.
//!
//! The newest goes first (its memory is still in the caches), but not before it had the time to come up.
//!
//! A spare is made in time that nobody needs. Where there is none, since more tasks are under way than there are processors
//! and a worker that stood ready had to wait for one, it costs more than it saves (a task forked when its turn comes is up
//! and at work in one go); so none is ordered for a while then, until fewer tasks are under way.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{link::Link, roster::next_id};
use crate::{
    model::{Demand, WorkerId},
    sys::{fd, socket},
    wire::control::{Order, Prepare},
};

/// How long a fresh spare is left to come up while an older one is there: a fork and a runtime, with room to spare.
const COMES_UP: Duration = Duration::from_millis(2);
/// How long none is ordered after the system had no process to give, or no processor for one that stood ready.
const RESPITE: Duration = Duration::from_millis(100);

/// A worker without a task.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) id: WorkerId,
    /// The parent's end of its job socket, not watched by any runtime yet.
    pub(super) socket: OwnedFd,
    /// The worker's end, to be armed when it has its job (see `sys::arm`).
    pub(super) theirs: Arc<OwnedFd>,
    /// To the zygote that forked it.
    pub(super) link: Arc<Link>,
    since: Instant,
}

#[derive(Debug)]
struct Kind {
    prepare: Prepare,
    demand: Demand,
    /// The oldest first.
    standing: Vec<Spare>,
}

/// The spares of one zygote.
#[derive(Debug)]
pub(super) struct WarmSet {
    kinds: [Kind; 2],
    respite: Option<Instant>,
    /// Until when the processors count as taken, if much is under way.
    crowded: Option<Instant>,
    closed: bool,
}

impl WarmSet {
    /// `base` tokio workers at least, `cap` of a kind at most. Workers without a runtime stand only where they are used.
    pub(super) fn new(base: usize, cap: usize) -> Self {
        let kind = |prepare, base| Kind { prepare, demand: Demand::new(base, cap), standing: Vec::new() };
        let kinds = [kind(Prepare::Tokio, base), kind(Prepare::Nothing, 0)];
        Self { kinds, respite: None, crowded: None, closed: false }
    }

    fn kind(&mut self, prepare: Prepare) -> &mut Kind {
        &mut self.kinds[usize::from(prepare == Prepare::Nothing)]
    }

    /// How many stand.
    pub(super) fn len(&self) -> usize {
        self.kinds.iter().map(|kind| kind.standing.len()).sum()
    }

    /// Takes one for a task, as one of `busy` that are under way.
    pub(super) fn take(&mut self, prepare: Prepare, busy: usize, now: Instant) -> Option<Spare> {
        let kind = self.kind(prepare);
        kind.demand.task(busy, now);
        let is_up = |spare: &Spare| now.saturating_duration_since(spare.since) >= COMES_UP;
        let at = kind.standing.iter().rposition(is_up).unwrap_or(0);
        (at < kind.standing.len()).then(|| kind.standing.remove(at))
    }

    /// One is gone, or is of no use any more.
    pub(super) fn remove(&mut self, id: WorkerId) -> Option<Spare> {
        self.kinds.iter_mut().find_map(|kind| {
            let at = kind.standing.iter().position(|spare| spare.id == id)?;
            Some(kind.standing.remove(at))
        })
    }

    /// None can be used any more.
    pub(super) fn clear(&mut self) {
        self.kinds.iter_mut().for_each(|kind| kind.standing.clear());
    }

    /// None will stand any more.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.clear();
    }

    /// The system had no process for one: the others can wait, too.
    pub(super) fn failed(&mut self, now: Instant) {
        self.respite = Some(now + RESPITE);
    }

    /// One had to wait for a processor.
    pub(super) fn was_late(&mut self, now: Instant) {
        self.crowded = Some(now + RESPITE);
    }

    /// Takes those out that are too many; the oldest go. Their workers end when they are dropped.
    pub(super) fn surplus(&mut self, now: Instant) -> Vec<Spare> {
        let surplus = self.kinds.iter_mut().flat_map(|kind| {
            let surplus = kind.standing.len().saturating_sub(kind.demand.target(now));
            kind.standing.drain(..surplus)
        });
        surplus.collect()
    }

    /// When there is something to do though nothing happens. It may be over already: a respite counts until
    /// [`refill`](Self::refill) has seen its end, since who looks for another reason orders none.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let falls = self.kinds.iter().filter_map(|kind| kind.demand.falls_at(now));
        falls.chain([self.respite, self.crowded].into_iter().flatten()).min()
    }

    /// Orders those that are missing. After an error the next try is a while off. `much`: more tasks are under way than
    /// processors can be at.
    pub(super) fn refill(&mut self, link: &Arc<Link>, much: bool, now: Instant) -> io::Result<()> {
        for end in [&mut self.respite, &mut self.crowded] {
            *end = end.filter(|&end| end > now);
        }
        if self.closed || self.respite.is_some() || much && self.crowded.is_some() {
            return Ok(());
        }
        for n in 0..self.kinds.len() {
            let kind = &self.kinds[n];
            let missing = kind.demand.target(now).saturating_sub(kind.standing.len());
            for _ in 0..missing {
                if let Err(e) = self.order(n, link, now) {
                    self.failed(now);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Orders the first ones, for which there is time.
    pub(super) fn fill(&mut self, link: &Arc<Link>, timeout: Duration) {
        let start = Instant::now();
        while let Err(e) = self.refill(link, false, Instant::now()) {
            if e.kind() != io::ErrorKind::WouldBlock || start.elapsed() > timeout {
                return;
            }
            // More than the socket holds: the zygote is busy with the others.
            let _ = link.wait_for_room(Duration::from_millis(50));
            self.respite = None;
        }
    }

    fn order(&mut self, kind: usize, link: &Arc<Link>, now: Instant) -> io::Result<()> {
        let kind = &mut self.kinds[kind];
        let (socket, theirs) = job_socket()?;
        let (id, theirs) = (next_id(), Arc::new(theirs));
        // A message for each: of several descriptors in one message some may be lost at the zygote's limit, and nobody
        // could say of whom.
        link.try_send(Order::Fork { worker: id, prepare: kind.prepare, announce: false, spare: true }, &theirs)?;
        // What the zygote says of it is looked at under the lock that the caller holds.
        kind.standing.push(Spare { id, socket, theirs, link: link.clone(), since: now });
        Ok(())
    }
}

/// A pair of job sockets: the parent's end, which does not block, and the worker's.
pub(super) fn job_socket() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socket::pair()?;
    socket::refuse_fds(&ours);
    fd::set_nonblocking(ours.as_raw_fd(), true)?;
    Ok((ours, theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_respite_that_is_over_counts_until_it_is_acted_on() {
        let now = Instant::now();
        let end = now + RESPITE;
        let mut warm = WarmSet::new(0, 1);
        let link = Arc::new(Link::new(socket::pair().unwrap().0, None));
        assert_eq!(warm.next(now), None);
        for wait in [WarmSet::failed, WarmSet::was_late] {
            wait(&mut warm, now);
            warm.refill(&link, true, now).unwrap();
            // Whoever looks, and however late.
            assert_eq!([warm.next(now), warm.next(end), warm.next(end + RESPITE)], [Some(end); 3]);
            warm.refill(&link, true, end).unwrap();
            assert_eq!(warm.next(end), None);
        }
    }
}
