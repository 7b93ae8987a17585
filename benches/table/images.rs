//! The same program built otherwise: its code on huge pages, linked statically, and both. Each beside the raw fork of a small
//! process of its own image, in turn with it.

use std::{env, path::PathBuf};

use crate::{
    Plan,
    peers::{Peer, built},
    report::Report,
    serve::{COLD, SERVE, WARM},
    stats::{median, show},
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

/// One build.
struct Image {
    key: &'static str,
    name: &'static str,
    program: Peer,
    /// For each look, one for each round: what was measured, and its ratio to the raw fork of this image.
    found: [Vec<(f64, f64)>; LOOKS.len()],
}

/// Key, headline, and what is ordered: see [`serve`](crate::serve).
const LOOKS: [(&str, &str, &str, &str); 7] = [
    ("warm", "warm", "apart", WARM),
    ("cold", "cold", "apart", COLD),
    ("warm dense", "warm b2b", "dense", WARM),
    ("cold dense", "cold b2b", "dense", COLD),
    ("cold@8", "cold, 8", "rate 8", COLD),
    ("warm@8", "warm, 8", "rate 8", WARM),
    ("warm@64", "warm, 64", "rate 64", WARM),
];
/// Those of which the figure itself is shown too: a cold task back to back, and eight at a time.
const SHOWN: [usize; 2] = [3, 4];

fn build(key: &str, flags: &[&str], huge: bool) -> Result<PathBuf, String> {
    eprintln!("building {key} ...");
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let folder = format!("target/images/{key}");
    built("table", |command| {
        // With a target, or the flags would go for procedural macros too.
        command.args(["--target", &target, "--target-dir", &folder]).env("RUSTFLAGS", flags.join(" "));
        if huge {
            command.args(["--features", "tokio-run-in-process/huge-text"]);
        }
        command
    })
}

impl Image {
    fn new((key, name, flags, huge): (&'static str, &'static str, &[&str], bool)) -> Result<Self, String> {
        let program = match key {
            "default" => env::current_exe().map_err(|error| error.to_string()),
            _ => build(key, flags, huge),
        };
        let program = Peer::start(&program, &["--bench", SERVE])?;
        Ok(Self { key, name, program, found: Default::default() })
    }

    fn measure(&mut self, plan: &Plan) -> Result<(), String> {
        for ((.., kind, way), found) in LOOKS.iter().zip(&mut self.found) {
            let order = match kind.split_once(' ') {
                Some((kind, in_flight)) => format!("{kind} {way} {in_flight}"),
                None if *kind == "dense" => format!("{kind} {way} {}", 8 * plan.batch),
                None => format!("{kind} {way} {}", plan.batch),
            };
            match *self.program.ask(&order)?.as_slice() {
                [measured, beside] => found.push((measured as f64, measured as f64 / beside as f64)),
                _ => return Err("two numbers are wanted".to_owned()),
            }
        }
        Ok(())
    }

    fn medians(&self, of: impl Fn(&(f64, f64)) -> f64) -> Vec<f64> {
        self.found.iter().map(|found| median(&found.iter().map(&of).collect::<Vec<_>>())).collect()
    }
}

pub(crate) fn run(plan: &Plan, report: &mut Report) {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")) {
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
        images.retain_mut(|image| match image.measure(plan) {
            Ok(()) => true,
            Err(why) => {
                skipped.push((image.name, why));
                false
            }
        });
    }
    let heads: String = LOOKS.iter().map(|(_, head, ..)| format!(" {head:>8}")).collect();
    report.head(format!("{:<28}{heads} {:>8} {:>8}", "the program, built", "b2b us", "tasks/s"));
    for image in &images {
        let (ratios, figures) = (image.medians(|found| found.1), image.medians(|found| found.0));
        let columns: String = ratios.iter().map(|ratio| format!(" {:>8}", show(Some(*ratio)))).collect();
        let [micros, rate] = SHOWN.map(|look| figures[look]);
        report.line(format!("{:<28}{columns} {:>8} {rate:>8.0}", image.name, show(Some(micros / 1e3))));
        for ((what, ..), ratio) in LOOKS.iter().zip(ratios) {
            report.found(format!("{} {what}", image.key), ratio);
        }
    }
    for (name, why) in skipped {
        report.line(format!("{name:<28} skipped: {why}"));
    }
    report.line(
        "(warm and cold: a task apart and back to back (b2b), in units of the raw fork of a small process of the same",
    );
    report.line(
        "image; 8 and 64 in flight: in units of its raw 1x16; a cold task back to back; cold tasks/s, 8 in flight)",
    );
}
