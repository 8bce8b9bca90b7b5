//! Sixteen 32-bit floats side by side, on the widest vectors of the processor.
//!
//! Every instruction set gives the same bits: the lanes are always sixteen, and each operation rounds once. (Where there
//! is no fused multiply-add, `mul_add` rounds twice: bits are then equal on machines of that kind only.)

use half::{bf16, f16};

/// Partial sums kept side by side in a dot product; fixes the order of every sum.
pub(crate) const LANES: usize = 16;

/// Sixteen floats.
pub(crate) trait Lanes: Copy {
    fn zero() -> Self;
    fn load(values: &[f32; LANES]) -> Self;
    fn splat(value: f32) -> Self;
    /// `self * factor + addend` in each lane.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    fn to_array(self) -> [f32; LANES];
    /// Exact widening. (Halves are finite in any usable checkpoint.)
    fn widen_f16(values: &[f16; LANES]) -> Self;
    /// Exact widening.
    fn widen_bf16(values: &[bf16; LANES]) -> Self {
        Self::load(&values.map(|value| f32::from_bits(u32::from(value.to_bits()) << 16)))
    }
}

/// Any processor.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Lanes for Portable {
    #[inline(always)]
    fn zero() -> Self {
        Self([0.0; LANES])
    }
    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        Self(*values)
    }
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        let fused = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
        Self(std::array::from_fn(|lane| {
            let (a, b, c) = (self.0[lane], factor.0[lane], addend.0[lane]);
            if fused { a.mul_add(b, c) } else { a * b + c }
        }))
    }
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        self.0
    }
    #[inline(always)]
    fn widen_f16(values: &[f16; LANES]) -> Self {
        Self(values.map(f16::to_f32))
    }
}

/// Vectors of x86-64. The types are public to this crate only through [`with_simd`](crate::launch::with_simd), which makes
/// them after detecting their instruction set.
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use super::{LANES, Lanes, bf16, f16};
    use std::arch::x86_64::*;

    /// AVX-512: one register.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    /// AVX2 with FMA and F16C: two registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256, __m256);

    // SAFETY of every block below: `with_simd` chooses these types only after detecting the instruction sets that the
    // block uses, and loads and stores touch exactly the array behind the reference, unaligned.

    impl Lanes for Avx512 {
        #[inline(always)]
        fn zero() -> Self {
            Self(unsafe { _mm512_setzero_ps() })
        }
        #[inline(always)]
        fn load(values: &[f32; LANES]) -> Self {
            Self(unsafe { _mm512_loadu_ps(values.as_ptr()) })
        }
        #[inline(always)]
        fn splat(value: f32) -> Self {
            Self(unsafe { _mm512_set1_ps(value) })
        }
        #[inline(always)]
        fn mul_add(self, factor: Self, addend: Self) -> Self {
            Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
        }
        #[inline(always)]
        fn to_array(self) -> [f32; LANES] {
            let mut values = [0.0; LANES];
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), self.0) };
            values
        }
        #[inline(always)]
        fn widen_f16(values: &[f16; LANES]) -> Self {
            Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(values.as_ptr().cast())) })
        }
        #[inline(always)]
        fn widen_bf16(values: &[bf16; LANES]) -> Self {
            let wide = unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(values.as_ptr().cast())) };
            Self(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)) })
        }
    }

    impl Lanes for Avx2 {
        #[inline(always)]
        fn zero() -> Self {
            unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }
        #[inline(always)]
        fn load(values: &[f32; LANES]) -> Self {
            let (low, high) = values.split_at(LANES / 2);
            unsafe { Self(_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())) }
        }
        #[inline(always)]
        fn splat(value: f32) -> Self {
            unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }
        #[inline(always)]
        fn mul_add(self, factor: Self, addend: Self) -> Self {
            unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, addend.0), _mm256_fmadd_ps(self.1, factor.1, addend.1)) }
        }
        #[inline(always)]
        fn to_array(self) -> [f32; LANES] {
            let mut values = [0.0; LANES];
            let (low, high) = values.split_at_mut(LANES / 2);
            unsafe {
                _mm256_storeu_ps(low.as_mut_ptr(), self.0);
                _mm256_storeu_ps(high.as_mut_ptr(), self.1);
            }
            values
        }
        #[inline(always)]
        fn widen_f16(values: &[f16; LANES]) -> Self {
            let (low, high) = values.split_at(LANES / 2);
            unsafe {
                let half = |part: &[f16]| _mm256_cvtph_ps(_mm_loadu_si128(part.as_ptr().cast()));
                Self(half(low), half(high))
            }
        }
    }
}
