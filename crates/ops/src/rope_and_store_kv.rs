//! What happens to the fused query/key/value projection before attention: per-head normalisation (Qwen3, Gemma 3),
//! rotary embedding (Su et al., 2021, in the half-rotation form of GPT-NeoX and Llama), and the write into the KV cache.

use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

use crate::FusedOps;
use crate::attention::{AttentionMetadata, KvLayer};

/// How a row of the fused projection is divided: `num_heads` queries, then `num_kv_heads` keys, then as many values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLayout {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Length of one head.
    pub head_dim: usize,
}

impl HeadLayout {
    /// Length of a row of the fused projection.
    pub fn row_len(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Length of a row of attention's output.
    pub fn output_len(&self) -> usize {
        self.num_heads * self.head_dim
    }
}

/// What [`rope_and_store_kv`] does besides storing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkvOptions {
    /// The division of a row.
    pub heads: HeadLayout,
    /// Leading elements of each head that are rotated; 0 for none.
    pub rotary_dim: usize,
    /// Epsilon of the per-head normalisation of queries and keys; `None` for none.
    pub norm_eps: Option<f32>,
}

/// Cosines and sines of the rotary embedding: row `p` holds `rotary_dim / 2` cosines, then as many sines, of position `p`.
#[derive(Clone, Debug)]
pub struct RopeTable(pub Tensor<2>);

/// Normalises and rotates queries and keys; queries change in place in `qkv`, keys and values go into `layer`.
///
/// `qkv` is `[T, heads.row_len()]`; `norms` are the `[head_dim]` weights of the query and key normalisation, present
/// exactly when `options.norm_eps` is; `table` is present exactly when `options.rotary_dim` is not 0. Token `t` is written
/// to slot `metadata.slot_mapping[t]`. Returns `qkv`, whose keys are then those of before or those that were written.
pub fn rope_and_store_kv(
    qkv: Tensor<2>,
    norms: Option<(&Tensor<1>, &Tensor<1>)>,
    table: Option<&RopeTable>,
    metadata: &AttentionMetadata,
    layer: (&mut KvLayer, QkvOptions),
) -> Tensor<2> {
    let (layer, options) = layer;
    check_operands(qkv.dims()[1], norms.is_some(), table.is_some(), options);
    // Absent weights are never read; the integer positions' companion stands in for them.
    let absent = || layer.absent.clone().into_dispatch();
    let (query_norm, key_norm) = match norms {
        Some((query, key)) => (query.clone().into_dispatch(), key.clone().into_dispatch()),
        None => (absent(), absent()),
    };
    let table = table.map_or_else(absent, |table| table.0.clone().into_dispatch());
    let (qkv, cache) = Dispatch::rope_and_store_kv(
        qkv.into_dispatch(),
        query_norm,
        key_norm,
        table,
        metadata.positions.clone().into_dispatch(),
        metadata.slot_mapping.clone().into_dispatch(),
        layer.take(),
        options,
    );
    layer.put(cache);
    Tensor::from_dispatch(qkv)
}

/// Whether the operands are those that the options speak of.
pub(crate) fn check_operands(row_len: usize, has_norms: bool, has_table: bool, options: QkvOptions) {
    assert_eq!(row_len, options.heads.row_len(), "rope_and_store_kv: row length");
    assert_eq!(has_norms, options.norm_eps.is_some(), "rope_and_store_kv: norms");
    assert_eq!(has_table, options.rotary_dim != 0, "rope_and_store_kv: table");
}

/// The transformation of queries and keys in plain tensor operations, without the store: `[T, row_len]` to the same.
pub fn reference(
    qkv: Tensor<2>,
    norms: Option<(&Tensor<1>, &Tensor<1>)>,
    table: Option<&RopeTable>,
    positions: &Tensor<1, Int>,
    options: QkvOptions,
) -> Tensor<2> {
    let heads = options.heads;
    let [tokens, _] = qkv.dims();
    let part = |first: usize, count: usize| {
        let columns = first * heads.head_dim..(first + count) * heads.head_dim;
        qkv.clone().slice([0..tokens, columns]).reshape([tokens, count, heads.head_dim])
    };
    let transform = |x: Tensor<3>, norm: Option<&Tensor<1>>| {
        let x = match (norm, options.norm_eps) {
            (Some(weight), Some(eps)) => {
                let mean_square = x.clone().powf_scalar(2.0).mean_dim(2);
                x / (mean_square + eps).sqrt() * weight.clone().unsqueeze::<3>()
            }
            _ => x,
        };
        match table {
            Some(table) => rotate(x, table.0.clone().select(0, positions.clone())),
            None => x,
        }
    };
    let query = transform(part(0, heads.num_heads), norms.map(|norms| norms.0));
    let key = transform(part(heads.num_heads, heads.num_kv_heads), norms.map(|norms| norms.1));
    let value = part(heads.num_heads + heads.num_kv_heads, heads.num_kv_heads);
    Tensor::cat(vec![query, key, value], 1).reshape([tokens, heads.row_len()])
}

