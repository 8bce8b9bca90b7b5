//! Where a tensor lies, what must be done to it, and its values.

use crate::blocks::decode;
use crate::dtype::{Dtype, StoredDtype};
use bytes::Bytes;
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::ops::Range;

/// A tensor's values in row-major order, little endian.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorValues {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The numbers' format.
    pub dtype: Dtype,
    /// `dtype.size()` bytes per number: the file's own where it holds the numbers like this.
    pub bytes: Bytes,
}

/// What makes the stored numbers those of the Hugging Face tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fix {
    /// Nothing: they are.
    None,
    /// GGUF interleaves the rotary pairs of llama's query and key rows; Hugging Face keeps them as halves.
    Unpermute { num_heads: usize },
    /// GGUF stores `1 + w` for Gemma's norms.
    SubtractOne,
    /// GGUF stores GPT-2's projections as `[out, in]`; Hugging Face as `[in, out]`.
    Transpose,
}

/// A tensor in a file. The range is inside the file and holds exactly the shape's numbers (checked when it was made).
#[derive(Clone, Debug)]
pub(crate) struct TensorEntry {
    pub(crate) file: usize,
    pub(crate) range: Range<usize>,
    pub(crate) stored: StoredDtype,
    /// As Hugging Face has it, the fix already applied.
    pub(crate) shape: Vec<usize>,
    pub(crate) fix: Fix,
}

/// Numbers converted at a time: a multiple of every block length, small enough to stay in the first-level cache.
const CHUNK: usize = 2048;

/// Reads a tensor whose stored bytes are `bytes` as `dtype`.
pub(crate) fn read(entry: &TensorEntry, bytes: Bytes, dtype: Dtype) -> TensorValues {
    let elements = entry.shape.iter().product::<usize>();
    let values = match entry.fix {
        Fix::None if entry.stored.plain() == Some(dtype) => bytes,
        Fix::None => convert(entry.stored, &bytes, (elements, dtype), |_| ()).into(),
        Fix::SubtractOne => {
            let subtract = |values: &mut [f32]| values.iter_mut().for_each(|value| *value -= 1.0);
            convert(entry.stored, &bytes, (elements, dtype), subtract).into()
        }
        Fix::Unpermute { num_heads } => unpermute(entry, &bytes, num_heads, dtype).into(),
        Fix::Transpose => transpose(entry, &bytes, dtype).into(),
    };
    TensorValues { shape: entry.shape.clone(), dtype, bytes: values }
}

fn convert(
    stored: StoredDtype,
    bytes: &[u8],
    (elements, dtype): (usize, Dtype),
    adjust: impl Fn(&mut [f32]),
) -> Vec<u8> {
    let mut out = vec![0; elements * dtype.size()];
    let mut buffer = [0.0; CHUNK];
    let chunk_bytes = CHUNK / stored.block_len() * stored.block_bytes();
    for (bytes, out) in bytes.chunks(chunk_bytes).zip(out.chunks_mut(CHUNK * dtype.size())) {
        let values = &mut buffer[..out.len() / dtype.size()];
        decode(stored, bytes, values);
        adjust(values);
        encode(values, dtype, out);
    }
    out
}

/// Row `pair` of half `half` of a head is stored as row `2 * pair + half` of that head.
pub(crate) fn stored_row(row: usize, head_rows: usize) -> usize {
    let (head, row_in_head) = (row / head_rows, row % head_rows);
    let (half, pair) = (row_in_head / (head_rows / 2), row_in_head % (head_rows / 2));
    head * head_rows + 2 * pair + half
}

fn unpermute(entry: &TensorEntry, bytes: &[u8], num_heads: usize, dtype: Dtype) -> Vec<u8> {
    let (rows, columns) = rows_and_columns(&entry.shape);
    let (head_rows, row_bytes) = (rows / num_heads, bytes.len() / rows);
    let mut out = vec![0; rows * columns * dtype.size()];
    let mut values = vec![0.0; columns];
    for (row, out) in out.chunks_mut(columns * dtype.size()).enumerate() {
        decode(entry.stored, &bytes[stored_row(row, head_rows) * row_bytes..][..row_bytes], &mut values);
        encode(&values, dtype, out);
    }
    out
}

