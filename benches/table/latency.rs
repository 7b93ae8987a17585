//! How long one task takes, one after another.

use std::time::Duration;

use crate::{
    Plan, Setting,
    floor::{Floor, Latency},
    peers::PEERS,
    report::Report,
    stats::{Samples, median, p50, range, show},
    ways::{NONE, PAUSE, Way, reexec_by_std},
};

/// What a row measures.
enum Subject<'a> {
    Fork { same_cpu: bool },
    Ping,
    Ours(&'a Way),
    OursCurrentThread(&'a Way),
    Std,
    Peer(usize),
}

struct Row<'a> {
    /// Its name among the numbers.
    key: &'static str,
    name: String,
    subject: Subject<'a>,
    pause: Duration,
    samples: Samples,
    /// One for each round: this row's median to that of the floor.
    to_fork: Vec<f64>,
    to_ping: Vec<f64>,
    skipped: Option<String>,
}

/// Rows of one run, in the order of the chart: key and name.
pub(crate) const CHART: [(&str, &str); 14] = [
    ("ping", "socket ping-pong (tokio)"),
    ("pool", "Pool: reused worker"),
    ("warm", "run_in_process, warm"),
    ("open", "open_in_process + wait, warm"),
    ("fork", "raw fork + wait, back to back"),
    ("cold", "run_in_process, cold"),
    ("cold-full", "the same with tokio `full`"),
    ("mem-isolate", "mem-isolate 0.1.6"),
    ("zygote", "zygote 0.1.2 spawn + run"),
    ("std", "re-exec, std::process"),
    ("tokio", "re-exec, tokio::process"),
    ("procspawn", "procspawn 1.0.2"),
    ("procspawn-pool", "procspawn 1.0.2 Pool: reused"),
    ("warm-dense", "run_in_process, back to back"),
];

fn rows<'a>(setting: &Setting<'a>) -> Vec<Row<'a>> {
    let ways = setting.ways;
    let mut rows = Vec::new();
    let mut add = |key, name: &str, subject, pause: Duration| {
        let when = if pause.is_zero() { "back to back" } else { "apart" };
        let name = format!("{name}, {when}");
        let (samples, to_fork, to_ping) = Default::default();
        rows.push(Row { key, name, subject, pause, samples, to_fork, to_ping, skipped: None });
    };
    add("fork", "raw fork + _exit + waitpid", Subject::Fork { same_cpu: false }, NONE);
    add("fork-apart", "raw fork + _exit + waitpid", Subject::Fork { same_cpu: false }, PAUSE);
    add("fork-same", "raw fork, all on one CPU", Subject::Fork { same_cpu: true }, NONE);
    add("ping-dense", "socket ping-pong, 64 bytes", Subject::Ping, NONE);
    add("ping", "socket ping-pong, 64 bytes", Subject::Ping, PAUSE);
    add("warm", "run, warm (default)", Subject::Ours(&ways.warm), PAUSE);
    add("warm-dense", "run, warm (default)", Subject::Ours(&ways.warm), NONE);
    add("warm-current", "run, warm, current-thread", Subject::OursCurrentThread(&ways.warm), PAUSE);
    add("open", "open and wait, warm", Subject::Ours(&ways.open), PAUSE);
    add("cold", "run, cold", Subject::Ours(&ways.cold), PAUSE);
    add("cold-dense", "run, cold", Subject::Ours(&ways.cold), NONE);
    add("cold-current", "run, cold, current-thread", Subject::OursCurrentThread(&ways.cold), PAUSE);
    add("pool", "Pool (reuse)", Subject::Ours(&ways.pool), PAUSE);
    add("pool-dense", "Pool (reuse)", Subject::Ours(&ways.pool), NONE);
    add("std", "re-exec, std::process", Subject::Std, PAUSE);
    for (n, (key, name, _)) in PEERS.into_iter().enumerate() {
        add(key, name, Subject::Peer(n), PAUSE);
    }
    add("procspawn-pool-dense", PEERS[3].1, Subject::Peer(3), NONE);
    rows
}

fn measure(row: &Row, n: usize, setting: &mut Setting, floor: &mut Floor) -> Result<Vec<Duration>, String> {
    let (ways, pause) = (setting.ways, row.pause);
    Ok(match row.subject {
        Subject::Fork { same_cpu: false } => floor.yardstick.latencies(n, pause),
        Subject::Fork { same_cpu: true } => floor.same_cpu.latencies(n, pause),
        Subject::Ping => floor.pings(n, pause),
        Subject::Ours(way) => ways.latencies(way, n, pause),
        Subject::OursCurrentThread(way) => ways.latencies_current_thread(way, n, pause),
        Subject::Std => reexec_by_std(n, pause),
        Subject::Peer(peer) => match &mut setting.peers[peer] {
            Ok(peer) => peer.latencies(n, pause)?,
            Err(why) => return Err(why.clone()),
        },
    })
}

impl Row<'_> {
    fn add(&mut self, times: &[Duration], floor: Latency) {
        self.to_fork.push(p50(times) / floor.fork);
        self.to_ping.push(p50(times) / floor.ping);
        self.samples.add(times);
    }

    fn report(&self, report: &mut Report) {
        let name = &self.name;
        if let Some(why) = &self.skipped {
            report.line(format!("{name:<46} skipped: {why}"));
            return;
        }
        let (fork, ping) = (median(&self.to_fork), median(&self.to_ping));
        let [p50, p99, p999] = [Some(self.samples.p50()), self.samples.p99(), self.samples.p999()];
        let (low, high) = range(&self.to_fork);
        report.line(format!(
            "{name:<46} {:>7} {:>7} {:>8} {:>8} {:>8} {:>7}   {} .. {}",
            show(Some(fork)),
            show(Some(ping)),
            show(p50),
            show(p99),
            show(p999),
            self.samples.count(),
            show(Some(low)),
            show(Some(high)),
        ));
        let key = self.key;
        report.found(format!("{key}:fork"), fork);
        report.found(format!("{key}:ping"), ping);
        for (quantile, value) in [("p50", p50), ("p99", p99), ("p999", p999)] {
            report.found(format!("{key} {quantile}"), value.unwrap_or(f64::NAN));
        }
    }
}

pub(crate) fn run(plan: &Plan, setting: &mut Setting, floor: &mut Floor, report: &mut Report) {
    let mut rows = rows(setting);
    for round in 0..plan.rounds {
        eprintln!("latency, round {} of {} ...", round + 1, plan.rounds);
        for row in &mut rows {
            if row.skipped.is_some() {
                continue;
            }
            // What is done once, and what is only in the caches after the first time.
            let _ = measure(row, plan.batch.min(10), setting, floor);
            let (times, beside) = if row.pause.is_zero() {
                floor.beside(|floor| measure(row, 8 * plan.batch, setting, floor))
            } else {
                floor.in_turn(plan.batch, |floor| measure(row, 1, setting, floor))
            };
            match times {
                Ok(times) => row.add(&times, beside),
                Err(why) => row.skipped = Some(why),
            }
        }
    }
    report.head(format!(
        "{:<46} {:>7} {:>7} {:>8} {:>8} {:>8} {:>7}   : fork in rounds",
        "latency of one task", ": fork", ": ping", "p50 us", "p99 us", "p99.9 us", "n"
    ));
    rows.iter().for_each(|row| row.report(report));
}
