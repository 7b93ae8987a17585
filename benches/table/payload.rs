//! Arguments and results of some size, beside the same bytes sent through a bare socket to a process that has nothing else
//! to do.

use std::time::{Duration, Instant};

use tokio_run_in_process::{Bytes, Zygote};

use crate::{
    Plan, Setting,
    floor::Floor,
    report::Report,
    stats::{median, p50, show},
    ways::{Way, Ways, failed},
};

const KB: usize = 1 << 10;
const MB: usize = 1 << 20;
pub(crate) const SIZES: [usize; 7] = [KB, 16 * KB, 64 * KB, 256 * KB, MB, 8 * MB, 64 * MB];
/// As a vector of numbers, each of which goes through `serde`; more of them would take seconds.
const LARGEST_VEC: usize = 8 * MB;

async fn take(bytes: Bytes) -> usize {
    bytes.len()
}

async fn back(bytes: Bytes) -> Bytes {
    bytes
}

async fn take_text(text: String) -> usize {
    text.len()
}

async fn take_vec(bytes: Vec<u8>) -> usize {
    bytes.len()
}

async fn give(count: usize) -> Bytes {
    Bytes::from(vec![1; count])
}

#[derive(Clone, Copy)]
enum Load {
    Take,
    TakeText,
    TakeVec,
    Give,
    Both,
}

const LOADS: [(&str, &str, Load); 5] = [
    ("take", "Bytes to the worker", Load::Take),
    ("both", "Bytes there and back", Load::Both),
    ("text", "String to the worker", Load::TakeText),
    ("vec", "Vec<u8> to the worker", Load::TakeVec),
    ("give", "Bytes from the worker", Load::Give),
];

async fn once(zygote: &Zygote, load: Load, size: usize) -> Duration {
    let (bytes, text) = match load {
        Load::Take | Load::TakeVec | Load::Both => (vec![1; size], String::new()),
        Load::TakeText => (Vec::new(), "x".repeat(size)),
        Load::Give => Default::default(),
    };
    let start = Instant::now();
    let count = match load {
        Load::Take => zygote.run_in_process(take, Bytes::from(bytes)).await,
        Load::Both => zygote.run_in_process(back, Bytes::from(bytes)).await.map(|bytes| bytes.len()),
        Load::TakeText => zygote.run_in_process(take_text, text).await,
        Load::TakeVec => zygote.run_in_process(take_vec, bytes).await,
        Load::Give => zygote.run_in_process(give, size).await.map(|bytes| bytes.len()),
    };
    let time = start.elapsed();
    match count {
        Ok(count) => assert_eq!(count, size),
        Err(error) => failed(&error),
    }
    time
}

fn each(ways: &Ways, zygote: &Zygote, load: Load, size: usize, n: usize) -> Vec<Duration> {
    let zygote = zygote.clone();
    ways.on_worker(async move {
        let mut times = Vec::with_capacity(n);
        for _ in 0..n {
            times.push(once(&zygote, load, size).await);
        }
        times
    })
}

fn bare(floor: &mut Floor, load: Load, size: usize, n: usize) -> f64 {
    let bytes = vec![1; if matches!(load, Load::Give) { 0 } else { size }];
    let mover = &mut floor.mover;
    let times = (0..n).map(|_| match load {
        Load::Give => mover.receive(size),
        Load::Both => mover.send(&bytes) + mover.receive(size),
        Load::Take | Load::TakeText | Load::TakeVec => mover.send(&bytes),
    });
    p50(&times.collect::<Vec<_>>())
}

pub(crate) fn name_of(size: usize) -> String {
    if size < MB { format!("{} kB", size / KB) } else { format!("{} MB", size / MB) }
}

pub(crate) fn run(plan: &Plan, setting: &Setting, floor: &mut Floor, report: &mut Report) {
    let Way::Run(zygote) = &setting.ways.warm else { return };
    let mut rows = Vec::new();
    for (key, name, load) in LOADS {
        let fits = |&&size: &&usize| !matches!(load, Load::TakeVec) || size <= LARGEST_VEC;
        let sizes = SIZES[..plan.sizes].iter().filter(fits);
        rows.extend(sizes.map(|&size| (key, name, load, size, Vec::new(), Vec::new(), Vec::new())));
    }
    for round in 0..plan.payload_rounds {
        eprintln!("payloads, round {} of {} ...", round + 1, plan.payload_rounds);
        for (_, _, load, size, ours, socket, ratios) in &mut rows {
            let n = (plan.batch * KB * 16 / *size).clamp(2, plan.batch.min(60));
            let before = bare(floor, *load, *size, n);
            let time = p50(&each(setting.ways, zygote, *load, *size, n));
            let beside = f64::midpoint(before, bare(floor, *load, *size, n));
            ours.push(time);
            socket.push(beside);
            ratios.push(time / beside);
        }
    }
    report.head(format!(
        "{:<46} {:>13} {:>10} {:>14}",
        "payload, warm, back to back", ": bare socket", "p50 us", "bare socket us"
    ));
    for (key, name, _, size, ours, socket, ratios) in &rows {
        let [ratio, time, beside] = [ratios, ours, socket].map(|values| median(values));
        let [a, b, c] = [ratio, time, beside].map(|value| show(Some(value)));
        report.line(format!("{:<46} {a:>13} {b:>10} {c:>14}", format!("{name}, {}", name_of(*size))));
        report.found(format!("{key} {size} p50"), time);
        report.found(format!("{key} {size} bare"), beside);
    }
}
