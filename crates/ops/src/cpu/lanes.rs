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
    /// The sums of four vectors' lanes. Each is added in halves: lanes 8 apart, then 4, 2 and 1.
    #[inline(always)]
    fn sums(vectors: [Self; 4]) -> [f32; 4] {
        vectors.map(|vector| sum_lanes(vector.to_array()))
    }
    /// Exact widening. (Halves are finite in any usable checkpoint.)
    fn widen_f16(values: &[f16; LANES]) -> Self;
    /// Exact widening.
    fn widen_bf16(values: &[bf16; LANES]) -> Self {
        Self::load(&values.map(|value| f32::from_bits(u32::from(value.to_bits()) << 16)))
    }
    /// The two finite halves of a word, the lower one first, each in all lanes. Exact.
    #[inline(always)]
    fn splat_halves(word: u32) -> [Self; 2] {
        [Self::splat(widen_half(word)), Self::splat(widen_half(word >> 16))]
    }
    /// Sixteen unsigned codes of four bits, the first in the lowest bits.
    #[inline(always)]
    fn widen_nibbles(words: [u32; 2]) -> Self {
        let mut codes = [0.0; LANES];
        for (word, codes) in words.iter().zip(codes.as_chunks_mut::<8>().0) {
            for (byte, codes) in word.to_le_bytes().iter().zip(codes.as_chunks_mut::<2>().0) {
                *codes = [f32::from(byte & 15), f32::from(byte >> 4)];
            }
        }
        Self::load(&codes)
    }
    /// Sixteen signed codes of eight bits, the first in the lowest bits.
    #[inline(always)]
    fn widen_bytes(words: [u32; 4]) -> Self {
        let mut codes = [0.0; LANES];
        for (word, codes) in words.iter().zip(codes.as_chunks_mut::<4>().0) {
            *codes = word.to_le_bytes().map(|byte| f32::from(byte.cast_signed()));
        }
        Self::load(&codes)
    }
}

/// The finite half in the low bits, exactly: its exponent is moved, and scaling makes up for the other bias.
#[inline(always)]
fn widen_half(bits: u32) -> f32 {
    const SCALE: f32 = f32::from_bits((127 + 127 - 15) << 23);
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * SCALE;
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// Adds lanes in halves: 8 apart, then 4, 2 and 1.
#[inline(always)]
pub(crate) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
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
        Self(std::array::from_fn(|lane| mul_add(self.0[lane], factor.0[lane], addend.0[lane])))
    }
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        self.0
    }
    #[inline(always)]
    fn widen_f16(values: &[f16; LANES]) -> Self {
        Self(values.map(f16::to_f32))
    }
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    #[inline(always)]
    fn widen_nibbles(words: [u32; 2]) -> Self {
        use std::arch::wasm32::{i8x16_shuffle, u8x16_shr, u8x16_splat, u32x4, v128_and};
        let pairs = u32x4(words[0], words[1], 0, 0);
        let (low, high) = (v128_and(pairs, u8x16_splat(15)), u8x16_shr(pairs, 4));
        // The high nibbles of the bytes between the low ones.
        Self(wasm::floats(i8x16_shuffle::<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(low, high)))
    }
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    #[inline(always)]
    fn widen_bytes(words: [u32; 4]) -> Self {
        Self(wasm::floats(std::arch::wasm32::u32x4(words[0], words[1], words[2], words[3])))
    }
}

/// What compilers do not find by themselves.
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm {
    use std::arch::wasm32::{
        f32x4_convert_i32x4, f32x4_extract_lane, i16x8_extend_high_i8x16, i16x8_extend_low_i8x16,
        i32x4_extend_high_i16x8, i32x4_extend_low_i16x8, v128,
    };

    /// Sixteen signed bytes.
    #[inline(always)]
    pub(super) fn floats(bytes: v128) -> [f32; super::LANES] {
        let (low, high) = (i16x8_extend_low_i8x16(bytes), i16x8_extend_high_i8x16(bytes));
        let quads = [
            i32x4_extend_low_i16x8(low),
            i32x4_extend_high_i16x8(low),
            i32x4_extend_low_i16x8(high),
            i32x4_extend_high_i16x8(high),
        ];
        let mut floats = [0.0; super::LANES];
        for (floats, quad) in floats.as_chunks_mut::<4>().0.iter_mut().zip(quads) {
            let quad = f32x4_convert_i32x4(quad);
            *floats = [
                f32x4_extract_lane::<0>(quad),
                f32x4_extract_lane::<1>(quad),
                f32x4_extract_lane::<2>(quad),
                f32x4_extract_lane::<3>(quad),
            ];
        }
        floats
    }
}

/// Four floats: a vector of WebAssembly, where everything is compiled for such vectors.
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
#[derive(Clone, Copy)]
pub(super) struct Quad(std::arch::wasm32::v128);

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
impl Quad {
    #[inline(always)]
    pub(super) fn zero() -> Self {
        Self(std::arch::wasm32::f32x4_splat(0.0))
    }
    #[inline(always)]
    pub(super) fn load([a, b, c, d]: [f32; 4]) -> Self {
        Self(std::arch::wasm32::f32x4(a, b, c, d))
    }
    /// `self * factor + addend`, rounded twice: there is no fused operation.
    #[inline(always)]
    pub(super) fn mul_add(self, factor: Self, addend: Self) -> Self {
        use std::arch::wasm32::{f32x4_add, f32x4_mul};
        Self(f32x4_add(f32x4_mul(self.0, factor.0), addend.0))
    }
    #[inline(always)]
    pub(super) fn to_array(self) -> [f32; 4] {
        use std::arch::wasm32::f32x4_extract_lane;
        [
            f32x4_extract_lane::<0>(self.0),
            f32x4_extract_lane::<1>(self.0),
            f32x4_extract_lane::<2>(self.0),
            f32x4_extract_lane::<3>(self.0),
        ]
    }
}

