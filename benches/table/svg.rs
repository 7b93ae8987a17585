//! Just enough SVG for bars and lines on a logarithmic scale. Colours follow the reader's light or dark mode.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
const STYLE: &str = "
text { font: 13px system-ui, sans-serif; fill: #1f2937 } .title { font-size: 16px; font-weight: 600 }
.muted { fill: #6b7280; font-size: 12px } .paper { fill: #ffffff } .grid { stroke: #e5e7eb } .axis { stroke: #9ca3af }
.f0 { fill: #94a3b8 } .f1 { fill: #2563eb } .f2 { fill: #0e9f6e } .f3 { fill: #d97706 } .f4 { fill: #7c3aed }
.s0 { stroke: #94a3b8 } .s1 { stroke: #2563eb } .s2 { stroke: #0e9f6e } .s3 { stroke: #d97706 } .s4 { stroke: #7c3aed }
@media (prefers-color-scheme: dark) {
text { fill: #e5e7eb } .muted { fill: #9ca3af } .paper { fill: #0d1117 } .grid { stroke: #252c35 } .axis { stroke: #6b7280 }
.f0 { fill: #64748b } .f1 { fill: #60a5fa } .f2 { fill: #34d399 } .f3 { fill: #fbbf24 } .f4 { fill: #a78bfa }
.s0 { stroke: #64748b } .s1 { stroke: #60a5fa } .s2 { stroke: #34d399 } .s3 { stroke: #fbbf24 } .s4 { stroke: #a78bfa }
}";

/// One of five; 0 is grey, for what is not ours.
pub(crate) type Colour = usize;

/// A bar of a chart.
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    /// A thin line up to here, such as the 99th percentile.
    pub(crate) up_to: Option<f64>,
    /// Written behind it.
    pub(crate) label: String,
    pub(crate) colour: Colour,
}

/// A line of a chart: a value, or none, for each place on the x axis.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) values: Vec<Option<f64>>,
    pub(crate) colour: Colour,
    pub(crate) dashed: bool,
}

/// Charts, one below the other.
pub(crate) struct Svg {
    body: String,
    height: f64,
}

/// A logarithmic scale.
struct Log {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Log {
    /// From a round number below the values to one above, in steps of 1, 2, 5.
    fn over(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Option<Self> {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(0.0, f64::max);
        let steps = || (-9..12).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(power)));
        let low = steps().rfind(|&step| step <= low * 0.999)?;
        let high = steps().find(|&step| step >= high * 1.001)?;
        Some(Self { low, high, from, to })
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (self.to - self.from) * (value / self.low).ln() / (self.high / self.low).ln()
    }

    /// Round numbers for the axis: powers of ten, and what is between if there are few.
    fn ticks(&self) -> Vec<f64> {
        let steps: &[f64] = if self.high / self.low > 2000.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let all = (-9..12).flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)));
        all.filter(|tick| (self.low * 0.999..=self.high * 1.001).contains(tick)).collect()
    }
}

/// A number with as few digits as possible.
pub(crate) fn short(value: f64) -> String {
    let (value, suffix) = match value {
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e4 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let digits = match value {
        v if v >= 99.5 || v.fract().abs() < 1e-9 => 0,
        v if v >= 9.95 => 1,
        _ => 2,
    };
    let number = format!("{value:.digits$}");
    let number = if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { &number };
    format!("{number}{suffix}")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Svg {
    pub(crate) fn new() -> Self {
        Self { body: String::new(), height: 0.0 }
    }

    fn text(&mut self, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
        let text = escape(text);
        let _ =
            writeln!(self.body, r#"<text x="{x:.1}" y="{y:.1}" class="{class}" text-anchor="{anchor}">{text}</text>"#);
    }

    fn line(&mut self, [x1, y1, x2, y2]: [f64; 4], class: &str, width: f64) {
        let _ = writeln!(
            self.body,
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}" stroke-width="{width}"/>"#
        );
    }

    fn title(&mut self, title: &str, subtitle: &str) {
        self.text(16.0, self.height + 28.0, "title", "start", title);
        self.text(16.0, self.height + 47.0, "muted", "start", subtitle);
        self.height += 62.0;
    }

    /// Horizontal bars.
    pub(crate) fn bars(&mut self, title: &str, subtitle: &str, bars: &[Bar]) {
        const NAMES: f64 = 240.0;
        const STEP: f64 = 27.0;
        let values = bars.iter().flat_map(|bar| [Some(bar.value), bar.up_to]).flatten();
        let Some(scale) = Log::over(values, NAMES, WIDTH - 150.0) else { return };
        self.title(title, subtitle);
        let (top, bottom) = (self.height, self.height + STEP * bars.len() as f64);
        for tick in scale.ticks() {
            let x = scale.at(tick);
            self.line([x, top, x, bottom], "grid", 1.0);
            self.text(x, bottom + 17.0, "muted", "middle", &short(tick));
        }
        for (n, bar) in bars.iter().enumerate() {
            let middle = top + STEP * (n as f64 + 0.5);
            let end = scale.at(bar.value);
            self.text(NAMES - 10.0, middle + 4.5, "", "end", &bar.name);
            let (y, width, colour) = (middle - 8.5, (end - NAMES).max(1.0), bar.colour);
            let _ = writeln!(
                self.body,
                r#"<rect x="{NAMES}" y="{y:.1}" width="{width:.1}" height="17" rx="2" class="f{colour}"/>"#
            );
            let far = bar.up_to.map_or(end, |far| scale.at(far)).max(end);
            if far > end {
                self.line([end, middle, far, middle], &format!("s{colour}"), 1.5);
                self.line([far, middle - 4.0, far, middle + 4.0], &format!("s{colour}"), 1.5);
            }
            self.text(far + 8.0, middle + 4.5, "muted", "start", &bar.label);
        }
        self.line([NAMES, top, NAMES, bottom], "axis", 1.0);
        self.height = bottom + 34.0;
    }

    /// Lines over named places, with their names at the right end.
    pub(crate) fn lines(&mut self, title: &str, subtitle: &str, places: &[String], lines: &[Line]) {
        const LEFT: f64 = 64.0;
        const RIGHT: f64 = WIDTH - 250.0;
        const HIGH: f64 = 260.0;
        let values = lines.iter().flat_map(|line| line.values.iter().flatten().copied());
        let (top, bottom) = (self.height + 66.0, self.height + 66.0 + HIGH);
        let Some(scale) = Log::over(values, bottom, top) else { return };
        self.title(title, subtitle);
        for tick in scale.ticks() {
            let y = scale.at(tick);
            self.line([LEFT, y, RIGHT, y], "grid", 1.0);
            self.text(LEFT - 8.0, y + 4.0, "muted", "end", &short(tick));
        }
        let step = (RIGHT - LEFT) / places.len() as f64;
        let x = |n: usize| LEFT + step * (n as f64 + 0.5);
        for (n, place) in places.iter().enumerate() {
            self.text(x(n), bottom + 18.0, "muted", "middle", place);
        }
        self.line([LEFT, bottom, RIGHT, bottom], "axis", 1.0);
        let mut names: Vec<(f64, &Line)> = Vec::new();
        for line in lines {
            let points: Vec<_> =
                line.values.iter().enumerate().filter_map(|(n, v)| Some((x(n), scale.at((*v)?)))).collect();
            let Some(&(_, last)) = points.last() else { continue };
            let list: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let (list, colour) = (list.join(" "), line.colour);
            let dash = if line.dashed { r#" stroke-dasharray="5 4""# } else { "" };
            let _ = writeln!(
                self.body,
                r#"<polyline points="{list}" fill="none" class="s{colour}" stroke-width="2.2"{dash}/>"#
            );
            for (x, y) in points {
                let _ = writeln!(self.body, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" class="f{colour}"/>"#);
            }
            names.push((last, line));
        }
        // Names that would overlap move apart: down from the top, then back up from the bottom.
        names.sort_by(|a, b| a.0.total_cmp(&b.0));
        for n in 1..names.len() {
            names[n].0 = names[n].0.max(names[n - 1].0 + 17.0);
        }
        let mut lowest = bottom;
        for (y, line) in names.into_iter().rev() {
            let y = y.min(lowest);
            lowest = y - 17.0;
            let colour = line.colour;
            let _ = writeln!(self.body, r#"<circle cx="{:.1}" cy="{y:.1}" r="4" class="f{colour}"/>"#, RIGHT + 12.0);
            self.text(RIGHT + 22.0, y + 4.5, "", "start", &line.name);
        }
        self.height = bottom + 36.0;
    }

    pub(crate) fn finish(mut self, footer: &str) -> String {
        self.text(16.0, self.height + 12.0, "muted", "start", footer);
        let (height, body) = (self.height + 28.0, self.body);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" width=\"{WIDTH:.0}\" \
             height=\"{height:.0}\">\n<style>{STYLE}\n</style>\n<rect width=\"100%\" height=\"100%\" rx=\"6\" \
             class=\"paper\"/>\n{body}</svg>\n"
        )
    }
}
