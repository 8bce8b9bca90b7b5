//! Normalises and rotates queries and keys in place, one head at a time, and copies keys and values into their slots.

use burn_flex::{Flex, FlexTensor};

use super::rms_norm::normalised;
use super::{floats, floats_mut, indices};
use crate::attention::KvTensors;
use crate::e4m3::encode;
use crate::rope_and_store_kv::QkvOptions;

/// What does not change from batch to batch.
pub(super) struct Parameters {
    pub query_norm: FlexTensor,
    pub key_norm: FlexTensor,
    pub table: FlexTensor,
    pub options: QkvOptions,
}

pub(super) fn rope_and_store_kv(
    mut qkv: FlexTensor,
    parameters: &Parameters,
    (positions, slot_mapping): (&FlexTensor, &FlexTensor),
    mut cache: KvTensors<Flex>,
) -> (FlexTensor, KvTensors<Flex>) {
    let options = parameters.options;
    let heads = options.heads;
    let (query_norm, key_norm) = (floats(&parameters.query_norm), floats(&parameters.key_norm));
    let table = floats(&parameters.table);
    let (query_len, key_len) = (heads.output_len(), heads.num_kv_heads * heads.head_dim);
    let mut slots = Slots::of(&mut cache);
    let rows = floats_mut(&mut qkv).chunks_exact_mut(heads.row_len());
    for (row, (&position, &slot)) in rows.zip(indices(positions).iter().zip(indices(slot_mapping))) {
        let angles = match options.rotary_dim {
            0 => &[][..],
            dim => &table[position as usize * dim..][..dim],
        };
        for (index, head) in row[..query_len + key_len].chunks_exact_mut(heads.head_dim).enumerate() {
            let weight = if index < heads.num_heads { &query_norm } else { &key_norm };
            transform(head, weight, angles, options.norm_eps);
        }
        slots.store(slot as usize * key_len, row[query_len..].split_at(key_len));
    }
    (qkv, cache)
}

/// The elements of the cache.
enum Slots<'a> {
    Floats(&'a mut [f32], &'a mut [f32]),
    Codes(&'a mut [u8], &'a mut [u8]),
}

impl<'a> Slots<'a> {
    fn of(cache: &'a mut KvTensors<Flex>) -> Self {
        match cache {
            KvTensors::Floats(keys, values) => Slots::Floats(floats_mut(keys), floats_mut(values)),
            KvTensors::Codes(keys, values) => Slots::Codes(keys.storage_mut(), values.storage_mut()),
        }
    }

    /// Puts a token's keys and values at `first`.
    fn store(&mut self, first: usize, (keys, values): (&[f32], &[f32])) {
        match self {
            Slots::Floats(stored_keys, stored_values) => {
                stored_keys[first..][..keys.len()].copy_from_slice(keys);
                stored_values[first..][..values.len()].copy_from_slice(values);
            }
            Slots::Codes(stored_keys, stored_values) => {
                encode_into(&mut stored_keys[first..], keys);
                encode_into(&mut stored_values[first..], values);
            }
        }
    }
}

fn encode_into(codes: &mut [u8], numbers: &[f32]) {
    for (code, number) in codes.iter_mut().zip(numbers) {
        *code = encode(*number);
    }
}

/// One head: normalised when `eps` is there, then its first elements rotated by `angles` (cosines, then sines).
fn transform(head: &mut [f32], weight: &[f32], angles: &[f32], eps: Option<f32>) {
    if let Some(eps) = eps {
        let normed: Vec<f32> = normalised(head, weight, eps).collect();
        head.copy_from_slice(&normed);
    }
    let half = angles.len() / 2;
    let (cos, sin) = angles.split_at(half);
    let (first, second) = head[..2 * half].split_at_mut(half);
    for index in 0..half {
        let (a, b) = (first[index], second[index]);
        first[index] = a * cos[index] - b * sin[index];
        second[index] = b * cos[index] + a * sin[index];
    }
}