/// Four floats of any processor, so that what is written for WebAssembly can be tested everywhere.
#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
#[derive(Clone, Copy)]
pub(super) struct Quad([f32; 4]);

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
impl Quad {
    #[inline(always)]
    pub(super) fn zero() -> Self {
        Self([0.0; 4])
    }
    #[inline(always)]
    pub(super) fn load(values: [f32; 4]) -> Self {
        Self(values)
    }
    #[inline(always)]
    pub(super) fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|lane| mul_add(self.0[lane], factor.0[lane], addend.0[lane])))
    }
    #[inline(always)]
    pub(super) fn to_array(self) -> [f32; 4] {
        self.0
    }
}

/// Fused where the processor has it.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
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

    /// Lanes 4 apart added.
    #[inline(always)]
    fn quarters(vector: __m256) -> __m128 {
        unsafe { _mm_add_ps(_mm256_castps256_ps128(vector), _mm256_extractf128_ps::<1>(vector)) }
    }

    /// The sums of four vectors of eight lanes: lanes 4 apart, then 2 and 1, all four vectors at once. (Closures would not
    /// inherit the caller's instruction set here, so nothing is mapped.)
    #[inline(always)]
    fn sums_of_halves(a: __m256, b: __m256, c: __m256, d: __m256) -> [f32; 4] {
        let (a, b, c, d) = (quarters(a), quarters(b), quarters(c), quarters(d));
        let mut sums = [0.0; 4];
        unsafe {
            let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
            let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
            let (even, odd) = (_mm_shuffle_ps::<0b10_00_10_00>(ab, cd), _mm_shuffle_ps::<0b11_01_11_01>(ab, cd));
            _mm_storeu_ps(sums.as_mut_ptr(), _mm_add_ps(even, odd));
        }
        sums
    }

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
        fn sums(vectors: [Self; 4]) -> [f32; 4] {
            let [Self(a), Self(b), Self(c), Self(d)] = vectors;
            let mut sums = [0.0; 4];
            unsafe {
                // Two vectors' halves added side by side, then all four vectors' quarters, then pairs and neighbours.
                let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
                let ab = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b));
                let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d);
                let cd = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d));
                let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
                let quarters = _mm512_add_ps(even, _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd));
                let pairs = _mm512_add_ps(quarters, _mm512_permute_ps::<0b01_00_11_10>(quarters));
                let all = _mm512_add_ps(pairs, _mm512_permute_ps::<0b10_11_00_01>(pairs));
                let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
                let packed = _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, all));
                _mm_storeu_ps(sums.as_mut_ptr(), packed);
            }
            sums
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
        #[inline(always)]
        fn splat_halves(word: u32) -> [Self; 2] {
            unsafe {
                let both = _mm_cvtph_ps(_mm_cvtsi32_si128(word.cast_signed()));
                [_mm512_broadcastss_ps(both), _mm512_broadcastss_ps(_mm_movehdup_ps(both))].map(Self)
            }
        }
        #[inline(always)]
        fn widen_nibbles(words: [u32; 2]) -> Self {
            unsafe {
                let low = _mm512_set1_epi32(words[0].cast_signed());
                let both = _mm512_mask_set1_epi32(low, 0xff00, words[1].cast_signed());
                let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
                let codes = _mm512_and_si512(_mm512_srlv_epi32(both, shifts), _mm512_set1_epi32(15));
                Self(_mm512_cvtepi32_ps(codes))
            }
        }
        #[inline(always)]
        fn widen_bytes(words: [u32; 4]) -> Self {
            Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(words.as_ptr().cast()))) })
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
        fn sums(vectors: [Self; 4]) -> [f32; 4] {
            let [a, b, c, d] = vectors;
            unsafe {
                sums_of_halves(
                    _mm256_add_ps(a.0, a.1),
                    _mm256_add_ps(b.0, b.1),
                    _mm256_add_ps(c.0, c.1),
                    _mm256_add_ps(d.0, d.1),
                )
            }
        }
        #[inline(always)]
        fn widen_f16(values: &[f16; LANES]) -> Self {
            let (low, high) = values.split_at(LANES / 2);
            unsafe {
                Self(
                    _mm256_cvtph_ps(_mm_loadu_si128(low.as_ptr().cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(high.as_ptr().cast())),
                )
            }
        }
        #[inline(always)]
        fn splat_halves(word: u32) -> [Self; 2] {
            unsafe {
                let both = _mm_cvtph_ps(_mm_cvtsi32_si128(word.cast_signed()));
                let (low, high) = (_mm256_broadcastss_ps(both), _mm256_broadcastss_ps(_mm_movehdup_ps(both)));
                [Self(low, low), Self(high, high)]
            }
        }
        #[inline(always)]
        fn widen_nibbles(words: [u32; 2]) -> Self {
            unsafe {
                let (shifts, low_bits) = (_mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28), _mm256_set1_epi32(15));
                let first = _mm256_srlv_epi32(_mm256_set1_epi32(words[0].cast_signed()), shifts);
                let second = _mm256_srlv_epi32(_mm256_set1_epi32(words[1].cast_signed()), shifts);
                Self(
                    _mm256_cvtepi32_ps(_mm256_and_si256(first, low_bits)),
                    _mm256_cvtepi32_ps(_mm256_and_si256(second, low_bits)),
                )
            }
        }
        #[inline(always)]
        fn widen_bytes(words: [u32; 4]) -> Self {
            unsafe {
                let bytes = _mm_loadu_si128(words.as_ptr().cast());
                Self(
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))),
                )
            }
        }
    }
}
