//! Quantised weights as their files have them ([`Packing`]), widened in registers: the sums are those of 32-bit floats, bit for bit.

use std::borrow::Cow;

use burn_flex::FlexTensor;
use bytemuck::TransparentWrapper;

use super::lanes::{LANES, Lanes};
use super::linear::multiply;
use super::math::{Unit, sum_tile};
use super::{dims2, floats, indices, tensor2};
use crate::launch::{SimdTask, with_simd};
use crate::{Codes, Packing, Scales};

/// A group of [`Packing::GROUP`] numbers.
#[derive(Clone, Copy, TransparentWrapper)]
#[repr(transparent)]
struct Group<W>(W);

/// The words of a group: those of its scales, then those of its codes.
trait Words: Copy + Send + Sync {
    /// The scale and what is added, of the first sixteen numbers and of the others; and the codes.
    fn scales_and_codes<L: Lanes>(&self) -> ([[L; 2]; 2], &[u32]);
}

/// With [`Scales::Halves`].
#[derive(Clone, Copy, TransparentWrapper)]
#[repr(transparent)]
struct Halves<const WORDS: usize>([u32; WORDS]);

/// With [`Scales::Singles`].
#[derive(Clone, Copy, TransparentWrapper)]
#[repr(transparent)]
struct Singles<const WORDS: usize>([u32; WORDS]);

/// With [`Scales::TwoRuns`].
#[derive(Clone, Copy, TransparentWrapper)]
#[repr(transparent)]
struct TwoRuns<const WORDS: usize>([u32; WORDS]);

impl<const WORDS: usize> Words for Halves<WORDS> {
    #[inline(always)]
    fn scales_and_codes<L: Lanes>(&self) -> ([[L; 2]; 2], &[u32]) {
        let both = L::splat_halves(self.0[0]);
        ([both, both], &self.0[1..])
    }
}

impl<const WORDS: usize> Words for Singles<WORDS> {
    #[inline(always)]
    fn scales_and_codes<L: Lanes>(&self) -> ([[L; 2]; 2], &[u32]) {
        let both = [L::splat(f32::from_bits(self.0[0])), L::splat(f32::from_bits(self.0[1]))];
        ([both, both], &self.0[2..])
    }
}

impl<const WORDS: usize> Words for TwoRuns<WORDS> {
    #[inline(always)]
    fn scales_and_codes<L: Lanes>(&self) -> ([[L; 2]; 2], &[u32]) {
        let run = |word: usize| [L::splat(f32::from_bits(self.0[word])), L::zero()];
        ([run(0), run(1)], &self.0[2..])
    }
}

impl<W: Words> Group<W> {
    /// The numbers. A scale's product with a code is exact, so that fusing the addition changes nothing.
    #[inline(always)]
    fn widen<L: Lanes>(&self) -> [L; 2] {
        let ([[scale, offset], [later_scale, later_offset]], codes) = self.0.scales_and_codes::<L>();
        let [first, later] = if codes.len() == 4 {
            [L::widen_nibbles([codes[0], codes[1]]), L::widen_nibbles([codes[2], codes[3]])]
        } else {
            let four = |at: usize| [codes[at], codes[at + 1], codes[at + 2], codes[at + 3]];
            [L::widen_bytes(four(0)), L::widen_bytes(four(4))]
        };
        [first.mul_add(scale, offset), later.mul_add(later_scale, later_offset)]
    }
}

impl<W: Words> Unit for Group<W> {
    const NUMBERS: usize = Packing::GROUP;

