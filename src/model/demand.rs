//! How many warm workers should stand ready: a pure rule from what was asked for lately.
//!
//! One spare serves one task, and another takes its place some hundred microseconds after that task is done. So what is
//! needed is what a burst takes before the first replacements stand: as many as tasks were under way at once, and never
//! more than were asked for in a short while (a long task needs no spare). The number grows at once and falls back after
//! a calm second.

use std::time::{Duration, Instant};

/// What is asked for within this time counts as one burst.
const WINDOW: Duration = Duration::from_millis(50);
/// How long a number that was needed is kept.
const CALM: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(crate) struct Demand {
    base: usize,
    cap: usize,
    window: Option<Instant>,
    taken: usize,
    busy: usize,
    /// What the bursts of the last second needed, and when that was seen last.
    grown: usize,
    seen: Option<Instant>,
}

impl Demand {
    /// Between `base` and `cap`.
    pub(crate) fn new(base: usize, cap: usize) -> Self {
        Self { base, cap: cap.max(base), window: None, taken: 0, busy: 0, grown: 0, seen: None }
    }

    /// A task starts, as one of `busy` that are under way.
    pub(crate) fn task(&mut self, busy: usize, now: Instant) {
        if self.window.is_none_or(|start| now.saturating_duration_since(start) > WINDOW) {
            (self.window, self.taken, self.busy) = (Some(now), 0, 0);
        }
        self.taken += 1;
        self.busy = self.busy.max(busy);
        let needed = self.taken.min(self.busy).min(self.cap);
        if needed >= self.grown || !self.is_fresh(now) {
            (self.grown, self.seen) = (needed, Some(now));
        }
    }

    /// How many should stand.
    pub(crate) fn target(&self, now: Instant) -> usize {
        if self.is_fresh(now) { self.base.max(self.grown) } else { self.base }
    }

    /// When the number falls, if nothing is asked for until then.
    pub(crate) fn falls_at(&self, now: Instant) -> Option<Instant> {
        let at = self.seen? + CALM;
        (at > now && self.grown > self.base).then_some(at)
    }

    fn is_fresh(&self, now: Instant) -> bool {
        self.seen.is_some_and(|seen| now.saturating_duration_since(seen) < CALM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn it_stays_at_its_base_for_one_task_after_another() {
        let mut demand = Demand::new(2, 16);
        let mut now = Instant::now();
        for _ in 0..1000 {
            demand.task(1, now);
            now += MS / 10;
            assert_eq!(demand.target(now), 2);
        }
        assert_eq!(demand.falls_at(now), None);
    }

    #[test]
    fn it_grows_with_what_is_under_way_and_falls_after_a_calm_second() {
        let mut demand = Demand::new(2, 16);
        let start = Instant::now();
        for busy in 1..=9 {
            demand.task(busy, start);
        }
        assert_eq!(demand.target(start), 9);
        assert_eq!(demand.falls_at(start), Some(start + CALM));
        assert_eq!(demand.target(start + CALM), 2);
        assert_eq!(demand.falls_at(start + CALM), None);
        // A smaller burst later does not keep the larger number for ever.
        demand.task(1, start + 2 * CALM);
        assert_eq!(demand.target(start + 2 * CALM), 2);
    }

    #[test]
    fn long_tasks_need_few_spares() {
        let mut demand = Demand::new(1, 64);
        let mut now = Instant::now();
        for busy in 1..=40 {
            demand.task(busy, now);
            now += 60 * MS;
        }
        assert_eq!(demand.target(now), 1);
    }

    #[test]
    fn it_keeps_within_its_bounds() {
        let now = Instant::now();
        let mut none = Demand::new(0, 0);
        let mut some = Demand::new(0, 4);
        for busy in 1..100 {
            none.task(busy, now);
            some.task(busy, now);
        }
        assert_eq!((none.target(now), some.target(now)), (0, 4));
    }

    #[test]
    fn it_is_bounded_and_calms_down_whatever_is_asked_for() {
        use crate::model::random::Random;
        let mut random = Random(0xde);
        for _ in 0..2000 {
            let (base, cap) = (random.below(8) as usize, random.below(40) as usize);
            let mut demand = Demand::new(base, cap);
            let (mut now, mut most) = (Instant::now(), 0);
            for _ in 0..60 {
                now += random.one_of(&[Duration::ZERO, MS, 40 * MS, 60 * MS, CALM, 3 * CALM]);
                let busy = 1 + random.below(64) as usize;
                let before = demand.target(now);
                demand.task(busy, now);
                most = most.max(busy);
                let target = demand.target(now);
                assert!(target >= base && target <= base.max(cap.min(most)), "{demand:?}");
                assert!(target <= before.max(base).max(demand.taken), "more than was asked for: {before}, {demand:?}");
                // What is told to fall does, then and not before.
                if let Some(at) = demand.falls_at(now) {
                    assert!(target > base && at > now && at <= now + CALM, "{demand:?}");
                    assert_eq!((demand.target(at - Duration::from_nanos(1)), demand.target(at)), (target, base));
                } else {
                    assert_eq!(target, base, "it would stay: {demand:?}");
                }
            }
            assert_eq!((demand.target(now + CALM), demand.falls_at(now + CALM)), (base, None));
        }
    }
}
