//! The `metrics` facade sees what the snapshot counts.

#![expect(clippy::map_identity, reason = "it says what a task that never returns would return")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit, set_global_recorder,
};
use tokio_run_in_process::Zygote;

use crate::harness::{eventually, multi_thread};

crate::cases![a_recorder_sees_what_the_snapshot_counts];

/// Keeps every counter, and how often each histogram was told something.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>);

impl Kept {
    fn at(&self, key: &Key) -> Arc<AtomicU64> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{} {}", key.name(), labels.join(","));
        self.0.lock().unwrap().entry(name).or_default().clone()
    }

    fn all(&self) -> BTreeMap<String, u64> {
        let all = self.0.lock().unwrap();
        all.iter().map(|(name, count)| (name.trim().to_owned(), count.load(Ordering::Relaxed))).collect()
    }
}

struct Measured(Arc<AtomicU64>);

impl HistogramFn for Measured {
    fn record(&self, seconds: f64) {
        assert!((0.0..60.0).contains(&seconds));
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.at(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.at(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Measured(self.at(key))))
    }
}

fn a_recorder_sees_what_the_snapshot_counts() {
    let kept = Kept::default();
    set_global_recorder(kept.clone()).map_err(|_| "there is a recorder").unwrap();
    let zygote = Zygote::builder().warm(2).start().unwrap();
    multi_thread().block_on(async {
        for n in 0..20_u64 {
            let outcome = zygote.run_in_process(async |n: u64| assert!(n % 5 != 0), n).await;
            assert_eq!(outcome.is_ok(), n % 5 != 0);
        }
        let exits = async || {
            std::process::exit(1);
        };
        zygote.run_in_process(exits, ()).await.map(|()| ()).unwrap_err();
        eventually("all are gone", || zygote.metrics().alive == 0).await;
        let metrics = zygote.metrics();
        let mut all = kept.all();
        let mut take = |name: &str| all.remove(&format!("run_in_process.{name}")).unwrap_or(0);
        assert_eq!(take("started warm=yes"), metrics.started_warm);
        assert_eq!(take("started warm=no"), metrics.started - metrics.started_warm);
        assert_eq!((take("finished outcome=returned"), metrics.finished.returned), (16, 16));
        assert_eq!((take("finished outcome=panicked"), metrics.finished.panicked), (4, 4));
        assert_eq!((take("finished outcome=exited"), metrics.finished.exited), (1, 1));
        assert_eq!((take("queued"), metrics.time_queued.count()), (21, 21));
        assert_eq!((take("dispatched"), metrics.time_dispatched.count()), (21, 21));
        // One that is through before its caller listens is not seen executing; every_stage_is_measured has those that last.
        let seen = metrics.time_executing.count();
        assert_eq!((take("executing"), take("result"), metrics.time_result.count()), (seen, seen, seen));
        assert!(seen > 0 && seen <= 21, "{seen}");
        assert_eq!((take("exited"), metrics.time_exited.count()), (21, 21));
        assert!(all.is_empty(), "{all:?}");
    });
}
