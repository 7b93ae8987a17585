//! What a zygote that has preloaded something pays at each fork, and what a task pays for shared memory.

use std::time::Duration;

use tokio_run_in_process::{Preload, Shared, Zygote};

use crate::{
    Plan, Setting,
    report::Report,
    stats::{median, p50, show},
    ways::{PAUSE, Way, failed},
};

const MB: usize = 1 << 20;
const SIZES: [usize; 3] = [MB, 64 * MB, 1024 * MB];

fn plain(size: usize) -> Vec<u8> {
    vec![1; size]
}

fn shared(size: usize) -> Shared {
    let mut memory = Shared::builder(size).expect("memory");
    memory.fill(1);
    memory.finish().expect("memory")
}

struct Row {
    name: String,
    key: String,
    way: Way,
    times: Vec<f64>,
    ratios: Vec<f64>,
}

fn preload(setting: &Setting, zygote: &Zygote, size: usize, in_file: bool) -> Option<Zygote> {
    let preload: Preload = if in_file { zygote.preload(shared, size) } else { zygote.preload(plain, size) };
    match setting.ways.on_worker(async move { preload.await }) {
        Ok(zygote) => Some(zygote),
        Err(error) => {
            failed(&error);
            None
        }
    }
}

pub(crate) fn run(plan: &Plan, setting: &Setting, report: &mut Report) {
    let Way::Run(empty) = &setting.ways.cold else { return };
    let mut rows = Vec::new();
    for size in &SIZES[..plan.sizes.min(SIZES.len())] {
        for in_file in [false, true] {
            let Some(zygote) = preload(setting, empty, *size, in_file) else { continue };
            let (kind, key) = if in_file { ("a Shared", "shared") } else { ("a Vec", "plain") };
            let name = format!("cold, apart, {} MB in {kind} preloaded", size / MB);
            let key = format!("preload {key} {}", size / MB);
            rows.push(Row { name, key, way: Way::Run(zygote), times: Vec::new(), ratios: Vec::new() });
        }
    }
    for round in 0..plan.payload_rounds {
        eprintln!("preloaded zygotes, round {} of {} ...", round + 1, plan.payload_rounds);
        for row in &mut rows {
            // In turn with one that has nothing.
            let (mut ours, mut beside) = (Vec::new(), Vec::new());
            for _ in 0..plan.batch {
                beside.extend(setting.ways.latencies(&setting.ways.cold, 1, PAUSE));
                ours.extend(setting.ways.latencies(&row.way, 1, PAUSE));
            }
            row.times.push(p50(&ours));
            row.ratios.push(p50(&ours) / p50(&beside));
        }
    }
    report.head(format!("{:<46} {:>12} {:>10}", "zygotes that have preloaded", ": empty one", "p50 us"));
    for row in &rows {
        let [ratio, time] = [&row.ratios, &row.times].map(|values| median(values));
        let [a, b] = [ratio, time].map(|value| show(Some(value)));
        report.line(format!("{:<46} {a:>12} {b:>10}", row.name));
        report.found(row.key.clone(), ratio);
    }
    pass(plan, setting, report);
}

/// Shared memory given to a warm task, beside a warm task that is given nothing.
fn pass(plan: &Plan, setting: &Setting, report: &mut Report) {
    let Way::Run(zygote) = &setting.ways.warm else { return };
    let Ok(memory) = Shared::builder(256 * MB).and_then(|mut memory| {
        memory.fill(1);
        memory.finish()
    }) else {
        return report.line("256 MB in a Shared: skipped, no memory");
    };
    let mut ratios = Vec::new();
    for _ in 0..plan.payload_rounds {
        let (zygote, memory, count) = (zygote.clone(), memory.clone(), plan.batch);
        let (with, without) = setting.ways.on_worker(async move {
            let (mut with, mut without): (Vec<Duration>, Vec<Duration>) = Default::default();
            for _ in 0..count {
                tokio::time::sleep(PAUSE).await;
                let start = std::time::Instant::now();
                if zygote.run_in_process(async |n: usize| n, 7).await.is_ok() {
                    without.push(start.elapsed());
                }
                tokio::time::sleep(PAUSE).await;
                let start = std::time::Instant::now();
                if zygote.run_in_process(async |memory: Shared| memory.len(), memory.clone()).await.is_ok() {
                    with.push(start.elapsed());
                }
            }
            (with, without)
        });
        ratios.push(p50(&with) / p50(&without));
    }
    let ratio = median(&ratios);
    let name = "warm, apart, given 256 MB in a Shared : given nothing";
    report.line(format!("{name:<55} {:>3}", show(Some(ratio))));
    report.found("shared 256".to_owned(), ratio);
}
