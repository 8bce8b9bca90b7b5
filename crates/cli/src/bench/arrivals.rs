//! Seeded chance: when requests arrive and what is in them. The same seed gives the same benchmark everywhere.

/// A small generator of 64-bit numbers (splitmix64, Steele et al., 2014).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// Begins a series.
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly from 0 up to, not including, 1.
    pub fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Evenly from 0 up to, not including, `limit`, which is at least 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit.max(1))) >> 64) as u64
    }
}

/// Seconds after the start at which each request is sent: a Poisson process, or all at once at an infinite rate.
pub fn arrival_times(count: usize, rate: f64, chance: &mut Chance) -> Vec<f64> {
    let mut now = 0.0;
    let mut next = || {
        let here = now;
        now += if rate.is_finite() { -(1.0 - chance.share()).ln() / rate } else { 0.0 };
        here
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_keep_their_rate() {
        let times = arrival_times(10_000, 5.0, &mut Chance::new(1));
        let rate = 10_000.0 / times[9_999];
        assert!((rate - 5.0).abs() < 0.2, "{rate}");
        assert_eq!(arrival_times(3, f64::INFINITY, &mut Chance::new(1)), [0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_seed_repeats() {
        let series = |seed| (0..5).map(|_| Chance::new(seed).below(100)).collect::<Vec<_>>();
        assert_eq!(series(3), series(3));
    }
}
