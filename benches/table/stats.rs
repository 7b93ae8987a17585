//! Samples and ratios.

use std::time::Duration;

/// Fewer samples than this say nothing about the quantile.
const FOR_P99: usize = 300;
const FOR_P999: usize = 3000;

/// Sorted latencies in microseconds.
#[derive(Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn new(times: &[Duration]) -> Self {
        let mut samples = Self::default();
        samples.add(times);
        samples
    }

    pub(crate) fn add(&mut self, times: &[Duration]) {
        self.0.extend(times.iter().map(|time| time.as_secs_f64() * 1e6));
        self.0.sort_unstable_by(f64::total_cmp);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    fn at(&self, quantile: f64) -> f64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a position in a slice")]
        let at = (self.0.len() as f64 * quantile) as usize;
        self.0.get(at.min(self.0.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn p50(&self) -> f64 {
        self.at(0.5)
    }

    pub(crate) fn p99(&self) -> Option<f64> {
        (self.count() >= FOR_P99).then(|| self.at(0.99))
    }

    pub(crate) fn p999(&self) -> Option<f64> {
        (self.count() >= FOR_P999).then(|| self.at(0.999))
    }
}

/// The median of a batch, in microseconds.
pub(crate) fn p50(times: &[Duration]) -> f64 {
    Samples::new(times).p50()
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// The lowest and the highest.
pub(crate) fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)))
}

/// A number as a table shows it: three digits, or a dash.
pub(crate) fn show(value: Option<f64>) -> String {
    match value {
        Some(v) if v.is_finite() && v.abs() >= 100.0 => format!("{v:.0}"),
        Some(v) if v.is_finite() && v.abs() >= 10.0 => format!("{v:.1}"),
        Some(v) if v.is_finite() => format!("{v:.2}"),
        _ => "-".to_owned(),
    }
}
