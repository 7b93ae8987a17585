//! The charts: pictures of numbers that the table has too.

use crate::{
    growth::STANDING,
    latency, payload,
    report::Report,
    stats::show,
    svg::{Bar, Colour, Line, Svg, short},
    throughput::IN_FLIGHT,
};

/// What is ours, what is the machine's, and what is anybody else's.
const OURS: Colour = 1;
const MACHINE: Colour = 2;
const OTHER: Colour = 0;

/// All of them, by the names of their files; those without any number are left out.
pub(crate) fn all(report: &Report, machine: &str) -> Vec<(&'static str, String)> {
    let mut charts = vec![("latency.svg", latency_chart(report, machine))];
    charts.push(("throughput.svg", throughput_chart(report, machine)));
    charts.push(("growth.svg", growth_chart(report, machine)));
    charts.into_iter().filter_map(|(name, chart)| Some((name, chart?))).collect()
}

fn latency_chart(report: &Report, machine: &str) -> Option<String> {
    let bars = latency::CHART.into_iter().filter_map(|(key, name)| {
        let (ratio, value) = (report.get(&format!("{key}:fork"))?, report.get(&format!("{key} p50"))?);
        let label = format!("{} µs, {}×", show(Some(value)), show(Some(ratio)));
        let colour = match key {
            "ping" | "fork" => MACHINE,
            "pool" | "warm" | "warm-dense" | "open" | "cold" => OURS,
            _ => OTHER,
        };
        Some(Bar { name: name.to_owned(), value, up_to: report.get(&format!("{key} p99")), label, colour })
    });
    let mut bars: Vec<_> = bars.collect();
    if bars.is_empty() {
        return None;
    }
    bars.sort_by(|a, b| a.value.total_cmp(&b.value));
    let mut svg = Svg::new();
    svg.bars(
        "Latency of one task: fib(10) in a process, requests apart unless said",
        "µs, logarithmic; bar: p50, whisker: p99; × = in units of raw fork + _exit + waitpid beside it",
        &bars,
    );
    Some(svg.finish(machine))
}

fn throughput_chart(report: &Report, machine: &str) -> Option<String> {
    let ours = [("warm", "run, warm", 1), ("cold", "run, cold", 4), ("pool", "Pool (reuse)", 2)];
    let mut lines: Vec<_> = ours
        .into_iter()
        .map(|(key, name, colour)| {
            let values = IN_FLIGHT.map(|n| report.get(&format!("{key}@{n}:many"))).to_vec();
            let last = report
                .get(&format!("{key}@8 rate"))
                .map_or_else(String::new, |rate| format!(": {}/s at 8", short(rate)));
            Line { name: format!("{name}{last}"), values, colour, dashed: false }
        })
        .collect();
    lines.iter().any(|line| line.values.iter().any(Option::is_some)).then_some(())?;
    for (key, name) in [("raw16", "raw fork, 1 process, 16 in flight"), ("raw2", "raw fork, 2 processes")] {
        let values = vec![report.get(&format!("{key}:many")); IN_FLIGHT.len()];
        lines.push(Line { name: name.to_owned(), values, colour: OTHER, dashed: true });
    }
    let peers = [
        ("mem-isolate", "mem-isolate"),
        ("zygote", "zygote"),
        ("procspawn", "procspawn"),
        ("procspawn-pool", "procspawn Pool"),
    ];
    for (key, name) in peers {
        let values = IN_FLIGHT.map(|n| report.get(&format!("{key}@{n}:many"))).to_vec();
        lines.push(Line { name: format!("{name}, at 8"), values, colour: 3, dashed: false });
    }
    let mut svg = Svg::new();
    svg.lines(
        "Sustained throughput, by tasks in flight",
        "in units of raw fork + _exit + wait from one process with 16 in flight, logarithmic",
        &IN_FLIGHT.map(|n| format!("{n} in flight")),
        &lines,
    );
    Some(svg.finish(machine))
}

fn growth_chart(report: &Report, machine: &str) -> Option<String> {
    let mut svg = Svg::new();
    let rows = [
        ("warm", "run, warm", OURS),
        ("cold", "run, cold", OURS),
        ("pool", "Pool (reuse)", OURS),
        ("std", "re-exec, std::process", OTHER),
        ("mem-isolate", "mem-isolate", OTHER),
    ];
    let bars: Vec<_> = rows
        .into_iter()
        .flat_map(|(key, name, colour)| {
            ["without", "with"].into_iter().filter_map(move |which| {
                let value = report.get(&format!("large {key} {which}"))?;
                let name = format!("{name}, {}", if which == "with" { "large" } else { "small" });
                Some(Bar { name, value, up_to: None, label: format!("{}×", show(Some(value))), colour })
            })
        })
        .collect();
    svg.bars(
        "A small parent, and one with a gigabyte of touched memory",
        "p50 in units of raw fork + _exit + waitpid by a small process, logarithmic",
        &bars,
    );

    let series = [
        ("take", "p50", "Bytes to the worker", 1, false),
        ("text", "p50", "String to the worker", 4, false),
        ("give", "p50", "Bytes from the worker", 3, false),
        ("vec", "p50", "Vec<u8> to the worker", 2, false),
        ("take", "bare", "bare socket, to", 0, true),
        ("give", "bare", "bare socket, from", 0, true),
    ];
    let lines = series.map(|(key, what, name, colour, dashed)| {
        let values = payload::SIZES.map(|size| report.get(&format!("{key} {size} {what}"))).to_vec();
        Line { name: name.to_owned(), values, colour, dashed }
    });
    svg.lines(
        "Large arguments and results",
        "p50 in µs, logarithmic; run, warm",
        &payload::SIZES.map(payload::name_of),
        &lines,
    );

    let counts: Vec<_> = STANDING.into_iter().filter(|n| report.get(&format!("standing {n} p50")).is_some()).collect();
    let standing = |what: &str| counts.iter().map(|n| report.get(&format!("standing {n} {what}"))).collect();
    let lines = [
        Line { name: "own memory of each, kB".to_owned(), values: standing("uss"), colour: 3, dashed: false },
        Line { name: "latency of run, apart, p50 µs".to_owned(), values: standing("p50"), colour: 1, dashed: false },
    ];
    svg.lines(
        "Warm workers that stand, idle",
        "logarithmic",
        &counts.iter().map(ToString::to_string).collect::<Vec<_>>(),
        &lines,
    );
    let svg = svg.finish(machine);
    svg.contains("<polyline").then_some(svg)
}
