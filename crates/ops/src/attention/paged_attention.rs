//! Causal attention of a batch's queries over the keys and values in the paged cache.

use burn::backend::Dispatch;
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Tensor};

use super::{AttentionMetadata, KvLayer};
use crate::{FusedOps, HeadLayout, int_tensor};

/// The fixed parameters of one layer's attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    /// The division of a row of queries, keys and values.
    pub heads: HeadLayout,
    /// Tokens per block of the cache.
    pub block_size: usize,
    /// Multiplies the scores, usually `head_dim^-0.5`.
    pub scale: f32,
    /// A token sees itself and at most this many tokens less one before it.
    pub sliding_window: Option<usize>,
    /// Scores become `softcap · tanh(score / softcap)`.
    pub softcap: Option<f32>,
}

/// For each token, `softmax(scale · q · Kᵀ) · V` over the tokens of its sequence up to itself.
///
/// `qkv` is `[T, heads.row_len()]` with the queries first, as [`rope_and_store_kv`](crate::rope_and_store_kv) returns it,
/// and the keys and values of the batch's tokens are already in `layer`. Query head `h` reads KV head
/// `h / (num_heads / num_kv_heads)`. The result is `[T, num_heads * head_dim]`.
///
/// A token's result depends only on its query and its context, to the last bit, whatever else is in the batch and however
/// a prompt is divided into batches. On CUDA in 16 bits there is one distinction: the only token of its sequence in a batch
/// is rounded differently from one of several.
pub fn paged_attention(
    qkv: Tensor<2>,
    layer: &KvLayer,
    metadata: &AttentionMetadata,
    options: AttentionOptions,
) -> Tensor<2> {
    check_operands(qkv.dims(), layer, metadata, options);
    Tensor::from_dispatch(Dispatch::paged_attention(
        qkv.into_dispatch(),
        layer.shared(),
        metadata.positions.clone().into_dispatch(),
        metadata.sequence_of_token.clone().into_dispatch(),
        metadata.block_tables.clone().into_dispatch(),
        metadata.query_starts.clone().into_dispatch(),
        metadata.context_lens.clone().into_dispatch(),
        metadata.query_lens(),
        metadata.derived.clone(),
        options,
    ))
}

/// Whether the shapes are those that the options and the metadata speak of.
pub(crate) fn check_operands(
    [rows, columns]: [usize; 2],
    layer: &KvLayer,
    metadata: &AttentionMetadata,
    options: AttentionOptions,
) {
    assert_eq!(columns, options.heads.row_len(), "paged_attention: row length");
    assert_eq!(options.heads.num_heads % options.heads.num_kv_heads, 0, "paged_attention: head groups");
    assert_eq!(layer.block_size(), options.block_size, "paged_attention: block size");
    let (tokens, sequences) = (metadata.positions.dims()[0], metadata.block_tables.dims()[0]);
    assert_eq!(rows, tokens, "paged_attention: tokens");
    assert_eq!(metadata.query_starts.dims()[0], sequences + 1, "paged_attention: query starts");
    assert_eq!(metadata.context_lens.dims()[0], sequences, "paged_attention: context lengths");
}

