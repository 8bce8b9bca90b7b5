//! Elementary functions and dot products that compilers turn into vector code.

use std::borrow::Cow;

use half::{bf16, f16};

use super::lanes::{LANES, Lanes, sum_lanes};

/// What a row of weights consists of: elements, or groups of them.
pub(super) trait Unit: Copy + Send + Sync {
    /// Numbers in one.
    const NUMBERS: usize;
    /// All numbers of a slice, exactly; copied only if they are not floats of 32 bits already.
    fn widen_all<L: Lanes>(units: &[Self]) -> Cow<'_, [f32]>;
    /// [`dot_tile`] of rows that are widened in registers.
    fn dot_tile<L: Lanes, const M: usize, const N: usize>(x: [&[f32]; M], w: [&[Self]; N]) -> [[f32; N]; M];
}

/// A weight element that widens to 32 bits.
pub(super) trait Element: Copy + Send + Sync {
    /// The exact value.
    fn widen(self) -> f32;
    /// Sixteen exact values.
    fn widen_lanes<L: Lanes>(values: &[Self; LANES]) -> L;
    /// See [`Unit::widen_all`].
    #[inline(always)]
    fn widen_all<L: Lanes>(values: &[Self]) -> Cow<'_, [f32]> {
        Cow::Owned(widen_all::<L, Self>(values))
    }
}

impl<W: Element> Unit for W {
    const NUMBERS: usize = 1;
    #[inline(always)]
    fn widen_all<L: Lanes>(units: &[Self]) -> Cow<'_, [f32]> {
        <W as Element>::widen_all::<L>(units)
    }
    #[inline(always)]
    fn dot_tile<L: Lanes, const M: usize, const N: usize>(x: [&[f32]; M], w: [&[Self]; N]) -> [[f32; N]; M] {
        dot_tile::<L, M, N, W>(x, w)
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn widen_lanes<L: Lanes>(values: &[Self; LANES]) -> L {
        L::load(values)
    }
    #[inline(always)]
    fn widen_all<L: Lanes>(values: &[Self]) -> Cow<'_, [f32]> {
        Cow::Borrowed(values)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn widen_lanes<L: Lanes>(values: &[Self; LANES]) -> L {
        L::widen_bf16(values)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn widen_lanes<L: Lanes>(values: &[Self; LANES]) -> L {
        L::widen_f16(values)
    }
}

/// Widens a whole slice.
#[inline(always)]
fn widen_all<L: Lanes, W: Element>(values: &[W]) -> Vec<f32> {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut out = Vec::with_capacity(values.len());
    for chunk in chunks {
        out.extend_from_slice(&W::widen_lanes::<L>(chunk).to_array());
    }
    out.extend(rest.iter().map(|&value| value.widen()));
    out
}

/// All `M × N` dot products of `M` rows of `x` with `N` rows of `w`.
///
/// Each product is summed in [`LANES`] partial sums over the row, and those in halves, whatever `M` and `N` are.
#[inline(always)]
pub(super) fn dot_tile<L: Lanes, const M: usize, const N: usize, W: Element>(
    x: [&[f32]; M],
    w: [&[W]; N],
) -> [[f32; N]; M] {
    let length = x[0].len();
    let mut x_chunks = [(&[][..], &[][..]); M];
    for m in 0..M {
        x_chunks[m] = x[m][..length].as_chunks::<LANES>();
    }
    let mut w_chunks = [(&[][..], &[][..]); N];
    for n in 0..N {
        w_chunks[n] = w[n][..length].as_chunks::<LANES>();
    }
    let mut sums = [[L::zero(); N]; M];
    for chunk in 0..length / LANES {
        // No closures around vectors: they would not inherit the caller's instruction set.
        let mut x = [L::zero(); M];
        for m in 0..M {
            x[m] = L::load(&x_chunks[m].0[chunk]);
        }
        for n in 0..N {
            let w: L = W::widen_lanes(&w_chunks[n].0[chunk]);
            for m in 0..M {
                sums[m][n] = x[m].mul_add(w, sums[m][n]);
            }
        }
    }
    if !length.is_multiple_of(LANES) {
        let mut x = [L::zero(); M];
        for m in 0..M {
            x[m] = L::load(&padded(x_chunks[m].1));
        }
        for n in 0..N {
            let w = L::load(&padded(w_chunks[n].1));
            for m in 0..M {
                sums[m][n] = x[m].mul_add(w, sums[m][n]);
            }
        }
    }
    sum_tile(sums)
}

/// The sums of the lanes of each vector.
#[inline(always)]
pub(super) fn sum_tile<L: Lanes, const M: usize, const N: usize>(sums: [[L; N]; M]) -> [[f32; N]; M] {
    let mut products = [[0.0; N]; M];
    for m in 0..M {
        let mut n = 0;
        while n + 4 <= N {
            let quad = L::sums([sums[m][n], sums[m][n + 1], sums[m][n + 2], sums[m][n + 3]]);
            products[m][n..n + 4].copy_from_slice(&quad);
            n += 4;
        }
        while n < N {
            products[m][n] = sum_lanes(sums[m][n].to_array());
            n += 1;
        }
    }
    products
}

/// The last few elements of a row and zeros.
#[inline(always)]
fn padded<W: Element>(rest: &[W]) -> [f32; LANES] {
    let mut values = [0.0; LANES];
    for (value, &element) in values.iter_mut().zip(rest) {
        *value = element.widen();
    }
    values
}

/// The sum of `f(value)` in the same fixed order as a dot product.
#[inline(always)]
pub(super) fn sum_by(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += f(chunk[lane]);
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        sums[lane] += f(value);
    }
    sum_lanes(sums)
}

