//! The simulation's own randomness: everything that happens follows from one seed.

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both possible.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        low + (self.next() % (u64::from(high - low) + 1)) as u32
    }

    /// A number from `low` to `high` whose order of magnitude is uniform, so that small ones are as frequent as large.
    pub fn magnitude(&mut self, low: u32, high: u32) -> u32 {
        let bits = self.between(low.ilog2(), high.ilog2());
        let top = (1_u64 << (bits + 1)) - 1;
        self.between(low.max(1 << bits), (high as u64).min(top) as u32)
    }

    /// As [`magnitude`](Self::magnitude), but above `high_usual` in one case of eight only: large ones cost time.
    pub fn skewed(&mut self, low: u32, high_usual: u32, high: u32) -> u32 {
        let high = if self.once_in(8) { high } else { high_usual };
        self.magnitude(low, high)
    }

    /// True once in `one_in` times; never for 0.
    pub fn once_in(&mut self, one_in: u32) -> bool {
        one_in > 0 && self.next().is_multiple_of(u64::from(one_in))
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[(self.next() % items.len() as u64) as usize]
    }
}
