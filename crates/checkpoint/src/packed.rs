//! Quantised matrices as devices keep them: the file's own codes and scales, laid out in 32-bit words.
//!
//! Every 32 consecutive numbers of a row are a group: one or two words of scales, then the codes, the first in the lowest
//! bits. The numbers are those that [`Checkpoint::read`](crate::Checkpoint::read) gives in float32, bit for bit, but for the
//! sign of zeros. Matrices that are stored transposed are not packed, nor are scales beyond the range of a half.
//! Weights in several stored parts are packed where 32 inputs in order share a scale.

use crate::blocks::{Group, each_group};
use crate::dtype::StoredDtype;
use crate::tensor::{Fix, TensorEntry, stored_row};
use half::f16;

/// How a group of 32 numbers lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedForm {
    /// The codes.
    pub codes: Codes,
    /// The words before them.
    pub scales: Scales,
}

/// What stands for a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// Unsigned, eight in a word.
    FourBits,
    /// Signed, four in a word.
    Bytes,
}

/// What makes numbers of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// One word: a scale, and above it what is added, in half precision.
    Halves,
    /// Two words: a scale, then what is added, in single precision.
    Singles,
    /// Two words in single precision: the scale of the first 16 numbers, then that of the others.
    TwoRuns,
}

impl PackedForm {
    /// Numbers in a group.
    pub const GROUP: usize = 32;

    /// Words of a group.
    pub const fn words(self) -> usize {
        let codes = match self.codes {
            Codes::FourBits => Self::GROUP / 8,
            Codes::Bytes => Self::GROUP / 4,
        };
        codes + if matches!(self.scales, Scales::Halves) { 1 } else { 2 }
    }
}

/// A matrix in a packed form.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedValues {
    /// How its groups lie.
    pub form: PackedForm,
    /// Row by row, little endian.
    pub bytes: Vec<u8>,
}

impl StoredDtype {
    /// The packed form that holds the format's numbers exactly; plain formats have none.
    pub const fn packed_form(self) -> Option<PackedForm> {
        let (codes, scales) = match self {
            Self::F32 | Self::F16 | Self::BF16 => return None,
            Self::Q4_0 | Self::Q4_1 => (Codes::FourBits, Scales::Halves),
            Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => (Codes::Bytes, Scales::Halves),
            Self::Q4_K => (Codes::FourBits, Scales::Singles),
            Self::Q5_K => (Codes::Bytes, Scales::Singles),
            Self::Q6_K => (Codes::Bytes, Scales::TwoRuns),
        };
        Some(PackedForm { codes, scales })
    }
}

/// The form that a tensor would be packed in, judged by its header alone.
pub(crate) fn form_of(entry: &TensorEntry) -> Option<PackedForm> {
    let is_matrix = entry.shape.len() == 2 && entry.shape[1].is_multiple_of(entry.stored.block_len());
    let keeps_rows = matches!(entry.fix, Fix::None | Fix::Unpermute { .. });
    entry.stored.packed_form().filter(|_| is_matrix && keeps_rows)
}

/// Packs a tensor whose stored bytes are `bytes`.
pub(crate) fn pack(entry: &TensorEntry, bytes: &[u8]) -> Option<PackedValues> {
    let form = form_of(entry)?;
    let (rows, columns) = (entry.shape[0], entry.shape[1]);
    let row_bytes = bytes.len() / rows.max(1);
    let mut packed = Vec::with_capacity(rows * columns / PackedForm::GROUP * form.words() * 4);
    let mut is_exact = true;
    for row in 0..rows {
        let row = match entry.fix {
            Fix::Unpermute { num_heads } => stored_row(row, rows / num_heads),
            _ => row,
        };
        each_group(entry.stored, &bytes[row * row_bytes..][..row_bytes], &mut |group| {
            is_exact &= write_group(group, form, &mut packed);
        });
    }
    is_exact.then_some(PackedValues { form, bytes: packed })
}