/// The same in plain tensor operations, one token at a time, in 32-bit floats. Reads the indices back from the device.
pub fn reference(
    qkv: Tensor<2>,
    layer: &KvLayer,
    metadata: &AttentionMetadata,
    options: AttentionOptions,
) -> Tensor<2> {
    let HeadLayout { num_heads, num_kv_heads, head_dim } = options.heads;
    let device = qkv.device();
    let [tokens, _] = qkv.dims();
    let read = |tensor: Tensor<1, burn::tensor::Int>| -> Vec<i32> {
        tensor.into_data().convert::<i32>().try_to_vec().expect("just converted")
    };
    let positions = read(metadata.positions.clone());
    let sequences = read(metadata.sequence_of_token.clone());
    let blocks_per_row = metadata.block_tables.dims()[1];
    let tables = read(metadata.block_tables.clone().reshape([-1]));
    let rows = (0..tokens).map(|token| {
        let position = positions[token] as usize;
        let first = options.sliding_window.map_or(0, |window| (position + 1).saturating_sub(window));
        let slots: Vec<i32> = (first..=position)
            .map(|at| {
                let block = tables[sequences[token] as usize * blocks_per_row + at / options.block_size];
                block * options.block_size as i32 + (at % options.block_size) as i32
            })
            .collect();
        let length = slots.len();
        let slots = int_tensor(slots, [length], &device);
        let group = num_heads / num_kv_heads;
        let context = |cache: Tensor<3>| {
            let rows = cache.cast(DType::F32).select(0, slots.clone()).unsqueeze_dim::<4>(2);
            rows.repeat_dim(2, group).reshape([length, num_heads, head_dim]).swap_dims(0, 1)
        };
        let query = qkv.clone().cast(DType::F32).slice([token..token + 1, 0..num_heads * head_dim]);
        let query = query.reshape([num_heads, 1, head_dim]);
        // Products and sums instead of matrix products, which GPUs round to fewer bits.
        let scores = (query * context(layer.keys())).sum_dim(2) * options.scale;
        let scores = match options.softcap {
            Some(cap) => (scores / cap).tanh() * cap,
            None => scores,
        };
        (softmax(scores, 1) * context(layer.values())).sum_dim(1).reshape([1, num_heads * head_dim])
    });
    Tensor::cat(rows.collect(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::QkvOptions;
    use crate::e4m3::E4M3;
    use crate::holds_fp8_cache;
    use crate::rope_and_store_kv;
    use crate::testing::{AttentionCase, Seeded, assert_close, for_each_device};
    use burn::tensor::Device;

    /// Fills the cache with one batch per earlier chunk, then attends with the last one.
    fn check(heads: HeadLayout, window: Option<usize>, softcap: Option<f32>, on: (&Device, DType)) {
        let (device, _) = on;
        let mut seeded = Seeded::new(8);
        let block_size = 16;
        let case = AttentionCase::new(
            &[(1, 1), (5, 5), (1, 33), (17, 40), (1, 16), (3, 17), (2, 600)],
            block_size,
            &mut seeded,
            device,
        );
        let mut layer = KvLayer::with_dtype(case.num_blocks, block_size, heads, on);
        let store = QkvOptions { heads, rotary_dim: 0, norm_eps: None };
        let everything = case.whole_contexts();
        let past = seeded.tensor([everything.num_tokens(), heads.row_len()], device);
        rope_and_store_kv(past, None, None, &everything.metadata(device), (&mut layer, store));
        let qkv = seeded.tensor([case.num_tokens(), heads.row_len()], device);
        let metadata = case.metadata(device);
        let qkv = rope_and_store_kv(qkv, None, None, &metadata, (&mut layer, store));
        let scale = (heads.head_dim as f32).powf(-0.5);
        let options = AttentionOptions { heads, block_size, scale, sliding_window: window, softcap };
        let expected = reference(qkv.clone(), &layer, &metadata, options);
        assert_close(paged_attention(qkv, &layer, &metadata, options), expected, 2e-5);
    }

    #[test]
    fn equals_the_reference_for_head_layouts_windows_and_softcaps() {
        for_each_device(|device| {
            for (num_heads, num_kv_heads, head_dim) in [(9, 3, 64), (4, 4, 16), (4, 1, 256), (6, 2, 80), (2, 1, 10)] {
                let heads = HeadLayout { num_heads, num_kv_heads, head_dim };
                let dtypes = [DType::F32, E4M3].into_iter().filter(|&dtype| dtype != E4M3 || holds_fp8_cache(device));
                for dtype in dtypes {
                    check(heads, None, None, (device, dtype));
                    check(heads, Some(7), None, (device, dtype));
                    check(heads, None, Some(2.0), (device, dtype));
                }
            }
            let heads = HeadLayout { num_heads: 9, num_kv_heads: 3, head_dim: 64 };
            check(heads, Some(300), None, (device, DType::F32));
        });
    }

    #[test]
    fn a_token_does_not_depend_on_the_tokens_beside_it() {
        let heads = HeadLayout { num_heads: 4, num_kv_heads: 2, head_dim: 64 };
        check_company(heads, (70, 90), &[(0, 0, 0), (33, 0, 33), (69, 0, 69), (72, 1, 89)]);
    }

    #[test]
    fn a_token_with_a_long_context_does_not_depend_on_the_tokens_beside_it() {
        // Kernels may divide the contexts of a few tokens among more of the device than those of many.
        let tokens = [(0, 0, 0), (255, 0, 255), (256, 0, 256), (299, 0, 299), (302, 1, 699)];
        check_company(HeadLayout { num_heads: 4, num_kv_heads: 1, head_dim: 16 }, (300, 700), &tokens);
        check_company(HeadLayout { num_heads: 4, num_kv_heads: 2, head_dim: 10 }, (300, 700), &tokens);
    }

    /// Attends with all `first` tokens of a sequence and the last three of `second` of another, then with single ones of
    /// them: (token, sequence, position).
    fn check_company(heads: HeadLayout, (first, second): (usize, usize), alone: &[(usize, usize, usize)]) {
        for_each_device(|device| {
            let mut seeded = Seeded::new(9);
            let case = AttentionCase::new(&[(first, first), (3, second)], 16, &mut seeded, device);
            let mut layer = KvLayer::new(case.num_blocks, 16, heads, device);
            let store = QkvOptions { heads, rotary_dim: 0, norm_eps: None };
            let everything = case.whole_contexts();
            let past = seeded.tensor([everything.num_tokens(), heads.row_len()], device);
            rope_and_store_kv(past, None, None, &everything.metadata(device), (&mut layer, store));
            let options = AttentionOptions { heads, block_size: 16, scale: 0.125, sliding_window: None, softcap: None };
            let metadata = case.metadata(device);
            let qkv: Tensor<2> = seeded.tensor([case.num_tokens(), heads.row_len()], device);
            let together = paged_attention(qkv.clone(), &layer, &metadata, options);
            for &(token, sequence, position) in alone {
                let alone = case.only(sequence, position..position + 1).metadata(device);
                let got = paged_attention(qkv.clone().narrow(0, token, 1), &layer, &alone, options);
                assert_close(got, together.clone().narrow(0, token, 1), 0.0);
            }
        });
    }
}
