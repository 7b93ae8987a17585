//! What a process per task costs, beside the floor of the machine, beside re-exec, and beside other crates.
//!
//! Machines drift, so no figure here stands alone. Small processes that were forked before everything else do nothing but
//! `fork`, `_exit` and `waitpid`, or send back what they get: the floor. Where requests are apart it is measured beside
//! every single one, apart too; where they are back to back, just before and just after every batch. What counts is the
//! ratio of the two medians. All rows take turns, round after round; a row shows the median of its rounds. Nothing is
//! asserted about time: the table is the product.
//!
//! `cargo bench` measures all of it in some minutes, prints the table, and draws charts in `target/bench/`.
//!
//! | `cargo bench --` ... | |
//! | --- | --- |
//! | `--save` | writes table and charts to `benches/results/` too |
//! | `--many` | 5,000 living workers too |
//! | `latency`, `throughput`, `large`, `standing`, `preload`, `payload`, `choices`, `images` | only these sections |
//!
//! `cargo test --benches`, `--test` and `BENCH_QUICK=1` run a few iterations without the other crates.
//!
//! `images` builds this program three times more, with its code on huge pages, static, and both.

mod charts;
mod choices;
mod floor;
mod growth;
mod helper;
mod images;
mod latency;
mod payload;
mod peers;
mod preload;
mod report;
mod serve;
mod stats;
mod svg;
mod throughput;
mod verdict;
mod ways;

use std::{env, path::Path, time::Duration};

use floor::Floor;
use peers::{PEERS, Peer};
use report::Report;
use ways::{REEXEC, Ways};

/// The folder of the library.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// How much is measured.
struct Plan {
    /// Each round measures every row once.
    rounds: usize,
    /// Tasks in a row that are apart; more where they are back to back.
    batch: usize,
    floor_batch: usize,
    floor_time: Duration,
    rate_time: Duration,
    rate_rounds: usize,
    /// Of touched memory in the parent.
    large: usize,
    large_rounds: usize,
    /// How many of the numbers of living workers.
    standing: usize,
    /// How many of the sizes.
    sizes: usize,
    payload_rounds: usize,
    choice_rounds: usize,
}

const FULL: Plan = Plan {
    rounds: 9,
    batch: 100,
    floor_batch: 100,
    floor_time: Duration::from_millis(120),
    rate_time: Duration::from_millis(1500),
    rate_rounds: 3,
    large: 1 << 30,
    large_rounds: 5,
    standing: 3,
    sizes: 7,
    payload_rounds: 3,
    choice_rounds: 5,
};

const QUICK: Plan = Plan {
    rounds: 1,
    batch: 3,
    floor_batch: 3,
    floor_time: Duration::from_millis(2),
    rate_time: Duration::from_millis(10),
    rate_rounds: 1,
    large: 1 << 24,
    large_rounds: 1,
    standing: 1,
    sizes: 3,
    payload_rounds: 1,
    choice_rounds: 1,
};

/// What there is to measure.
struct Setting<'a> {
    ways: &'a Ways,
    /// The other crates, or why not.
    peers: Vec<Result<Peer, String>>,
    many: bool,
}

const SECTIONS: [&str; 8] = ["latency", "throughput", "large", "standing", "preload", "payload", "choices", "images"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if env::var_os(REEXEC).is_some() {
        ways::be_reexecuted();
        return Ok(());
    }
    helper::raise_descriptor_limit();
    // First of all, while there is one thread and no memory to copy.
    let helpers = helper::fork_all()?;
    tokio_run_in_process::init()?;

    // Cargo says `--bench` when it is asked to measure and nothing when it is asked to test.
    let told = |option: &str| env::args().any(|argument| argument == option);
    let quick = !told("--bench") || told("--test") || env::var_os("BENCH_QUICK").is_some();
    let plan = if quick { QUICK } else { FULL };
    let chosen: Vec<_> = SECTIONS.into_iter().filter(|section| told(section)).collect();
    let wanted = |section| chosen.is_empty() || chosen.contains(&section);

    let ways = Ways::new()?;
    let mut floor = Floor::new(helpers, &ways, &plan)?;
    if told(serve::SERVE) {
        return serve::serve(&plan, &ways, &mut floor);
    }
    let program = if quick { Err("not in a quick run".to_owned()) } else { peers::build() };
    let peers = PEERS.iter().map(|(subject, ..)| Peer::start(&program, &[subject])).collect();
    let mut setting = Setting { ways: &ways, peers, many: told("--many") };
    let mut report = Report::default();

    let machine = report::machine();
    report.line(format!("tokio-run-in-process {}: {machine}", env!("CARGO_PKG_VERSION")));
    report.line(
        "': fork' = p50 in units of raw fork + _exit + waitpid by a small process of this image, in turn with it and",
    );
    report.line(
        "as far apart; ': ping' = of a socket ping-pong from tokio. Rates in units of raw fork + _exit + wait from one",
    );
    report.line(
        "process with 16 (1x16) or 1 (1x1) in flight, or from two processes (2x1). Medians of rounds that take turns.",
    );
    if wanted("latency") {
        latency::run(&plan, &mut setting, &mut floor, &mut report);
    }
    if wanted("throughput") {
        throughput::run(&plan, &mut setting, &mut floor, &mut report);
    }
    if wanted("large") {
        growth::large_parent(&plan, &mut setting, &mut floor, &mut report);
    }
    if wanted("standing") {
        growth::many_warm(&plan, &setting, &mut floor, &mut report);
    }
    if wanted("preload") {
        preload::run(&plan, &setting, &mut report);
    }
    if wanted("payload") {
        payload::run(&plan, &setting, &mut floor, &mut report);
    }
    if wanted("choices") {
        choices::run(&plan, &setting, &mut report)?;
    }
    // Not in a quick run, as the peers: it builds.
    if !quick && wanted("images") {
        images::run(&plan, &mut report);
    }
    if quick {
        println!("\nno verdict: a few iterations say nothing");
    } else {
        verdict::print(&mut report);
    }

    let failures = ways::failures();
    if let Some(first) = failures.first() {
        report.line("");
        report.line(format!("{} TASKS FAILED; the first: {first}", failures.len()));
    }

    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new(ROOT).join("target"), Into::into);
    let mut folders = vec![target.join(if quick { "bench-quick" } else { "bench" })];
    if told("--save") && !quick {
        folders.push(Path::new(ROOT).join("benches/results"));
    }
    report.write(&folders, &charts::all(&report, &machine))?;
    if failures.is_empty() { Ok(()) } else { Err("some tasks failed".into()) }
}
