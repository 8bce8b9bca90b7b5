//! Means and percentiles.

use serde_json::{Map, Value, json};

/// Percentiles that are reported unless others are asked for.
pub const PERCENTILES: [f64; 4] = [50.0, 90.0, 95.0, 99.0];

/// A sample, sorted.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// Sorts the values; those that are no numbers are dropped.
    pub fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_unstable_by(f64::total_cmp);
        Self(values)
    }

    /// Mean; 0 of nothing.
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len().max(1) as f64
    }

    /// Standard deviation of the population.
    pub fn deviation(&self) -> f64 {
        let mean = self.mean();
        let squares: f64 = self.0.iter().map(|value| (value - mean).powi(2)).sum();
        (squares / self.0.len().max(1) as f64).sqrt()
    }

    /// The value below which `percent` of the sample lie, interpolated as numpy does; 0 of nothing.
    pub fn percentile(&self, percent: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return 0.0 };
        let place = percent.clamp(0.0, 100.0) / 100.0 * last as f64;
        let below = place.floor() as usize;
        let above = (below + 1).min(last);
        self.0[below] + (self.0[above] - self.0[below]) * place.fract()
    }

    /// Smallest value.
    pub fn min(&self) -> f64 {
        self.0.first().copied().unwrap_or(0.0)
    }

    /// Largest value.
    pub fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or(0.0)
    }

    /// `mean_NAME_ms`, `median_NAME_ms`, `std_NAME_ms` and `pXX_NAME_ms`, from seconds.
    pub fn put_ms(&self, into: &mut Map<String, Value>, name: &str) {
        into.insert(format!("mean_{name}_ms"), json!(self.mean() * 1e3));
        into.insert(format!("median_{name}_ms"), json!(self.percentile(50.0) * 1e3));
        into.insert(format!("std_{name}_ms"), json!(self.deviation() * 1e3));
        for percent in PERCENTILES {
            into.insert(format!("p{percent}_{name}_ms"), json!(self.percentile(percent) * 1e3));
        }
        into.insert(format!("min_{name}_ms"), json!(self.min() * 1e3));
        into.insert(format!("max_{name}_ms"), json!(self.max() * 1e3));
    }

    /// `mean_latency_ms`, `median_…`, `p95_…`, `p99_…`, `min_…` and `max_latency_ms`, from seconds.
    pub fn put_latency_ms(&self, into: &mut Map<String, Value>) {
        let figures = [
            ("mean", self.mean()),
            ("median", self.percentile(50.0)),
            ("p95", self.percentile(95.0)),
            ("p99", self.percentile(99.0)),
            ("min", self.min()),
            ("max", self.max()),
        ];
        for (name, seconds) in figures {
            into.insert(format!("{name}_latency_ms"), json!(seconds * 1e3));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_numpy() {
        let sample = Sample::new([4.0, 1.0, 3.0, 2.0]);
        assert_eq!((sample.mean(), sample.percentile(50.0), sample.percentile(90.0)), (2.5, 2.5, 3.7));
        assert!((sample.deviation() - 1.118_033_988_749_895).abs() < 1e-12);
        assert_eq!((sample.min(), sample.max(), sample.percentile(100.0)), (1.0, 4.0, 4.0));
    }

    #[test]
    fn nothing_has_no_figures() {
        assert_eq!((Sample::default().mean(), Sample::default().percentile(99.0)), (0.0, 0.0));
    }
}