/// Rotates the leading `rotary_dim` elements of each head of `x` `[T, heads, head_dim]` by `table` `[T, rotary_dim]`.
fn rotate(x: Tensor<3>, table: Tensor<2>) -> Tensor<3> {
    let [tokens, count, head_dim] = x.dims();
    let rotary_dim = table.dims()[1];
    let half = rotary_dim / 2;
    let cos = table.clone().slice([0..tokens, 0..half]).unsqueeze_dim::<3>(1);
    let sin = table.slice([0..tokens, half..rotary_dim]).unsqueeze_dim::<3>(1);
    let first = x.clone().slice([0..tokens, 0..count, 0..half]);
    let second = x.clone().slice([0..tokens, 0..count, half..rotary_dim]);
    let rotated = vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin];
    if rotary_dim == head_dim {
        return Tensor::cat(rotated, 2);
    }
    let rest = x.slice([0..tokens, 0..count, rotary_dim..head_dim]);
    Tensor::cat(rotated.into_iter().chain([rest]).collect(), 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e4m3::{E4M3, decode, encode};
    use crate::testing::{AttentionCase, Seeded, assert_close, for_each_device};
    use crate::{float_tensor, holds_fp8_cache};

    #[test]
    fn queries_and_keys_equal_the_reference_and_the_cache_holds_keys_and_values() {
        for_each_device(|device| {
            let mut seeded = Seeded::new(7);
            for (num_heads, num_kv_heads, head_dim, rotary_dim, norm) in
                [(9, 3, 64, 64, false), (4, 1, 16, 16, true), (3, 3, 10, 0, false), (2, 1, 12, 8, true)]
            {
                let heads = HeadLayout { num_heads, num_kv_heads, head_dim };
                let options = QkvOptions { heads, rotary_dim, norm_eps: norm.then_some(1e-6) };
                let case = AttentionCase::new(&[(5, 5), (1, 33), (7, 20)], 16, &mut seeded, device);
                let tokens = case.num_tokens();
                let qkv = seeded.tensor([tokens, heads.row_len()], device);
                let weights = (seeded.tensor([head_dim], device), seeded.tensor([head_dim], device));
                let norms = norm.then_some((&weights.0, &weights.1));
                let table = RopeTable(seeded.tensor([64, rotary_dim.max(1)], device));
                let table = (rotary_dim != 0).then_some(&table);
                let mut layer = KvLayer::new(case.num_blocks, 16, heads, device);

                let metadata = case.metadata(device);
                let expected = reference(qkv.clone(), norms, table, &metadata.positions, options);
                let got = rope_and_store_kv(qkv, norms, table, &metadata, (&mut layer, options));

                let width = heads.num_kv_heads * head_dim;
                let queries = heads.output_len();
                let stored = |cache: Tensor<3>| {
                    let slots = cache.dims()[0];
                    cache.reshape([slots, width]).select(0, metadata.slot_mapping.clone())
                };
                let column = |from: usize, to: usize| expected.clone().slice([0..tokens, from..to]);
                assert_close(got.slice([0..tokens, 0..queries]), column(0, queries), 1e-5);
                assert_close(stored(layer.keys()), column(queries, queries + width), 1e-5);
                assert_close(stored(layer.values()), column(queries + width, queries + 2 * width), 0.0);
            }
        });
    }

    #[test]
    fn a_cache_of_codes_holds_the_nearest_of_each_number() {
        for_each_device(|device| {
            if !holds_fp8_cache(device) {
                return;
            }
            // Every number that a code has, with those just beside it and half-way to the next, and what has no code.
            let near = |code: u8| {
                let (number, next) = (decode(code), decode(code + 1));
                [number, (number + next) / 2.0, number * 1.001, number * 0.999, -number]
            };
            let mut values: Vec<f32> = (0..0x7e).flat_map(near).collect();
            values.extend([448.0, 463.0, 464.0, 465.0, 1e9, -1e9, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-12]);
            for head_dim in [64, 10] {
                let heads = HeadLayout { num_heads: 1, num_kv_heads: 1, head_dim };
                let options = QkvOptions { heads, rotary_dim: 0, norm_eps: None };
                let tokens = values.len().div_ceil(head_dim);
                let case = AttentionCase::new(&[(tokens, tokens)], 16, &mut Seeded::new(12), device);
                let row = |token: usize, column: usize| values.get(token * head_dim + column % head_dim).copied();
                let rows = (0..tokens).flat_map(|token| (0..3 * head_dim).map(move |at| (token, at)));
                let rows = rows.map(|(token, at)| row(token, at).unwrap_or(0.0)).collect();
                let qkv = float_tensor(rows, [tokens, 3 * head_dim], device);
                let mut layer = KvLayer::with_dtype(case.num_blocks, 16, heads, (device, E4M3));
                let metadata = case.metadata(device);
                rope_and_store_kv(qkv, None, None, &metadata, (&mut layer, options));
                for cache in [layer.keys(), layer.values()] {
                    let slots = cache.dims()[0];
                    let stored = cache.reshape([slots, head_dim]).select(0, metadata.slot_mapping.clone());
                    let stored: Vec<f32> = stored.into_data().try_to_vec().expect("32-bit floats");
                    for (value, stored) in values.iter().zip(stored) {
                        let expected = decode(encode(*value));
                        assert!(stored == expected || stored.is_nan() && value.is_nan(), "{value}: {stored}");
                        assert_eq!(stored.is_sign_negative(), expected.is_sign_negative(), "{value}");
                    }
                }
            }
        });
    }
}