/// False where a scale does not fit into its form.
pub(crate) fn write_group(group: &Group, form: PackedForm, out: &mut Vec<u8>) -> bool {
    let mut is_exact = true;
    match form.scales {
        Scales::Halves => {
            for scale in [group.first, group.second] {
                let half = f16::from_f32(scale);
                is_exact &= half.is_finite();
                out.extend_from_slice(&half.to_le_bytes());
            }
        }
        Scales::Singles | Scales::TwoRuns => {
            out.extend_from_slice(&group.first.to_le_bytes());
            out.extend_from_slice(&group.second.to_le_bytes());
        }
    }
    match form.codes {
        Codes::FourBits => {
            let pairs = group.codes.as_chunks::<2>().0;
            out.extend(pairs.iter().map(|[low, high]| (*low as u8) | (*high as u8) << 4));
        }
        Codes::Bytes => out.extend(group.codes.iter().map(|code| *code as u8)),
    }
    is_exact
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::decode;

    /// Blocks of arbitrary bits, except that halves at `scales` are small numbers.
    fn blocks(stored: StoredDtype, count: usize) -> Vec<u8> {
        let scales: &[usize] = match stored {
            StoredDtype::Q4_0 | StoredDtype::Q5_0 | StoredDtype::Q8_0 => &[0],
            StoredDtype::Q6_K => &[208],
            _ => &[0, 2],
        };
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        let mut bytes: Vec<u8> = (0..count * stored.block_bytes()).map(|_| next() as u8).collect();
        for block in bytes.chunks_mut(stored.block_bytes()) {
            for at in scales {
                let scale = f16::from_f32(next() as f32 / (1 << 24) as f32 - 0.5);
                block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        bytes
    }

    fn quantised() -> impl Iterator<Item = (StoredDtype, PackedForm)> {
        StoredDtype::ALL.into_iter().filter_map(|stored| Some((stored, stored.packed_form()?)))
    }

    fn matrix(stored: StoredDtype, shape: [usize; 2], fix: Fix) -> TensorEntry {
        TensorEntry { file: 0, range: 0..0, stored, shape: shape.to_vec(), fix }
    }

    /// What a device makes of packed words, written apart from how they are made.
    fn unpacked(values: &PackedValues) -> Vec<f32> {
        let mut numbers = Vec::new();
        let words: Vec<u32> = values.bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        for group in words.chunks(values.form.words()) {
            let half = |word: u32| f16::from_bits(word as u16).to_f32();
            let (first, second, codes) = match values.form.scales {
                Scales::Halves => (half(group[0]), half(group[0] >> 16), &group[1..]),
                _ => (f32::from_bits(group[0]), f32::from_bits(group[1]), &group[2..]),
            };
            numbers.extend((0..PackedForm::GROUP).map(|i| {
                let code = match values.form.codes {
                    Codes::FourBits => (codes[i / 8] >> (i % 8 * 4) & 15) as f32,
                    Codes::Bytes => f32::from((codes[i / 4] >> (i % 4 * 8)) as i8),
                };
                match values.form.scales {
                    Scales::TwoRuns => code * if i < 16 { first } else { second },
                    _ => first * code + second,
                }
            }));
        }
        numbers
    }

    #[test]
    fn packed_numbers_are_the_decoded_ones_in_every_format() {
        for (stored, form) in quantised() {
            let (rows, columns) = (3, 2 * stored.block_len());
            let bytes = blocks(stored, 6);
            let mut expected = vec![0.0; rows * columns];
            decode(stored, &bytes, &mut expected);
            let packed = pack(&matrix(stored, [rows, columns], Fix::None), &bytes).expect("small scales");
            assert_eq!(packed.bytes.len(), rows * columns / 32 * form.words() * 4, "{stored}");
            assert_eq!(unpacked(&packed), expected, "{stored}");
        }
    }

    #[test]
    fn rows_of_rotary_heads_are_put_in_order() {
        let bytes = blocks(StoredDtype::Q4_0, 8);
        let entry = matrix(StoredDtype::Q4_0, [8, 32], Fix::Unpermute { num_heads: 2 });
        let expected = crate::tensor::read(&entry, bytes.clone().into(), crate::Dtype::F32).bytes;
        let expected: Vec<f32> = expected.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        assert_eq!(unpacked(&pack(&entry, &bytes).expect("small scales")), expected);
    }

    #[test]
    fn what_cannot_be_packed_exactly_is_not() {
        let mut bytes = blocks(StoredDtype::Q4_0, 1);
        bytes[..2].copy_from_slice(&f16::MAX.to_le_bytes());
        assert_eq!(pack(&matrix(StoredDtype::Q4_0, [1, 32], Fix::None), &bytes), None);
        assert_eq!(form_of(&matrix(StoredDtype::Q4_0, [32, 32], Fix::Transpose)), None);
        assert_eq!(form_of(&matrix(StoredDtype::F16, [32, 32], Fix::None)), None);
    }
}
