//! What a large parent, and many living workers, do to all of this.

use std::{fs, thread, time::Duration};

use tokio_run_in_process::Zygote;

use crate::{
    Plan, Setting,
    floor::Floor,
    report::Report,
    stats::{Samples, median, p50, show},
    ways::{PAUSE, Way, reexec_by_std},
};

const IN_FLIGHT: usize = 8;

/// What is compared without and with a gigabyte: key, name, and what a measurement of it gives, in units of the floor.
type Comparison = (&'static str, &'static str, fn(&mut Setting, &mut Floor, &Plan) -> Result<f64, String>);

const COMPARISONS: [Comparison; 7] = [
    ("warm", "run, warm, apart: p50", |s, f, plan| Ok(latency(&s.ways.warm, s, f, plan))),
    ("cold", "run, cold, apart: p50", |s, f, plan| Ok(latency(&s.ways.cold, s, f, plan))),
    ("pool", "Pool, apart: p50", |s, f, plan| Ok(latency(&s.ways.pool, s, f, plan))),
    ("warm rate", "run, warm, 8 in flight: tasks/s", |s, f, plan| Ok(rate(&s.ways.wide_warm, s, f, plan))),
    ("cold rate", "run, cold, 8 in flight: tasks/s", |s, f, plan| Ok(rate(&s.ways.wide_cold, s, f, plan))),
    ("std", "re-exec, std::process: p50", |_, f, plan| {
        let (times, floor) = f.in_turn(plan.batch, |_| Ok(reexec_by_std(1, PAUSE)));
        Ok(p50(&times?) / floor.fork)
    }),
    ("mem-isolate", "mem-isolate 0.1.6, apart: p50", |s, f, plan| {
        let peer = s.peers[0].as_mut().map_err(|why| why.clone())?;
        // With a gigabyte it takes a thousand times as long.
        let (times, floor) = f.in_turn(plan.batch.min(20), |_| peer.latencies(1, PAUSE));
        Ok(p50(&times?) / floor.fork)
    }),
];

/// Of them, what the library promises something about.
pub(crate) const PROMISED: [&str; 5] = ["warm", "cold", "pool", "warm rate", "cold rate"];

fn latency(way: &Way, setting: &Setting, floor: &mut Floor, plan: &Plan) -> f64 {
    let (times, floor) = floor.in_turn(plan.batch, |_| Ok(setting.ways.latencies(way, 1, PAUSE)));
    times.map_or(f64::NAN, |times| p50(&times) / floor.fork)
}

fn rate(way: &Way, setting: &Setting, floor: &mut Floor, plan: &Plan) -> f64 {
    let (rate, floor) = floor.beside_rate(|_| setting.ways.rate(way, IN_FLIGHT, plan.rate_time / 2));
    rate / floor.many
}

/// The same things without and with a large parent, in turns.
pub(crate) fn large_parent(plan: &Plan, setting: &mut Setting, floor: &mut Floor, report: &mut Report) {
    let mut found: Vec<[Vec<f64>; 2]> = vec![Default::default(); COMPARISONS.len()];
    let mut skipped = vec![None; COMPARISONS.len()];
    for round in 0..plan.large_rounds {
        eprintln!("large parent, round {} of {} ...", round + 1, plan.large_rounds);
        for large in [false, true] {
            let memory = large.then(|| std::hint::black_box(vec![1_u8; plan.large]));
            if let Ok(peer) = &mut setting.peers[0] {
                // It forks its own process, so that is the one which must be large.
                let _ = peer.memory(if large { plan.large } else { 0 });
            }
            for (n, (_, _, measure)) in COMPARISONS.iter().enumerate() {
                match measure(setting, floor, plan) {
                    Ok(value) => found[n][usize::from(large)].push(value),
                    Err(why) => skipped[n] = Some(why),
                }
            }
            drop(memory);
        }
    }
    if let Ok(peer) = &mut setting.peers[0] {
        let _ = peer.memory(0);
    }
    report.head(format!(
        "{:<46} {:>12} {:>10} {:>10}",
        format!("{} MB touched in the parent", plan.large >> 20),
        "with:without",
        "without",
        "with"
    ));
    for (n, (key, name, _)) in COMPARISONS.iter().enumerate() {
        if let Some(why) = &skipped[n] {
            report.line(format!("{name:<46} skipped: {why}"));
            continue;
        }
        let [without, with] = [0, 1].map(|large| median(&found[n][large]));
        let pairs: Vec<f64> = found[n][0].iter().zip(&found[n][1]).map(|(without, with)| with / without).collect();
        let ratio = median(&pairs);
        let [a, b, c] = [ratio, without, with].map(|value| show(Some(value)));
        report.line(format!("{name:<46} {a:>12} {b:>10} {c:>10}"));
        report.found(format!("large {key}"), ratio);
        report.found(format!("large {key} without"), without);
        report.found(format!("large {key} with"), with);
    }
    report.line("(latencies in units of raw fork + _exit + wait, rates in units of raw 1x16)");
}

