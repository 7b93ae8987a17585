//! This program as one of several builds that are compared: `table --serve SUBJECT` takes the orders of `peers` (see
//! `benches/peers`) and measures what the same program does when it is built otherwise.

use std::{
    io::{self, BufRead, Write},
    time::Duration,
};

use crate::{
    floor::Floor,
    ways::{Way, Ways},
};

/// What an order may be about.
pub(crate) const FORK: &str = "fork";
pub(crate) const COLD: &str = "cold";
pub(crate) const WARM: &str = "warm";

/// Answers until there are no more orders.
pub(crate) fn serve(subject: &str, ways: &Ways, floor: &mut Floor) -> Result<(), Box<dyn std::error::Error>> {
    for order in io::stdin().lock().lines() {
        let order = order?;
        let words: Vec<&str> = order.split_whitespace().collect();
        let (order, count, time) = match *words.as_slice() {
            [order, count, time] => (order, count.parse::<usize>()?, Duration::from_nanos(time.parse()?)),
            _ => return Err(format!("unknown order {order:?}").into()),
        };
        let numbers: Vec<u64> = match (order, ours(subject, order, ways)) {
            ("latency", None) => nanos(floor.yardstick.latencies(count, time)),
            ("latency", Some(way)) => nanos(ways.latencies(way, count, time)),
            // In a second.
            ("rate", None) => vec![floor.yardstick.rate(count, time) as u64, 1_000_000_000],
            ("rate", Some(way)) => vec![ways.rate(way, count, time) as u64, 1_000_000_000],
            _ => return Err(format!("unknown order {order:?}").into()),
        };
        let line = numbers.into_iter().fold("ok".to_owned(), |line, number| format!("{line} {number}"));
        writeln!(io::stdout(), "{line}")?;
    }
    Ok(())
}

fn ours<'a>(subject: &str, order: &str, ways: &'a Ways) -> Option<&'a Way> {
    match (subject, order) {
        (COLD, "rate") => Some(&ways.wide_cold),
        (WARM, "rate") => Some(&ways.wide_warm),
        (COLD, _) => Some(&ways.cold),
        (WARM, _) => Some(&ways.warm),
        _ => None,
    }
}

fn nanos(times: Vec<Duration>) -> Vec<u64> {
    times.into_iter().map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)).collect()
}
