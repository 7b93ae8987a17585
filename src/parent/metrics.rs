//! What a zygote's tasks did so far: counters that cost an addition each, and a snapshot of them.

use std::{
    array,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use super::zygote::Zygote;
use crate::{
    error::Error,
    model::{BUCKETS, Latency, bucket},
};

/// A snapshot of a zygote's tasks: made by [`Zygote::metrics`].
///
/// A worker of a [`Pool`](crate::Pool) is one task here, however many it serves: those are not counted.
///
/// With the feature `metrics` what happens goes to the `metrics` facade too: counters `run_in_process.started` (label `warm`:
/// `yes` or `no`), `run_in_process.finished` (label `outcome`: the names in [`Finished`]) and
/// `run_in_process.zygotes_lost`, and histograms in seconds `run_in_process.queued`, `.dispatched`, `.executing`, `.result`
/// and `.exited`. What stands and waits at the moment is in the snapshot only.
///
/// ```
/// tokio_run_in_process::block_on(async {
///     let zygote = tokio_run_in_process::default_zygote().unwrap();
///     zygote.run_in_process(async || 42, ()).await.unwrap();
///     let metrics = zygote.metrics();
///     assert_eq!((metrics.started, metrics.finished.returned, metrics.queued), (1, 1, 0));
///     println!("from the job to its start: {:?} at the median", metrics.time_executing.quantile(0.5));
/// })
/// .unwrap();
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Metrics {
    /// Processes that hold a task, until they have exited.
    pub alive: usize,
    /// Processes that stand ready for one.
    pub warm: usize,
    /// Tasks that wait for their turn.
    pub queued: usize,
    /// Tasks that were given to a process.
    pub started: u64,
    /// Those of them that went to a warm worker.
    pub started_warm: u64,
    /// Zygotes that died and were replaced, or, the last one, could not be.
    pub zygotes_lost: u64,
    /// Tasks whose outcome is known.
    pub finished: Finished,
    /// From the call to the task's turn.
    pub time_queued: Latency,
    /// From there until the job was sent, with what it takes to have a worker.
    pub time_dispatched: Latency,
    /// From there until the task started, by its worker's word: of one whose process ended without a word it may be
    /// unknown, and is not counted here or below.
    pub time_executing: Latency,
    /// From there to the outcome.
    pub time_result: Latency,
    /// From there until the process was gone and reaped.
    pub time_exited: Latency,
}

/// Outcomes of tasks, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finished {
    /// Gave a value.
    pub returned: u64,
    /// Panicked.
    pub panicked: u64,
    /// Was dropped by its caller, cancelled itself, or was shut down.
    pub cancelled: u64,
    /// Was cut by a limit.
    pub timed_out: u64,
    /// Exited without a result.
    pub exited: u64,
    /// Was killed by a signal.
    pub signaled: u64,
    /// Any other [`Error`].
    pub failed: u64,
}

/// A stage of a task's way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    Queued,
    Dispatched,
    Executing,
    Result,
    Exited,
}

const STAGES: usize = 5;

/// How a task ended, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Returned,
    Panicked,
    Cancelled,
    TimedOut,
    Exited,
    Signaled,
    Failed,
}

const OUTCOMES: usize = 7;

impl Outcome {
    pub(super) fn of<T>(outcome: &Result<T, Error>) -> Self {
        match outcome {
            Ok(_) => Self::Returned,
            Err(Error::Panicked { .. }) => Self::Panicked,
            Err(Error::Cancelled { .. } | Error::ShutDown) => Self::Cancelled,
            Err(Error::TimedOut { .. }) => Self::TimedOut,
            Err(Error::Exited { .. }) => Self::Exited,
            Err(Error::Signaled { .. }) => Self::Signaled,
            Err(_) => Self::Failed,
        }
    }
}

