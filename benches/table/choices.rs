//! The effect of each choice that was made for speed: the same thing with it and without it, in turns.
//!
//! Each entry of [`CHOICES`] is a choice that can be switched from outside. A choice that is kept in the library belongs
//! here as soon as there is a switch for it, so that a reader sees what it is there for.

use std::time::Duration;

use tokio_run_in_process::{Pool, WARM_WORKERS, Zygote};

use crate::{
    Plan, Setting,
    report::Report,
    stats::{Samples, median, range, show},
    ways::{NONE, PAUSE, Way, Ways},
};

/// One of the two sides.
struct Side {
    name: String,
    way: Way,
}

/// What is looked at.
#[derive(Clone, Copy)]
enum Look {
    /// The median latency, requests apart.
    Apart,
    /// The median latency, back to back.
    Dense,
    /// The 99th percentile, back to back.
    DenseP99,
    /// Tasks per second with so many in flight.
    Rate(usize),
}

impl Look {
    fn name(self) -> String {
        match self {
            Self::Apart => "p50 apart, us".to_owned(),
            Self::Dense => "p50 back to back, us".to_owned(),
            Self::DenseP99 => "p99 back to back, us".to_owned(),
            Self::Rate(in_flight) => format!("tasks/s, {in_flight} in flight"),
        }
    }

    fn at(self, way: &Way, ways: &Ways, plan: &Plan) -> f64 {
        let samples = |n, pause: Duration| Samples::new(&ways.latencies(way, n, pause));
        match self {
            Self::Apart => samples(2 * plan.batch, PAUSE).p50(),
            Self::Dense => samples(4 * plan.batch, NONE).p50(),
            Self::DenseP99 => samples(8 * plan.batch, NONE).p99().unwrap_or(f64::NAN),
            Self::Rate(in_flight) => ways.rate(way, in_flight, plan.rate_time / 2),
        }
    }
}

/// A against B, in turns: a line with the median of the ratios.
fn compare(a: &Side, b: &Side, look: Look, plan: &Plan, ways: &Ways, report: &mut Report) {
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for side in [a, b] {
        let _ = ways.latencies(&side.way, plan.batch.min(20), NONE);
    }
    for _ in 0..plan.choice_rounds {
        let (a, b) = (look.at(&a.way, ways, plan), look.at(&b.way, ways, plan));
        ours.push(a);
        theirs.push(b);
        ratios.push(a / b);
    }
    let (low, high) = range(&ratios);
    let [ratio, a_value, b_value] = [&ratios, &ours, &theirs].map(|values| show(Some(median(values))));
    let name = format!("{} : {}", a.name, b.name);
    report.line(format!(
        "{name:<46} {ratio:>7} {a_value:>10} {b_value:>10}   {} .. {}   {}",
        show(Some(low)),
        show(Some(high)),
        look.name()
    ));
}

fn warm(count: usize) -> Result<Side, Box<dyn std::error::Error>> {
    let zygote = Zygote::builder().warm(count).max_processes(64).start()?;
    Ok(Side { name: format!("{count} warm"), way: Way::Run(zygote) })
}

fn pool(workers: usize) -> Result<Side, Box<dyn std::error::Error>> {
    let pool: Pool = Zygote::builder().start()?.pool().workers(workers).build()?;
    Ok(Side { name: format!("pool of {workers}"), way: Way::Pool(pool) })
}

pub(crate) fn run(plan: &Plan, setting: &Setting, report: &mut Report) -> Result<(), Box<dyn std::error::Error>> {
    eprintln!("choices ...");
    let ways = setting.ways;
    report.head(format!(
        "{:<46} {:>7} {:>10} {:>10}   {:<12}   what",
        "choices: A : B, in turns", "A : B", "A", "B", "rounds"
    ));
    let mut versus = |a: &Side, b: &Side, looks: &[Look]| {
        looks.iter().for_each(|&look| compare(a, b, look, plan, ways, report));
    };
    // Workers that stand ready buy latency. Under saturation there is nothing that could be done ahead.
    let (none, default) = (warm(0)?, warm(WARM_WORKERS)?);
    versus(&default, &none, &[Look::Apart, Look::Dense, Look::DenseP99, Look::Rate(2), Look::Rate(8), Look::Rate(64)]);
    // How many: enough for a burst, few enough to stay in the caches.
    for count in [1, 16, 64] {
        versus(&warm(count)?, &default, &[Look::Apart, Look::Dense, Look::Rate(8)]);
    }
    // `run` holds the conversation on the caller's runtime; `open` gives it to the driver.
    let [run, open] = [("run", ways.warm.clone()), ("open and wait", ways.open.clone())]
        .map(|(name, way)| Side { name: name.to_owned(), way });
    versus(&run, &open, &[Look::Apart]);
    // Workers of a pool: one for each task in flight, or one for each CPU.
    let (few, many) = (pool(2)?, pool(8)?);
    versus(&few, &many, &[Look::Rate(8), Look::Rate(64)]);
    // Isolation has its price, and reuse is asked for by name.
    versus(&few, &default, &[Look::Apart, Look::Dense, Look::Rate(8)]);
    Ok(())
}
