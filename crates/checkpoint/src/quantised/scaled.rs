//! FP8 (E4M3) and 8-bit integers times scales: one for the tensor, for each row, for groups of inputs or for blocks.

use super::parts::{FLOATS, Part, Parts};
use crate::blocks::Group;
use crate::error::Fault;
use crate::file::ModelFile;
use crate::fp8::Fp8Values;
use crate::packed::{Codes, PackedForm};
use safetensors::Dtype;

const BYTES: [Dtype; 2] = [Dtype::F8_E4M3, Dtype::I8];
/// Codes of "not a number", but for the sign.
const NOT_A_NUMBER: u8 = 0x7f;

/// A weight `number · scale`.
#[derive(Clone, Debug)]
pub(super) struct Scaled {
    /// `[out, in]`.
    pub(super) shape: [usize; 2],
    numbers: Part,
    scales: Part,
    /// Rows and columns that share a scale.
    block: [usize; 2],
}

impl Scaled {
    /// With the block that the configuration states.
    pub(super) fn new(block: Option<[usize; 2]>, parts: &Parts) -> Result<Self, Fault> {
        let numbers = parts.of_format("weight", &BYTES)?;
        let [rows @ 1..=usize::MAX, columns @ 1..=usize::MAX] = numbers.shape[..] else {
            return Err(parts.fault("weight", format!("has shape {:?}, expected a matrix", numbers.shape)));
        };
        if parts.optional("weight_zero_point").is_some() {
            return Err(Fault::unsupported(
                format!("{}.weight_zero_point", parts.name),
                "asymmetric integers of 8 bits are not supported",
            ));
        }
        let suffix = if parts.optional("weight_scale_inv").is_some() { "weight_scale_inv" } else { "weight_scale" };
        let scales = parts.of_format(suffix, &FLOATS)?;
        let shape = [rows, columns];
        let Some(block) = block_of(shape, &scales.shape, block) else {
            let problem = format!("has shape {:?}, which does not divide a weight of {shape:?}", scales.shape);
            return Err(parts.fault(suffix, problem));
        };
        Ok(Self { shape, numbers: numbers.clone(), scales: scales.clone(), block })
    }

    /// Writes rows of the weight, from the one that it is given on.
    pub(super) fn reader<'a>(&'a self, files: &'a [ModelFile]) -> impl FnMut(usize, &mut [f32]) + 'a {
        let ([_, columns], [block_rows, block_columns]) = (self.shape, self.block);
        let scales_per_row = columns.div_ceil(block_columns);
        let (numbers, scales, values_of) =
            (self.numbers.bytes(files), self.scales.floats(files), table(self.numbers.dtype));
        move |first: usize, values: &mut [f32]| {
            for (row, values) in (first..).zip(values.chunks_mut(columns)) {
                let scales = &scales[row / block_rows * scales_per_row..];
                let numbers = &numbers[row * columns..][..columns];
                for (column, (value, number)) in values.iter_mut().zip(numbers).enumerate() {
                    *value = values_of[usize::from(*number)] * scales[column / block_columns];
                }
            }
        }
    }
}

impl Scaled {
    /// The codes that hold the numbers, where devices can keep them: integers whose scales reach over whole groups.
    pub(super) fn codes(&self) -> Option<Codes> {
        let keeps = self.numbers.dtype == Dtype::I8 && self.block[1].is_multiple_of(PackedForm::GROUP);
        keeps.then_some(Codes::Bytes)
    }

    /// Whether the numbers are FP8 and each row has one scale.
    pub(super) fn is_fp8_by_rows(&self) -> bool {
        let ([rows, columns], [block_rows, block_columns]) = (self.shape, self.block);
        self.numbers.dtype == Dtype::F8_E4M3 && block_columns == columns && (block_rows == 1 || block_rows == rows)
    }

    /// The file's codes, and the scale of each row; `None` where they are otherwise, or some code is not a number, which the
    /// kernels take for one.
    pub(super) fn fp8(&self, files: &[ModelFile]) -> Option<Fp8Values> {
        let is_number = |code: &u8| code & 0x7f != NOT_A_NUMBER;
        if !self.is_fp8_by_rows() || !self.numbers.bytes(files).iter().all(is_number) {
            return None;
        }
        let scales = self.scales.floats(files);
        let scale_of = |row: usize| scales[row / self.block[0]];
        let codes = files[self.numbers.file].part(self.numbers.range.clone());
        Some(Fp8Values { codes, scales: (0..self.shape[0]).map(scale_of).collect() })
    }

    /// The groups of a row, by their index in it.
    pub(super) fn group_reader<'a>(&'a self, files: &'a [ModelFile]) -> impl Fn(usize, usize) -> Group + 'a {
        let ([_, columns], [block_rows, block_columns]) = (self.shape, self.block);
        let (numbers, scales) = (self.numbers.bytes(files), self.scales.floats(files));
        move |row: usize, index: usize| {
            let first = index * PackedForm::GROUP;
            let numbers = &numbers[row * columns + first..];
            let scale = scales[row / block_rows * columns.div_ceil(block_columns) + first / block_columns];
            Group { codes: std::array::from_fn(|i| numbers[i] as i8), first: scale, second: 0.0 }
        }
    }
}

/// How many rows and columns share a scale, when the scales have this shape.
fn block_of([rows, columns]: [usize; 2], scales: &[usize], stated: Option<[usize; 2]>) -> Option<[usize; 2]> {
    match (scales, stated) {
        ([] | [1] | [1, 1], None) => Some([rows, columns]),
        ([of_rows] | [of_rows, 1], None) if *of_rows == rows => Some([1, columns]),
        ([of_rows, groups @ 1..=usize::MAX], None) if *of_rows == rows && columns.is_multiple_of(*groups) => {
            Some([1, columns / groups])
        }
        ([down, across], Some(block)) if [rows.div_ceil(block[0]), columns.div_ceil(block[1])] == [*down, *across] => {
            Some(block)
        }
        _ => None,
    }
}

/// The number that each byte stands for.
fn table(dtype: Dtype) -> [f32; 256] {
    std::array::from_fn(|byte| if dtype == Dtype::I8 { f32::from(byte as u8 as i8) } else { e4m3(byte as u8) })
}

/// FP8 with 4 bits of exponent and 3 of fraction, without infinities (OCP 8-bit floating point, E4M3).
fn e4m3(byte: u8) -> f32 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction * 2f32.powi(-9),
        _ => (8.0 + fraction) * 2f32.powi(exponent - 10),
    };
    if byte >> 7 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_e4m3_are_the_numbers_of_its_specification() {
        for (byte, value) in
            [(0x00, 0.0), (0x01, 2f32.powi(-9)), (0x08, 2f32.powi(-6)), (0x38, 1.0), (0x7e, 448.0), (0xfe, -448.0)]
        {
            assert_eq!(e4m3(byte), value, "{byte:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }

    #[test]
    fn the_shape_of_the_scales_says_what_shares_one() {
        let weight = [6, 8];
        assert_eq!(block_of(weight, &[], None), Some([6, 8]));
        assert_eq!(block_of(weight, &[1], None), Some([6, 8]));
        assert_eq!(block_of(weight, &[6, 1], None), Some([1, 8]));
        assert_eq!(block_of(weight, &[6, 2], None), Some([1, 4]));
        assert_eq!(block_of(weight, &[2, 2], Some([4, 4])), Some([4, 4]));
        assert_eq!(block_of(weight, &[2, 2], None), None);
        assert_eq!(block_of(weight, &[3, 2], Some([4, 4])), None);
    }
}
