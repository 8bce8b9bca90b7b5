//! Decoding stored numbers to f32: one file per block format, one `match` that lists them.
//!
//! Each decoder repeats the arithmetic of the format's definition in the same order in f32, so the values are equal to
//! the reference implementation's bit for bit.

mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;

use crate::dtype::StoredDtype;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Decodes whole blocks: `bytes` holds exactly as many as fill `out`.
pub(crate) fn decode(stored: StoredDtype, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(stored.bytes_of(out.len()), Some(bytes.len()), "bytes and numbers must be the same whole blocks");
    match stored {
        StoredDtype::F32 => decode_f32(bytes, out),
        StoredDtype::F16 => decode_f16(bytes, out),
        StoredDtype::BF16 => decode_bf16(bytes, out),
        StoredDtype::Q4_0 => each_block(bytes, out, q4_0::decode),
        StoredDtype::Q4_1 => each_block(bytes, out, q4_1::decode),
        StoredDtype::Q5_0 => each_block(bytes, out, q5_0::decode),
        StoredDtype::Q5_1 => each_block(bytes, out, q5_1::decode),
        StoredDtype::Q8_0 => each_block(bytes, out, q8_0::decode),
        StoredDtype::Q4_K => each_block(bytes, out, q4_k::decode),
        StoredDtype::Q5_K => each_block(bytes, out, q5_k::decode),
        StoredDtype::Q6_K => each_block(bytes, out, q6_k::decode),
    }
}

/// 32 numbers that share scales, taken apart: number i is `first * codes[i] + second`. In Q6_K, whose scales reach over 16,
/// `first` is the scale of the first half and `second` that of the other.
#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub(crate) codes: [i8; 32],
    pub(crate) first: f32,
    pub(crate) second: f32,
}

/// Takes whole blocks apart, group by group; plain formats have none.
pub(crate) fn each_group(stored: StoredDtype, bytes: &[u8], take: &mut dyn FnMut(&Group)) {
    match stored {
        StoredDtype::F32 | StoredDtype::F16 | StoredDtype::BF16 => {}
        StoredDtype::Q4_0 => groups_of(bytes, q4_0::groups, take),
        StoredDtype::Q4_1 => groups_of(bytes, q4_1::groups, take),
        StoredDtype::Q5_0 => groups_of(bytes, q5_0::groups, take),
        StoredDtype::Q5_1 => groups_of(bytes, q5_1::groups, take),
        StoredDtype::Q8_0 => groups_of(bytes, q8_0::groups, take),
        StoredDtype::Q4_K => groups_of(bytes, q4_k::groups, take),
        StoredDtype::Q5_K => groups_of(bytes, q5_k::groups, take),
        StoredDtype::Q6_K => groups_of(bytes, q6_k::groups, take),
    }
}

fn groups_of<const BYTES: usize, const COUNT: usize>(
    bytes: &[u8],
    groups: impl Fn(&[u8; BYTES]) -> [Group; COUNT],
    take: &mut dyn FnMut(&Group),
) {
    for block in bytes.as_chunks::<BYTES>().0 {
        groups(block).iter().for_each(&mut *take);
    }
}

/// The 32 nibbles of 16 bytes as the formats without K have them: low ones first, then high ones.
fn nibbles(bytes: &[u8]) -> [i8; 32] {
    std::array::from_fn(|i| (bytes[i % 16] >> (i / 16 * 4) & 0x0f) as i8)
}

/// The same topped by fifth bits.
fn five_bits(bytes: &[u8], fifth: &[u8]) -> [i8; 32] {
    let low = nibbles(bytes);
    std::array::from_fn(|i| low[i] | ((fifth[i / 8] >> (i % 8) & 1) << 4) as i8)
}

fn each_block<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let (values, _) = out.as_chunks_mut::<LEN>();
    for (block, values) in blocks.iter().zip(values) {
        decode(block, values);
    }
}

fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    for (bytes, value) in bytes.as_chunks().0.iter().zip(out) {
        *value = f32::from_le_bytes(*bytes);
    }
}

fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (bytes, value) in bytes.as_chunks().0.iter().zip(out) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    const STRIDE: usize = 256;
    let mut halves = [f16::ZERO; STRIDE];
    for (bytes, values) in bytes.chunks(2 * STRIDE).zip(out.chunks_mut(STRIDE)) {
        let halves = &mut halves[..values.len()];
        for (bytes, half) in bytes.as_chunks().0.iter().zip(halves.iter_mut()) {
            *half = f16::from_le_bytes(*bytes);
        }
        halves.convert_to_f32_slice(values);
    }
}

/// The half-precision scale at `offset` of a block.
fn scale(block: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

/// The 6-bit scales and minima of a K block's eight groups, packed into 12 bytes: the first four of each in the low
/// six bits of bytes 0..4 and 4..8; the last four in the nibbles of bytes 8..12, topped by the two high bits of 0..8.
fn k_scales(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    for i in 0..4 {
        let (low_scale, low_minimum, nibbles) = (packed[i], packed[4 + i], packed[8 + i]);
        scales[i] = low_scale & 0x3f;
        minima[i] = low_minimum & 0x3f;
        scales[4 + i] = (nibbles & 0x0f) | (low_scale >> 2 & 0x30);
        minima[4 + i] = (nibbles >> 4) | (low_minimum >> 2 & 0x30);
    }
    (scales, minima)
}