#[derive(Debug)]
struct Buckets {
    counts: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

/// Counted by whoever sees it happen.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) queued: AtomicUsize,
    zygotes_lost: AtomicU64,
    started: [AtomicU64; 2],
    finished: [AtomicU64; OUTCOMES],
    stages: [Buckets; STAGES],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            queued: AtomicUsize::new(0),
            zygotes_lost: AtomicU64::new(0),
            started: array::from_fn(|_| AtomicU64::new(0)),
            finished: array::from_fn(|_| AtomicU64::new(0)),
            stages: array::from_fn(|_| Buckets {
                counts: array::from_fn(|_| AtomicU64::new(0)),
                nanos: AtomicU64::new(0),
            }),
        }
    }
}

impl Counters {
    pub(super) fn took(&self, stage: Stage, time: Duration) {
        let buckets = &self.stages[stage as usize];
        buckets.counts[bucket(time)].fetch_add(1, Relaxed);
        buckets.nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        #[cfg(feature = "metrics")]
        match stage {
            Stage::Queued => metrics::histogram!("run_in_process.queued").record(time),
            Stage::Dispatched => metrics::histogram!("run_in_process.dispatched").record(time),
            Stage::Executing => metrics::histogram!("run_in_process.executing").record(time),
            Stage::Result => metrics::histogram!("run_in_process.result").record(time),
            Stage::Exited => metrics::histogram!("run_in_process.exited").record(time),
        }
    }

    pub(super) fn started(&self, warm: bool) {
        self.started[usize::from(warm)].fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        metrics::counter!("run_in_process.started", "warm" => if warm { "yes" } else { "no" }).increment(1);
    }

    pub(super) fn lost_zygote(&self) {
        self.zygotes_lost.fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        metrics::counter!("run_in_process.zygotes_lost").increment(1);
    }

    pub(super) fn finished(&self, outcome: Outcome) {
        self.finished[outcome as usize].fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        metrics::counter!("run_in_process.finished", "outcome" => match outcome {
            Outcome::Returned => "returned",
            Outcome::Panicked => "panicked",
            Outcome::Cancelled => "cancelled",
            Outcome::TimedOut => "timed_out",
            Outcome::Exited => "exited",
            Outcome::Signaled => "signaled",
            Outcome::Failed => "failed",
        })
        .increment(1);
    }

    pub(super) fn returned(&self) -> u64 {
        self.finished[Outcome::Returned as usize].load(Relaxed)
    }

    fn latency(&self, stage: Stage) -> Latency {
        let buckets = &self.stages[stage as usize];
        Latency {
            buckets: buckets.counts.iter().map(|count| count.load(Relaxed)).collect(),
            total: Duration::from_nanos(buckets.nanos.load(Relaxed)),
        }
    }
}

impl Zygote {
    /// What the tasks of this zygote did so far, and what stands and waits now. Costs some microseconds and disturbs
    /// nobody; the numbers are read one after another, so they may be apart by what happens in between.
    pub fn metrics(&self) -> Metrics {
        let inner = &self.0;
        let counters = &inner.counters;
        let [cold, warm] = counters.started.each_ref().map(|started| started.load(Relaxed));
        let finished = counters.finished.each_ref().map(|finished| finished.load(Relaxed));
        let count = |outcome: Outcome| finished[outcome as usize];
        Metrics {
            alive: inner.busy(),
            warm: inner.warm().len(),
            queued: counters.queued.load(Relaxed),
            started: cold + warm,
            started_warm: warm,
            zygotes_lost: counters.zygotes_lost.load(Relaxed),
            finished: Finished {
                returned: count(Outcome::Returned),
                panicked: count(Outcome::Panicked),
                cancelled: count(Outcome::Cancelled),
                timed_out: count(Outcome::TimedOut),
                exited: count(Outcome::Exited),
                signaled: count(Outcome::Signaled),
                failed: count(Outcome::Failed),
            },
            time_queued: counters.latency(Stage::Queued),
            time_dispatched: counters.latency(Stage::Dispatched),
            time_executing: counters.latency(Stage::Executing),
            time_result: counters.latency(Stage::Result),
            time_exited: counters.latency(Stage::Exited),
        }
    }
}