    #[inline(always)]
    fn widen_all<L: Lanes>(units: &[Self]) -> Cow<'_, [f32]> {
        let mut numbers = Vec::with_capacity(units.len() * Self::NUMBERS);
        for group in units {
            let [first, later] = group.widen::<L>();
            numbers.extend_from_slice(&first.to_array());
            numbers.extend_from_slice(&later.to_array());
        }
        numbers.into()
    }

    #[inline(always)]
    fn dot_tile<L: Lanes, const M: usize, const N: usize>(x: [&[f32]; M], w: [&[Self]; N]) -> [[f32; N]; M] {
        let groups = w[0].len();
        let mut x_chunks = [&[][..]; M];
        for m in 0..M {
            x_chunks[m] = &x[m].as_chunks::<LANES>().0[..2 * groups];
        }
        let mut rows = [&[][..]; N];
        for n in 0..N {
            rows[n] = &w[n][..groups];
        }
        let mut sums = [[L::zero(); N]; M];
        for group in 0..groups {
            let mut first = [L::zero(); M];
            let mut later = [L::zero(); M];
            for m in 0..M {
                first[m] = L::load(&x_chunks[m][2 * group]);
                later[m] = L::load(&x_chunks[m][2 * group + 1]);
            }
            for n in 0..N {
                let w = rows[n][group].widen::<L>();
                for m in 0..M {
                    sums[m][n] = later[m].mul_add(w[1], first[m].mul_add(w[0], sums[m][n]));
                }
            }
        }
        sum_tile(sums)
    }
}

/// Calls a function for groups of a packing's type with their words.
macro_rules! for_groups {
    ($words:expr, $packing:expr, $function:ident($($argument:expr),*)) => {
        match ($packing.codes, $packing.scales) {
            (Codes::FourBits, Scales::Halves) => $function(groups::<Halves<5>, 5>($words), $($argument),*),
            (Codes::FourBits, Scales::Singles) => $function(groups::<Singles<6>, 6>($words), $($argument),*),
            (Codes::FourBits, Scales::TwoRuns) => $function(groups::<TwoRuns<6>, 6>($words), $($argument),*),
            (Codes::Bytes, Scales::Halves) => $function(groups::<Halves<9>, 9>($words), $($argument),*),
            (Codes::Bytes, Scales::Singles) => $function(groups::<Singles<10>, 10>($words), $($argument),*),
            (Codes::Bytes, Scales::TwoRuns) => $function(groups::<TwoRuns<10>, 10>($words), $($argument),*),
        }
    };
}

fn groups<W: TransparentWrapper<[u32; WORDS]>, const WORDS: usize>(words: &FlexTensor) -> &[Group<W>] {
    let words: &[u32] = bytemuck::cast_slice(indices(words));
    let (groups, rest) = words.as_chunks::<WORDS>();
    assert!(rest.is_empty(), "packed rows are whole groups");
    Group::wrap_slice(W::wrap_slice(groups))
}

pub(super) fn linear_packed(
    x: &FlexTensor,
    (words, packing): (&FlexTensor, Packing),
    bias: Option<&FlexTensor>,
    residual: Option<&FlexTensor>,
) -> FlexTensor {
    let ([rows, _], [outputs, _]) = (dims2(x), dims2(words));
    let x = floats(x);
    let products = for_groups!(words, packing, products(&x, rows, outputs));
    super::linear::finish(products, [rows, outputs], bias, residual)
}

fn products<U: Unit>(weight: &[U], x: &[f32], rows: usize, outputs: usize) -> Vec<f32> {
    multiply(x, weight, rows, outputs)
}

pub(super) fn gather_packed_rows(words: &FlexTensor, ids: &FlexTensor, packing: Packing) -> FlexTensor {
    let ([outputs, _], ids) = (dims2(words), indices(ids));
    let values = for_groups!(words, packing, gathered(ids, outputs));
    let columns = values.len() / ids.len().max(1);
    tensor2(values, ids.len(), columns)
}

fn gathered<U: Unit>(table: &[U], ids: &[i32], rows: usize) -> Vec<f32> {
    let length = table.len() / rows;
    ids.iter().flat_map(|&id| with_simd(Widen(&table[id as usize * length..][..length]))).collect()
}

/// Widens a row.
struct Widen<'a, U>(&'a [U]);

impl<U: Unit> SimdTask for Widen<'_, U> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Vec<f32> {
        U::widen_all::<L>(self.0).into_owned()
    }
}
