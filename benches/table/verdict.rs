//! What the library wants to show, and whether this run shows it.

use crate::{growth::PROMISED, peers::PEERS, report::Report};

/// What is wanted of a number.
enum Wanted {
    AtMost(f64),
    AtLeast(f64),
}

use Wanted::{AtLeast, AtMost};

fn line(report: &mut Report, number: &str, what: &str, value: Option<f64>, wanted: &Wanted) {
    let (text, good) = match *wanted {
        AtMost(limit) => (format!("<= {limit}"), value.is_some_and(|value| value <= limit)),
        AtLeast(limit) => (format!(">= {limit}"), value.is_some_and(|value| value >= limit)),
    };
    match value {
        Some(value) => {
            let value = if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") };
            report.line(format!("{number:<2} {what:<62} {value:>8} {text:>10}   {}", if good { "yes" } else { "NO" }));
        }
        None => report.line(format!("{number:<2} {what:<62} {:>8} {text:>10}   not measured", "")),
    }
}

pub(crate) fn print(report: &mut Report) {
    let get = |report: &Report, name: &str| report.get(name);
    let ratio = |report: &Report, a: &str, b: &str| Some(report.get(a)? / report.get(b)?);
    report.head(format!("{:<65} {:>8} {:>10}   shown", "verdict", "measured", "wanted"));

    let (fork, ping) = (get(report, "warm:fork"), get(report, "warm:ping"));
    line(report, "1", "warm, apart : raw fork, p50", fork, &AtMost(0.5));
    line(report, "", "warm, apart : ping-pong, p50 (aim 2)", ping, &AtMost(3.5));
    let cold = get(report, "cold:fork");
    line(report, "2", "cold, apart : raw fork, p50 (aim 1.8)", cold, &AtMost(2.2));
    let static_cold = get(report, "static-huge cold");
    line(report, "", "the same with code on huge pages, static, both of that image", static_cold, &AtMost(1.4));
    let (by_cold, by_warm) = (ratio(report, "tokio:fork", "cold:fork"), ratio(report, "tokio:fork", "warm:fork"));
    line(report, "3", "re-exec by tokio::process : cold, p50", by_cold, &AtLeast(4.0));
    line(report, "", "re-exec by tokio::process : warm, p50", by_warm, &AtLeast(12.0));
    let by_full = ratio(report, "tokio:fork", "cold-full:fork");
    line(report, "", "the same : cold, both in a program with tokio `full`, p50", by_full, &AtLeast(4.0));
    for (key, name, _) in PEERS.into_iter().filter(|(_, _, fresh)| *fresh) {
        let than = ratio(report, &format!("{key}:fork"), "warm:fork");
        line(report, "", &format!("{name} : warm, p50"), than, &AtLeast(1.0));
    }
    let (eight, many) = (get(report, "warm@8:many"), get(report, "warm@64:many"));
    line(report, "4", "warm, 8 in flight : raw fork 1x16, tasks/s", eight, &AtLeast(0.5));
    line(report, "", "warm, 64 in flight : raw fork 1x16, tasks/s", many, &AtLeast(0.5));
    for in_flight in [8, 64] {
        let rate = get(report, &format!("static-huge warm@{in_flight}"));
        let what = format!("the same at {in_flight}, code on huge pages, static, of that image");
        line(report, "", &what, rate, &AtLeast(0.6));
    }
    line(report, "", "warm, apart: p99 : p50", ratio(report, "warm p99", "warm p50"), &AtMost(6.0));
    let dense = ratio(report, "pool-dense p50", "ping-dense p50");
    line(report, "5", "pool : ping-pong, both back to back, p50", dense, &AtMost(1.3));
    let apart = ratio(report, "pool p50", "ping p50");
    line(report, "", "pool : ping-pong, both apart, p50", apart, &AtMost(1.3));
    line(report, "", "pool, 8 in flight, tasks/s", get(report, "pool@8 rate"), &AtLeast(150_000.0));
    let pools = ratio(report, "pool@8:many", "procspawn-pool@8:many");
    line(report, "", "pool : procspawn's pool, 8 in flight, tasks/s", pools, &AtLeast(1.0));
    let pools = ratio(report, "procspawn-pool:fork", "pool:fork");
    line(report, "", "procspawn's pool : pool, p50", pools, &AtLeast(1.0));
    for key in PROMISED {
        let change = get(report, &format!("large {key}")).map(|ratio| 100.0 * (ratio - 1.0).abs());
        line(
            report,
            if key == PROMISED[0] { "6" } else { "" },
            &format!("large parent, {key}: % of change"),
            change,
            &AtMost(5.0),
        );
    }
    let preloaded = get(report, "preload shared 1024");
    line(report, "", "zygote with 1 GB in a sealed memfd : empty one", preloaded, &AtMost(1.1));
    let own = get(report, "standing 10 uss");
    line(report, "7", "own memory of an idle warm worker, kB", own, &AtMost(100.0));
    let bytes = ratio(report, &format!("both {} p50", 1 << 20), &format!("both {} bare", 1 << 20));
    line(report, "", "1 MB of Bytes there and back : by hand", bytes, &AtMost(1.5));
    line(report, "", "warm with 256 MB in a Shared : without", get(report, "shared 256"), &AtMost(1.15));
    let serve = get(report, "standing 1000 p50").map(|_| 1000.0);
    line(report, "", "warm workers that stand and serve", serve, &AtLeast(1000.0));
}