fn transpose(entry: &TensorEntry, bytes: &[u8], dtype: Dtype) -> Vec<u8> {
    let (columns, rows) = rows_and_columns(&entry.shape);
    let (size, row_bytes) = (dtype.size(), bytes.len() / rows);
    let mut out = vec![0; rows * columns * size];
    let mut values = vec![0.0; columns];
    let mut encoded = vec![0; columns * size];
    for (row, bytes) in bytes.chunks(row_bytes).enumerate() {
        decode(entry.stored, bytes, &mut values);
        encode(&values, dtype, &mut encoded);
        for (column, value) in encoded.chunks(size).enumerate() {
            out[(column * rows + row) * size..][..size].copy_from_slice(value);
        }
    }
    out
}

/// A vector counts as rows of one number.
fn rows_and_columns(shape: &[usize]) -> (usize, usize) {
    (shape[0], shape[1..].iter().product())
}

/// Rounds to nearest, ties to even.
pub(crate) fn encode(values: &[f32], dtype: Dtype, out: &mut [u8]) {
    match dtype {
        Dtype::F32 => {
            for (value, bytes) in values.iter().zip(out.as_chunks_mut().0) {
                *bytes = value.to_le_bytes();
            }
        }
        Dtype::BF16 => {
            for (value, bytes) in values.iter().zip(out.as_chunks_mut().0) {
                *bytes = bf16_bits(*value).to_le_bytes();
            }
        }
        Dtype::F16 => encode_f16(values, out),
    }
}

/// Not `half`'s own conversion: this one has no branch and so is vectorised.
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet_nan = bits >> 16 | 0x40;
    (if value.is_nan() { quiet_nan } else { rounded }) as u16
}

fn encode_f16(values: &[f32], out: &mut [u8]) {
    const STRIDE: usize = 256;
    let mut halves = [f16::ZERO; STRIDE];
    for (values, out) in values.chunks(STRIDE).zip(out.chunks_mut(2 * STRIDE)) {
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        for (half, bytes) in halves.iter().zip(out.as_chunks_mut().0) {
            *bytes = half.to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn entry(shape: &[usize], fix: Fix) -> (TensorEntry, Vec<u8>) {
        let elements: usize = shape.iter().product();
        let bytes: Vec<u8> = (0..elements).flat_map(|i| (i as f32).to_le_bytes()).collect();
        (TensorEntry { file: 0, range: 0..bytes.len(), stored: StoredDtype::F32, shape: shape.to_vec(), fix }, bytes)
    }

    fn f32s(values: &TensorValues) -> Vec<f32> {
        values.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    #[test]
    fn conversions_round_like_half_over_every_bf16_and_many_f32() {
        let mut state = 1u32;
        for i in 0..200_000u32 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(if i < 65_536 { i << 16 } else { state });
            let expected = bf16::from_f32(value);
            assert!(bf16_bits(value) == expected.to_bits(), "{value:e}");
        }
    }

    #[test]
    fn half_precision_survives_a_round_trip_of_every_value() {
        let halves: Vec<u8> =
            (0..=u16::MAX).filter(|bits| !f16::from_bits(*bits).is_nan()).flat_map(u16::to_le_bytes).collect();
        let wide = convert(StoredDtype::F16, &halves, (halves.len() / 2, Dtype::F32), |_| ());
        assert_eq!(convert(StoredDtype::F32, &wide, (halves.len() / 2, Dtype::F16), |_| ()), halves);
    }

    #[test]
    fn unpermuting_gathers_the_interleaved_pairs_of_each_head() {
        let (entry, bytes) = entry(&[8, 1], Fix::Unpermute { num_heads: 2 });
        assert_eq!(f32s(&read(&entry, bytes.into(), Dtype::F32)), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }

    #[test]
    fn transposing_swaps_rows_and_columns() {
        let (entry, bytes) = entry(&[3, 2], Fix::Transpose);
        assert_eq!(f32s(&read(&entry, bytes.into(), Dtype::F32)), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }

    #[test]
    fn gemma_norms_lose_their_one() {
        let (entry, bytes) = entry(&[3], Fix::SubtractOne);
        assert_eq!(f32s(&read(&entry, bytes.into(), Dtype::F32)), [-1.0, 0.0, 1.0]);
    }
}