/// How many stand at a time; the last only with `--many`.
pub(crate) const STANDING: [usize; 4] = [10, 100, 1000, 5000];

#[derive(Default)]
struct Standing {
    samples: Samples,
    to_fork: Vec<f64>,
    to_many: Vec<f64>,
    rates: Vec<f64>,
    own: Vec<f64>,
    share: Vec<f64>,
    skipped: Option<String>,
}

/// Many warm workers that stand while one after another serves.
pub(crate) fn many_warm(plan: &Plan, setting: &Setting, floor: &mut Floor, report: &mut Report) {
    let counts = &STANDING[..plan.standing + usize::from(setting.many)];
    let mut rows: Vec<(usize, Standing)> = counts.iter().map(|&count| (count, Standing::default())).collect();
    for round in 0..plan.large_rounds.div_ceil(2) {
        eprintln!("living workers, round {} of {} ...", round + 1, plan.large_rounds.div_ceil(2));
        for (count, row) in &mut rows {
            if let Err(why) = stand(*count, row, plan, setting, floor) {
                row.skipped = Some(why);
            }
        }
    }
    report.head(format!(
        "{:<46} {:>7} {:>10} {:>8} {:>8} {:>9} {:>8} {:>8}",
        "warm workers that stand", ": fork", ": raw 1x16", "p50 us", "p99 us", "tasks/s", "USS kB", "PSS kB"
    ));
    for (count, row) in rows {
        let name = format!("{count}: run apart, 8 in flight, memory of each");
        if let Some(why) = row.skipped {
            report.line(format!("{name:<46} skipped: {why}"));
            continue;
        }
        let [fork, many, own, share] = [&row.to_fork, &row.to_many, &row.own, &row.share].map(|v| median(v));
        let [a, b, e, f] = [fork, many, own, share].map(|value| show(Some(value)));
        let [c, d] = [Some(row.samples.p50()), row.samples.p99()].map(show);
        let rate = median(&row.rates);
        report.line(format!("{name:<46} {a:>7} {b:>10} {c:>8} {d:>8} {rate:>9.0} {e:>8} {f:>8}"));
        report.found(format!("standing {count} uss"), own);
        report.found(format!("standing {count} p50"), row.samples.p50());
        report.found(format!("standing {count}:many"), many);
    }
    report.line("(of each worker: USS is memory that it has for itself, PSS counts in its share of what is shared)");
}

fn stand(count: usize, row: &mut Standing, plan: &Plan, setting: &Setting, floor: &mut Floor) -> Result<(), String> {
    let zygote = Zygote::builder().warm(count).start().map_err(|error| error.to_string())?;
    let pids = wait_for_workers(&zygote, count)?;
    // Not all of them: to look is slow.
    let looked_at = pids.iter().step_by((count / 50).max(1)).filter_map(|&pid| memory(pid));
    let (own, share): (Vec<f64>, Vec<f64>) = looked_at.unzip();
    row.own.push(median(&own));
    row.share.push(median(&share));
    let way = Way::Run(zygote);
    let _ = setting.ways.latencies(&way, plan.batch.min(20), PAUSE);
    let (times, beside) = floor.in_turn(plan.batch, |_| Ok(setting.ways.latencies(&way, 1, PAUSE)));
    let times = times?;
    row.to_fork.push(p50(&times) / beside.fork);
    row.samples.add(&times);
    let (rate, beside) = floor.beside_rate(|_| setting.ways.rate(&way, IN_FLIGHT, plan.rate_time / 2));
    row.rates.push(rate);
    row.to_many.push(rate / beside.many);
    let Way::Run(zygote) = way else { return Ok(()) };
    let pid = zygote.pid();
    drop(zygote);
    // So that the next does not pay for the end of this one.
    for _ in 0..500 {
        if !fs::exists(format!("/proc/{pid}")).unwrap_or(false) {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The pids of the workers, once all of them stand.
fn wait_for_workers(zygote: &Zygote, count: usize) -> Result<Vec<u32>, String> {
    let children = format!("/proc/{0}/task/{0}/children", zygote.pid());
    for _ in 0..1000 {
        thread::sleep(Duration::from_millis(10));
        let text = fs::read_to_string(&children).map_err(|error| format!("{children}: {error}"))?;
        let pids: Vec<u32> = text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        // The last ones are forked, and still build their runtimes.
        if pids.len() >= count && pids.iter().rev().take(8).all(|&pid| waits(pid)) {
            return Ok(pids);
        }
    }
    Err(format!("{} of {count} stand after 10 s", zygote.metrics().warm))
}

/// Whether a process sleeps.
fn waits(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}

/// What a process has for itself, and its share of everything, in kB.
fn memory(pid: u32) -> Option<(f64, f64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let sum = |name: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).sum()
    };
    Some((sum("Private_"), sum("Pss:")))
}