/// `e^x` to within 2 units in the last place between -87 and 88, clamped outside; without branches or tables.
///
/// Range reduction to `[-ln 2 / 2, ln 2 / 2]` and a polynomial (the coefficients are those of Cephes' `expf`).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_2e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    let exponent = (shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32 + 127) << 23;
    y * f32::from_bits(exponent as u32)
}

/// `tanh(x)` through [`exp`].
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let small = x * (1.0 - x * x / 3.0);
    let e = exp(2.0 * x);
    let general = 1.0 - 2.0 / (e + 1.0);
    if x.abs() < 0.01 { small } else { general }
}

/// The error function, with an absolute error below 1.5e-7 (Abramowitz and Stegun, 7.1.26).
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let p = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    (1.0 - p * exp(-x * x)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::{SimdTask, with_simd};

    struct WidenEveryHalf;

    impl SimdTask for WidenEveryHalf {
        type Output = ();

        #[inline(always)]
        fn run<L: Lanes>(self) {
            let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|value| value.is_finite()).collect();
            for (wide, half) in widen_all::<L, f16>(&halves).into_iter().zip(&halves) {
                assert_eq!(wide.to_bits(), half.to_f32().to_bits(), "{half:?}");
            }
        }
    }

    #[test]
    fn every_finite_half_widens_exactly() {
        with_simd(WidenEveryHalf);
    }

    #[test]
    fn exponential_tanh_and_erf_are_close_to_double_precision() {
        for step in -8000..8000 {
            let x = step as f32 * 0.01;
            let error = (exp(x) as f64 / (x as f64).exp() - 1.0).abs();
            assert!(error < 3e-7, "exp({x}): {error}");
            assert!((tanh(x) as f64 - (x as f64).tanh()).abs() < 3e-7, "tanh({x})");
        }
        for (x, expected) in [(0.0, 0.0), (0.5, 0.520_499_9), (1.0, 0.842_700_8), (-2.0, -0.995_322_3)] {
            assert!((erf(x) - expected).abs() < 3e-7, "erf({x}) = {}", erf(x));
        }
    }
}
