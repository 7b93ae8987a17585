//! This program as one of several builds that are compared: `table --bench --serve` takes one order a line on stdin and
//! gives one answer a line on stdout, like `benches/peers`.
//!
//! | order | answer |
//! | --- | --- |
//! | `apart WAY COUNT` | `ok`, median latency and the raw fork's, in nanoseconds |
//! | `dense WAY COUNT` | the same, back to back |
//! | `rate WAY IN_FLIGHT` | `ok`, tasks per second and the raw fork's |

use std::io::{self, BufRead, Write};

use crate::{
    Plan,
    floor::Floor,
    stats::p50,
    ways::{NONE, PAUSE, Way, Ways},
};

/// What the program is told, to be one that answers.
pub(crate) const SERVE: &str = "--serve";
pub(crate) const COLD: &str = "cold";
pub(crate) const WARM: &str = "warm";

/// Answers until there are no more orders.
pub(crate) fn serve(plan: &Plan, ways: &Ways, floor: &mut Floor) -> Result<(), Box<dyn std::error::Error>> {
    for order in io::stdin().lock().lines() {
        let order = order?;
        let words: Vec<&str> = order.split_whitespace().collect();
        let [kind, way, number] = words.as_slice() else { return Err(format!("unknown order {order:?}").into()) };
        let (way, number) = (find(way, *kind == "rate", ways)?, number.parse()?);
        let [measured, beside] = match *kind {
            "apart" => {
                let (times, beside) = floor.in_turn(number, |_| Ok(ways.latencies(way, 1, PAUSE)));
                [p50(&times?), beside.fork].map(|micros| micros * 1e3)
            }
            "dense" => {
                let (times, beside) = floor.beside(|_| ways.latencies(way, number, NONE));
                [p50(&times), beside.fork].map(|micros| micros * 1e3)
            }
            "rate" => {
                let (rate, beside) = floor.beside_rate(|_| ways.rate(way, number, plan.rate_time));
                [rate, beside.many]
            }
            _ => return Err(format!("unknown order {order:?}").into()),
        };
        writeln!(io::stdout(), "ok {measured:.0} {beside:.0}")?;
    }
    Ok(())
}

fn find<'a>(way: &str, wide: bool, ways: &'a Ways) -> Result<&'a Way, String> {
    match (way, wide) {
        (COLD, false) => Ok(&ways.cold),
        (COLD, true) => Ok(&ways.wide_cold),
        (WARM, false) => Ok(&ways.warm),
        (WARM, true) => Ok(&ways.wide_warm),
        _ => Err(format!("unknown way {way:?}")),
    }
}
