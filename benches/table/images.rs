//! The same program built otherwise: its code on huge pages, linked statically, and both. Each beside the raw fork of a small
//! process of its own image, in turn with it, and beside that of the ordinary build.

use std::{env, path::PathBuf, process::Command};

use crate::{
    Plan,
    peers::{Peer, built},
    report::Report,
    serve::{COLD, FORK, WARM},
    stats::{median, p50, show},
    ways::{NONE, PAUSE},
};

/// Two megabytes between the segments of the program.
const APART: &str = "-C link-arg=-Wl,-z,max-page-size=0x200000";
const STATIC: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// Key, name, flags, and whether the library has its feature.
const IMAGES: [(&str, &str, &[&str], bool); 4] = [
    ("default", "as Cargo builds it", &[], false),
    ("huge", "code on huge pages", &[APART], true),
    ("static", "static", &[STATIC], false),
    ("static-huge", "static, code on huge pages", &[STATIC, APART], true),
];

/// One build, and a process for each thing it is asked.
struct Image {
    key: &'static str,
    name: &'static str,
    fork: Peer,
    cold: Peer,
    warm: Peer,
    found: Vec<Round>,
}

/// Ratios to the raw fork of the image's own, rates to its raw rate, and the time of a task in microseconds.
struct Round {
    warm: f64,
    cold: f64,
    cold_dense: f64,
    cold_at_8: f64,
    warm_at_8: f64,
    warm_at_64: f64,
    cold_micros: f64,
    rate: f64,
}

fn build(key: &str, flags: &[&str], huge: bool) -> Result<PathBuf, String> {
    eprintln!("building {key} ...");
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let folder = format!("target/images/{key}");
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // With a target, or the flags would go for procedural macros too.
    command.args(["build", "--release", "--package", "table", "--target", &target, "--target-dir", &folder]);
    if huge {
        command.args(["--features", "tokio-run-in-process/huge-text"]);
    }
    built(command.env("RUSTFLAGS", flags.join(" ")), "table")
}

impl Image {
    fn new((key, name, flags, huge): (&'static str, &'static str, &[&str], bool)) -> Result<Self, String> {
        let program = build(key, flags, huge);
        let start = |subject| Peer::start(&program, &["--serve", subject]);
        Ok(Self { key, name, fork: start(FORK)?, cold: start(COLD)?, warm: start(WARM)?, found: Vec::new() })
    }

    fn measure(&mut self, plan: &Plan) -> Result<(), String> {
        let (mut fork, mut cold, mut warm) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..plan.batch {
            fork.extend(self.fork.latencies(1, PAUSE)?);
            cold.extend(self.cold.latencies(1, PAUSE)?);
            fork.extend(self.fork.latencies(1, PAUSE)?);
            warm.extend(self.warm.latencies(1, PAUSE)?);
        }
        let dense = [4 * plan.batch, 8 * plan.batch];
        let fork_dense = p50(&self.fork.latencies(dense[0], NONE)?);
        let cold_dense = p50(&self.cold.latencies(dense[1], NONE)?);
        let fork_dense = f64::midpoint(fork_dense, p50(&self.fork.latencies(dense[0], NONE)?));
        let mut beside = |peer: &mut Peer, in_flight| -> Result<(f64, f64), String> {
            let before = self.fork.rate(16, plan.floor_time)?;
            let rate = peer.rate(in_flight, plan.rate_time)?;
            Ok((rate, rate / f64::midpoint(before, self.fork.rate(16, plan.floor_time)?)))
        };
        let (rate, cold_at_8) = beside(&mut self.cold, 8)?;
        let (_, warm_at_8) = beside(&mut self.warm, 8)?;
        let (_, warm_at_64) = beside(&mut self.warm, 64)?;
        self.found.push(Round {
            warm: p50(&warm) / p50(&fork),
            cold: p50(&cold) / p50(&fork),
            cold_dense: cold_dense / fork_dense,
            cold_at_8,
            warm_at_8,
            warm_at_64,
            cold_micros: cold_dense,
            rate,
        });
        Ok(())
    }

    fn of(&self, of: impl Fn(&Round) -> f64) -> f64 {
        median(&self.found.iter().map(of).collect::<Vec<_>>())
    }
}

pub(crate) fn run(plan: &Plan, quick: bool, report: &mut Report) {
    if quick || !cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")) {
        return;
    }
    let mut images: Vec<Image> = Vec::new();
    let mut skipped = Vec::new();
    for image in IMAGES {
        match Image::new(image) {
            Ok(image) => images.push(image),
            Err(why) => skipped.push((image.1, why)),
        }
    }
    for round in 0..plan.choice_rounds {
        eprintln!("other builds, round {} of {} ...", round + 1, plan.choice_rounds);
        for image in &mut images {
            if let Err(why) = image.measure(plan) {
                skipped.push((image.name, why));
            }
        }
    }
    report.head(format!(
        "{:<28} {:>7} {:>7} {:>7} {:>9} {:>9} {:>9} {:>10} {:>9}",
        "the program, built", "warm", "cold", "dense", "cold 8", "warm 8", "warm 64", "dense us", "tasks/s"
    ));
    for image in images.iter().filter(|image| !image.found.is_empty()) {
        let ratios = [
            image.of(|round| round.warm),
            image.of(|round| round.cold),
            image.of(|round| round.cold_dense),
            image.of(|round| round.cold_at_8),
            image.of(|round| round.warm_at_8),
            image.of(|round| round.warm_at_64),
            image.of(|round| round.cold_micros),
        ];
        let [warm, cold, dense, cold_8, warm_8, warm_64, micros] = ratios.map(|ratio| show(Some(ratio)));
        let rate = image.of(|round| round.rate);
        report.line(format!(
            "{:<28} {warm:>7} {cold:>7} {dense:>7} {cold_8:>9} {warm_8:>9} {warm_64:>9} {micros:>10} {rate:>9.0}",
            image.name
        ));
        for (what, ratio) in ["warm", "cold", "dense", "cold@8", "warm@8", "warm@64"].into_iter().zip(ratios) {
            report.found(format!("{} {what}", image.key), ratio);
        }
    }
    for (name, why) in skipped {
        report.line(format!("{name:<28} skipped: {why}"));
    }
    report.line(
        "(warm and cold apart, and cold back to back, in units of the image's own raw fork; rates of 8 and 64 in",
    );
    report.line(
        "flight in units of its own raw fork 1x16; time of a cold task back to back; cold tasks a second, 8 in flight)",
    );
}
