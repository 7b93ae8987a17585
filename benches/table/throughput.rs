//! How many tasks a second, for a while.

use crate::{
    Plan, Setting,
    floor::{Floor, Rate},
    peers::PEERS,
    report::Report,
    stats::{median, show},
    ways::{POOL_WORKERS, Way},
};

pub(crate) const IN_FLIGHT: [usize; 4] = [1, 2, 8, 64];
/// How many in flight the peers are measured with.
const PEERS_IN_FLIGHT: usize = 8;

enum Subject<'a> {
    Ours(&'a Way),
    Peer(usize),
}

struct Row<'a> {
    key: String,
    name: String,
    subject: Subject<'a>,
    in_flight: usize,
    rates: Vec<f64>,
    to_many: Vec<f64>,
    to_one: Vec<f64>,
    to_two: Vec<f64>,
    skipped: Option<String>,
}

impl<'a> Row<'a> {
    fn new(key: &str, name: &str, in_flight: usize, subject: Subject<'a>) -> Self {
        let (rates, to_many, to_one, to_two) = Default::default();
        let (key, name) = (format!("{key}@{in_flight}"), format!("{name}, {in_flight} in flight"));
        Self { key, name, subject, in_flight, rates, to_many, to_one, to_two, skipped: None }
    }

    fn add(&mut self, rate: f64, floor: Rate) {
        self.rates.push(rate);
        self.to_many.push(rate / floor.many);
        self.to_one.push(rate / floor.one);
        self.to_two.push(rate / floor.two);
    }

    fn report(&self, report: &mut Report) {
        let name = &self.name;
        if let Some(why) = &self.skipped {
            report.line(format!("{name:<46} skipped: {why}"));
            return;
        }
        let [many, one, two, rate] = [&self.to_many, &self.to_one, &self.to_two, &self.rates].map(|v| median(v));
        let [a, b, c] = [many, one, two].map(|ratio| show(Some(ratio)));
        report.line(format!("{name:<46} {a:>9} {b:>9} {c:>9} {rate:>9.0}"));
        report.found(format!("{}:many", self.key), many);
        report.found(format!("{} rate", self.key), rate);
    }
}

pub(crate) fn run(plan: &Plan, setting: &mut Setting, floor: &mut Floor, report: &mut Report) {
    let ways = setting.ways;
    let mut rows = Vec::new();
    let pool = format!("Pool of {POOL_WORKERS}");
    let ours = [("cold", "run, cold", &ways.wide_cold), ("warm", "run, warm", &ways.wide_warm)];
    for (key, name, way) in ours.into_iter().chain([("pool", pool.as_str(), &ways.wide_pool)]) {
        rows.extend(IN_FLIGHT.map(|in_flight| Row::new(key, name, in_flight, Subject::Ours(way))));
    }
    for (n, (key, name, _)) in PEERS.into_iter().enumerate() {
        rows.push(Row::new(key, name, PEERS_IN_FLIGHT, Subject::Peer(n)));
    }
    let mut floors = Vec::new();
    for round in 0..plan.rate_rounds {
        eprintln!("throughput, round {} of {} ...", round + 1, plan.rate_rounds);
        for row in &mut rows {
            let (rate, beside) = floor.beside_rate(|_| match row.subject {
                Subject::Ours(way) => Ok(ways.rate(way, row.in_flight, plan.rate_time)),
                Subject::Peer(peer) => match &mut setting.peers[peer] {
                    Ok(peer) => peer.rate(row.in_flight, plan.rate_time),
                    Err(why) => Err(why.clone()),
                },
            });
            match rate {
                Ok(rate) => {
                    row.add(rate, beside);
                    floors.push(beside);
                }
                Err(why) => row.skipped = Some(why),
            }
        }
    }
    report.head(format!(
        "{:<46} {:>9} {:>9} {:>9} {:>9}",
        "throughput, sustained", ": raw 1x16", ": raw 1x1", ": raw 2x1", "tasks/s"
    ));
    rows.iter().for_each(|row| row.report(report));
    let mut raw = |name, key: &str, rate: fn(&Rate) -> f64| {
        let rates = |of: fn(&Rate) -> f64| floors.iter().map(of).collect::<Vec<_>>();
        let ratio: Vec<_> = floors.iter().map(|floor| rate(floor) / floor.many).collect();
        let (rate, ratio) = (median(&rates(rate)), median(&ratio));
        report.line(format!("{name:<46} {:>9} {:>9} {:>9} {rate:>9.0}", show(Some(ratio)), "", ""));
        report.found(format!("{key}:many"), ratio);
    };
    raw("raw fork + _exit + wait, 1 in flight", "raw1", |rate| rate.one);
    raw("raw fork + _exit + wait, 16 in flight", "raw16", |rate| rate.many);
    raw("the same from two processes, 1 each", "raw2", |rate| rate.two);
}
