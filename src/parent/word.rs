//! Whether the worker of a task that is alone says that it begins: learned from how long tasks take with and without.
//!
//! The word wakes the caller while the task runs. Where a processor that sleeps takes long to wake up, the result then finds
//! it awake, and a short task takes 10 to 20 % less; where it does not, both processors do something for nothing, and it
//! takes 10 to 25 % more. No other sign tells which machine this is, and a virtual one may change: so of 16 tasks one
//! is tried the other way, and what took less time lately is what the others do.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The first so many tasks go either way in turn; then of so many one is tried the other way.
const TRIES: u32 = 16;

/// A median moves by this part of itself, so that it has followed the machine after some ten tasks of its kind.
const STEP: u64 = 16;

/// The first ones of a program take long, and do not count but for the shortest.
const FIRST: u32 = TRIES / 2;

/// What is known of both ways. Two threads that use it at once may lose what one of them learned.
#[derive(Debug, Default)]
pub(super) struct Word {
    tasks: AtomicU32,
    spoken: Median,
    unspoken: Median,
}

impl Word {
    /// Whether the next task goes without.
    pub(super) fn is_spared(&self) -> bool {
        let task = self.tasks.fetch_add(1, Relaxed);
        // That this begins anew after four billion tasks costs nothing.
        if task < TRIES {
            return task % 2 == 1;
        }
        let (spoken, unspoken) = self.medians();
        (unspoken < spoken) != (task % TRIES == 0)
    }

    /// A task took this time, without what it was itself at work.
    pub(super) fn took(&self, spared: bool, time: Duration) {
        let median = if spared { &self.unspoken } else { &self.spoken };
        median.moves(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    /// With the word, and without it; 0 where there was no task yet.
    pub(super) fn medians(&self) -> (u64, u64) {
        (self.spoken.value.load(Relaxed), self.unspoken.value.load(Relaxed))
    }
}

/// About the median of the last times, in nanoseconds.
#[derive(Debug, Default)]
struct Median {
    value: AtomicU64,
    times: AtomicU32,
}

impl Median {
    fn moves(&self, time: u64) {
        let (now, times) = (self.value.load(Relaxed), self.times.load(Relaxed));
        let step = (now / STEP).max(1);
        // Not to the mean: a task that lost its processor for milliseconds is one that took longer, and no more.
        let next = match times {
            0 => time,
            1..FIRST => now.min(time),
            _ => time.clamp(now.saturating_sub(step), now.saturating_add(step)),
        };
        self.value.store(next, Relaxed);
        self.times.store(times.saturating_add(1), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    /// How many of `tasks` were spared the word, on a machine where it takes so long with it and without.
    fn run(word: &Word, tasks: u32, spoken: u64, unspoken: u64) -> u32 {
        (0..tasks)
            .map(|n| {
                let spared = word.is_spared();
                let time = if spared { unspoken } else { spoken };
                // One in seven loses its processor.
                let time = if n % 7 == 0 { time * 30 } else { time };
                word.took(spared, Duration::from_nanos(time));
                u32::from(spared)
            })
            .sum()
    }

    #[test]
    fn what_took_less_is_done() {
        let word = Word::default();
        assert_eq!(run(&word, TRIES, 60_000, 50_000), 8, "either way in turn");
        run(&word, 200, 60_000, 50_000);
        assert_eq!(run(&word, 160, 60_000, 50_000), 150, "all but the tries");
        // Another machine, all at once.
        run(&word, 600, 50_000, 60_000);
        assert_eq!(run(&word, 160, 50_000, 60_000), 10, "the tries only");
    }

    #[test]
    fn whatever_the_times_are() {
        for seed in 0..2000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let word = Word::default();
            let mut bounds = [None; 2];
            for _ in 0..rng.random_range(0..200) {
                let (spared, time) = (rng.random::<bool>(), rng.random::<u64>() >> rng.random_range(0..64));
                word.took(spared, Duration::from_nanos(time));
                let time = time.max(1);
                let (least, most) = bounds[usize::from(spared)].unwrap_or((time, time));
                bounds[usize::from(spared)] = Some((time.min(least), time.max(most)));
            }
            (0..TRIES).for_each(|_| _ = word.is_spared());
            let tried = (0..TRIES).filter(|_| word.is_spared()).count();
            assert!(tried == 1 || tried == TRIES as usize - 1, "seed {seed}: {tried}");
            let (spoken, unspoken) = word.medians();
            for (median, bounds) in [spoken, unspoken].into_iter().zip(bounds) {
                let fits = bounds.is_none_or(|(least, most)| (least..=most).contains(&median));
                assert!(fits, "seed {seed}: {median} of {bounds:?}");
            }
        }
    }
}
