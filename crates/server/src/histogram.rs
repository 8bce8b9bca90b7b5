//! A fixed-bucket histogram that many threads may observe into without locks.

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets of whole-request times in seconds.
pub const REQUEST_SECONDS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
/// Buckets of the time to the first token in seconds.
pub const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// Buckets of times per token in seconds.
pub const TOKEN_SECONDS: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
/// Buckets of tokens in one step.
pub const STEP_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
/// Buckets of how often a request was preempted.
pub const PREEMPTIONS: &[f64] = &[0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];
/// Buckets of `n`.
pub const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

/// The series 1, 2, 5, 10, 20, 50, … up to `max`: buckets of token counts.
pub fn token_counts(max: u32) -> Vec<f64> {
    let series = (0..).flat_map(|exponent| [1.0, 2.0, 5.0].map(|mantissa| mantissa * 10_f64.powi(exponent)));
    series.take_while(|&bound| bound <= f64::from(max)).collect()
}

/// Counts of observations by upper bound.
pub struct Histogram {
    bounds: Vec<f64>,
    /// One per bound, and one for everything above; not cumulative.
    counts: Vec<AtomicU64>,
    sum_bits: AtomicU64,
}

impl Histogram {
    /// An empty histogram over ascending upper bounds.
    pub fn new(bounds: impl Into<Vec<f64>>) -> Self {
        let bounds = bounds.into();
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum_bits: AtomicU64::new(0) }
    }

    /// Adds one observation.
    pub fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // The closure always returns a value, so the update cannot fail.
        let _ = self.sum_bits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Upper bounds with the number of observations at or below each; the last bound is infinite.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let mut total = 0;
        bounds.zip(&self.counts).map(move |(bound, count)| {
            total += count.load(Ordering::Relaxed);
            (bound, total)
        })
    }

    /// Sum of all observations.
    pub fn sum(&self) -> f64 {
        f64::from_bits(self.sum_bits.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_on_a_bound_counts_below_it() {
        let histogram = Histogram::new([1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.0, 9.0] {
            histogram.observe(value);
        }
        assert_eq!(histogram.cumulative().collect::<Vec<_>>(), [(1.0, 2), (2.0, 4), (f64::INFINITY, 5)]);
        assert_eq!(histogram.sum(), 14.0);
    }

    #[test]
    fn token_counts_follow_one_two_five_up_to_the_length() {
        assert_eq!(token_counts(100), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(token_counts(512).last(), Some(&500.0));
    }
}
