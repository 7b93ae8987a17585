//! How long something took, many times: counted in buckets, so that it costs one addition.

use std::time::Duration;

/// Sub-buckets of a power of two: a quantile is right within a fifth.
const SUB_BITS: u32 = 2;
/// Up to 2^40 ns, a quarter of an hour; what takes longer counts as that.
pub(crate) const BUCKETS: usize = 40 << SUB_BITS;

/// The bucket of a duration.
pub(crate) fn bucket(duration: Duration) -> usize {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1 << SUB_BITS);
    let power = nanos.ilog2();
    let sub = (nanos >> (power - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    let at = (u64::from(power) << SUB_BITS) + sub;
    usize::try_from(at).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The largest duration of a bucket.
fn ceiling(bucket: usize) -> Duration {
    let (power, sub) = (bucket >> SUB_BITS, bucket as u64 & ((1 << SUB_BITS) - 1));
    let power = u32::try_from(power).unwrap_or(u32::MAX).max(SUB_BITS);
    Duration::from_nanos(((1 << SUB_BITS) + sub + 1) << (power - SUB_BITS))
}

/// How long one stage of a task took, over all tasks so far. See [`Metrics`](crate::Metrics).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Latency {
    pub(crate) buckets: Vec<u64>,
    pub(crate) total: Duration,
}

impl Latency {
    /// How often it was measured.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The sum of all.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// The mean, or zero if it was never measured.
    pub fn mean(&self) -> Duration {
        let nanos = self.total.as_nanos().checked_div(self.count().into()).unwrap_or(0);
        Duration::from_nanos(nanos.try_into().unwrap_or(u64::MAX))
    }

    /// What `quantile` (from 0 to 1) of the measurements were not above, a fifth too large at most; zero if it was never
    /// measured.
    pub fn quantile(&self, quantile: f64) -> Duration {
        let mut left = (self.count() as f64 * quantile.clamp(0.0, 1.0)).ceil().max(1.0);
        for (bucket, &count) in self.buckets.iter().enumerate() {
            left -= count as f64;
            if left <= 0.0 && count > 0 {
                return ceiling(bucket);
            }
        }
        Duration::ZERO
    }
}

impl std::fmt::Debug for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (p50, p99) = (self.quantile(0.5), self.quantile(0.99));
        f.debug_struct("Latency")
            .field("count", &self.count())
            .field("p50", &p50)
            .field("p99", &p99)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_is_near() {
        let mut last = 0;
        for exponent in 0..50 {
            for nanos in [1_u64 << exponent, (1 << exponent) + (1 << exponent) / 2] {
                let at = bucket(Duration::from_nanos(nanos));
                assert!(at >= last && at < BUCKETS);
                last = at;
                if nanos > 8 && at < BUCKETS - 1 {
                    let ceiling = ceiling(at).as_nanos() as f64;
                    assert!(ceiling > nanos as f64 && ceiling <= nanos as f64 * 1.26, "{nanos}: {ceiling}");
                }
            }
        }
    }

    #[test]
    fn quantiles_are_near() {
        let mut latency = Latency { buckets: vec![0; BUCKETS], total: Duration::ZERO };
        assert_eq!((latency.quantile(0.5), latency.mean()), (Duration::ZERO, Duration::ZERO));
        for micros in 1..=1000 {
            latency.buckets[bucket(Duration::from_micros(micros))] += 1;
            latency.total += Duration::from_micros(micros);
        }
        assert_eq!((latency.count(), latency.mean()), (1000, Duration::from_nanos(500_500)));
        for (quantile, micros) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = latency.quantile(quantile).as_secs_f64() * 1e6;
            assert!(found >= micros && found <= micros * 1.26, "{quantile}: {found}");
        }
    }
}
