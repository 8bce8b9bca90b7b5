//! Rows to the outputs of their heads: the projection to queries, keys and values, what happens to them, and attention over
//! the cache.
//!
//! The composition of the single operations says what is computed. On CUDA the product of few rows also rotates and stores,
//! and where few tokens decode attention itself does that to what it is about to read; on wgpu wherever all tokens decode.

#[cfg(feature = "wgpu")]
use burn::backend::{
    Backend, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::Tensor;

#[cfg(feature = "wgpu")]
use super::KvTensors;
use super::{AttentionMetadata, AttentionOptions, KvLayer, paged_attention};
use crate::{Projection, QkvOptions, RopeTable, Stream, Then, project, rope_and_store_kv};

/// The projection to queries, keys and values, and what [`rope_and_store_kv`] does with them.
#[derive(Clone, Copy, Debug)]
pub struct QkvProjection<'a> {
    /// To rows of `options.heads.row_len()`.
    pub projection: Projection<'a>,
    /// Weights of the normalisation of each query and key, present exactly when `options.norm_eps` is.
    pub head_norms: Option<(&'a Tensor<1>, &'a Tensor<1>)>,
    /// Present exactly when `options.rotary_dim` is not 0.
    pub rope: Option<&'a RopeTable>,
    /// The rest.
    pub options: QkvOptions,
}

/// `paged_attention(rope_and_store_kv(linear(norm(x))))`: the operations one after the other, or fewer kernels with the same
/// results.
pub fn self_attention(
    x: impl Into<Stream>,
    qkv: QkvProjection,
    metadata: &AttentionMetadata,
    (layer, options): (&mut KvLayer, AttentionOptions),
) -> Tensor<2> {
    let x = x.into();
    #[cfg(feature = "cuda")]
    if let Some(weight) = crate::projection::on_cuda::single_part(x.rows(), qkv.projection.weight) {
        return on_cuda::self_attention(x, weight, qkv, metadata, (layer, options));
    }
    let x = x.into_rows();
    #[cfg(feature = "wgpu")]
    if on_wgpu::rotates(&x, &qkv, metadata) {
        return on_wgpu::self_attention(x, qkv, metadata, (layer, options));
    }
    let rows = project(x, qkv.projection, Then::Keep);
    let rows = rope_and_store_kv(rows, qkv.head_norms, qkv.rope, metadata, (layer, qkv.options));
    paged_attention(rows, layer, metadata, options)
}

/// Attention that does what [`rope_and_store_kv`](crate::rope_and_store_kv) does as well, on backend tensors; only wgpu has a
/// kernel for it. See [`self_attention`]; the table is read as `qkv_options` says.
#[cfg(feature = "wgpu")]
#[backend_extension(Cube)]
pub trait RotatingAttention: Backend {
    /// The heads' outputs, side by side, and the cache.
    #[allow(clippy::too_many_arguments)]
    fn rotating_attention(
        qkv: FloatTensor<Self>,
        table: FloatTensor<Self>,
        positions: IntTensor<Self>,
        sequence_of_token: IntTensor<Self>,
        block_tables: IntTensor<Self>,
        #[extension_type] cache: KvTensors<Self>,
        qkv_options: QkvOptions,
        options: AttentionOptions,
    ) -> (FloatTensor<Self>, KvTensors<Self>);
}

/// Attention that rotates and stores, where every token is the only one of its sequence: each then has its own key and
/// value at hand, and reads nothing from the cache that another stores.
#[cfg(feature = "wgpu")]
mod on_wgpu {
    use burn::backend::Dispatch;
    use burn::tensor::Tensor;

    use super::{AttentionMetadata, AttentionOptions, KvLayer, RotatingAttention};
    use crate::attention::QueryLens;
    use crate::attention::paged_attention::check_operands;
    use crate::{Backend, QkvProjection, Then, backend_of, project, rope_and_store_kv, wgpu};

    pub(super) fn rotates(x: &Tensor<2>, qkv: &QkvProjection, metadata: &AttentionMetadata) -> bool {
        metadata.query_lens() == QueryLens::Single
            && backend_of(&x.device()) == Backend::Wgpu
            && wgpu::rotates(qkv.options)
    }

    pub(super) fn self_attention(
        x: Tensor<2>,
        qkv: QkvProjection,
        metadata: &AttentionMetadata,
        (layer, options): (&mut KvLayer, AttentionOptions),
    ) -> Tensor<2> {
        let rows = project(x, qkv.projection, Then::Keep);
        rope_and_store_kv::check_operands(rows.dims()[1], qkv.head_norms.is_some(), qkv.rope.is_some(), qkv.options);
        check_operands(rows.dims(), layer, metadata, options);
        let absent = || layer.absent.clone().into_dispatch();
        let table = qkv.rope.map_or_else(absent, |table| table.0.clone().into_dispatch());
        let (heads, cache) = Dispatch::rotating_attention(
            rows.into_dispatch(),
            table,
            metadata.positions.clone().into_dispatch(),
            metadata.sequence_of_token.clone().into_dispatch(),
            metadata.block_tables.clone().into_dispatch(),
            layer.take(),
            qkv.options,
            options,
        );
        layer.put(cache);
        Tensor::from_dispatch(heads)
    }
}

/// The same through the CUDA backend's own operation.
#[cfg(feature = "cuda")]
mod on_cuda {
    use burn::backend::Dispatch;
    use burn::tensor::Tensor;

    use super::{AttentionMetadata, AttentionOptions, KvLayer, QkvProjection};
    use crate::Stream;
    use crate::attention::paged_attention::check_operands as check_attention;
    use crate::backend::{BatchTensors, FusedLayers};
    use crate::projection::on_cuda::inputs;
    use crate::rope_and_store_kv::check_operands;
    use crate::weight::Part;

    pub(super) fn self_attention(
        x: Stream,
        weight: &Part,
        qkv: QkvProjection,
        metadata: &AttentionMetadata,
        (layer, options): (&mut KvLayer, AttentionOptions),
    ) -> Tensor<2> {
        check_operands(weight.dims()[0], qkv.head_norms.is_some(), qkv.rope.is_some(), qkv.options);
        check_attention([x.rows().dims()[0], weight.dims()[0]], layer, metadata, options);
        let absent = || layer.absent.clone().into_dispatch();
        let (query_norm, key_norm) = match qkv.head_norms {
            Some((query, key)) => (query.clone().into_dispatch(), key.clone().into_dispatch()),
            None => (absent(), absent()),
        };
        let table = qkv.rope.map_or_else(absent, |table| table.0.clone().into_dispatch());
        let batch = BatchTensors {
            positions: metadata.positions.clone().into_dispatch(),
            slot_mapping: metadata.slot_mapping.clone().into_dispatch(),
            sequence_of_token: metadata.sequence_of_token.clone().into_dispatch(),
            block_tables: metadata.block_tables.clone().into_dispatch(),
            query_starts: metadata.query_starts.clone().into_dispatch(),
            context_lens: metadata.context_lens.clone().into_dispatch(),
            query_lens: metadata.query_lens(),
            derived: metadata.derived.clone(),
        };
        let inputs = inputs(x, weight, qkv.projection);
        let (out, cache) =
            Dispatch::self_attention(inputs, query_norm, key_norm, table, batch, layer.take(), qkv.options, options);
        layer.put(cache);
        Tensor::from_dispatch(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{AttentionCase, Seeded, assert_close, for_each_device, moved, reference_device};
    use crate::{HeadLayout, Weight, activation_dtype, reference};
    use burn::tensor::DType;

    #[test]
    fn tokens_that_decode_attend_and_store_as_the_operations_one_after_the_other_do() {
        for_each_device(|device| {
            if activation_dtype(device, DType::BF16) != DType::F32 {
                return; // projections round to 16 bits; CUDA has tests of its own
            }
            let mut seeded = Seeded::new(44);
            for (num_heads, num_kv_heads, head_dim, rotary_dim) in
                [(9, 3, 64, 64), (4, 1, 16, 8), (2, 2, 10, 6), (2, 1, 80, 0), (4, 2, 256, 256)]
            {
                let heads = HeadLayout { num_heads, num_kv_heads, head_dim };
                let case = AttentionCase::new(&[(1, 33), (1, 1), (1, 16), (1, 600), (1, 257)], 16, &mut seeded, device);
                let past = seeded.tensor([case.whole_contexts().num_tokens(), heads.row_len()], device);
                let x: Tensor<2> = seeded.tensor([5, 48], device);
                let weight = Weight::dense(seeded.tensor([heads.row_len(), 48], device));
                let table = RopeTable(seeded.tensor([600, rotary_dim.max(1)], device));
                let rope = (rotary_dim > 0).then_some(&table);
                let projection = Projection { norm: None, weight: &weight, bias: None };
                let options = QkvOptions { heads, rotary_dim, norm_eps: None };
                let store = QkvOptions { rotary_dim: 0, ..options };
                let filled = || {
                    let mut layer = KvLayer::new(case.num_blocks, 16, heads, device);
                    let everything = case.whole_contexts().metadata(device);
                    rope_and_store_kv(past.clone(), None, None, &everything, (&mut layer, store));
                    layer
                };
                for (sliding_window, softcap) in [(None, None), (Some(300), Some(2.0)), (Some(1), None)] {
                    let scale = (head_dim as f32).powf(-0.5);
                    let attention = AttentionOptions { heads, block_size: 16, scale, sliding_window, softcap };
                    let metadata = case.metadata(device);
                    let mut layer = filled();
                    let rows = project(x.clone(), projection, Then::Keep);
                    let rows = rope_and_store_kv(rows, None, rope, &metadata, (&mut layer, options));
                    let expected = paged_attention(rows, &layer, &metadata, attention);

                    let mut other = filled();
                    let qkv = QkvProjection { projection, head_norms: None, rope, options };
                    let got = self_attention(x.clone(), qkv, &metadata, (&mut other, attention));
                    assert_close(got, expected, 0.0);
                    assert_close(other.keys(), layer.keys(), 0.0);
                    assert_close(other.values(), layer.values(), 0.0);
                }
            }
        });
    }

    #[test]
    fn equals_the_operations_one_after_the_other() {
        for_each_device(|device| {
            let mut seeded = Seeded::new(41);
            let host = reference_device(device);
            let heads = HeadLayout { num_heads: 4, num_kv_heads: 2, head_dim: 16 };
            let options = QkvOptions { heads, rotary_dim: 16, norm_eps: None };
            let attention =
                AttentionOptions { heads, block_size: 16, scale: 0.25, sliding_window: None, softcap: None };
            let case = AttentionCase::new(&[(5, 5), (1, 1)], 16, &mut seeded, device);
            let x: Tensor<2> = seeded.tensor([6, 48], &host);
            let values: Tensor<2> = seeded.tensor([heads.row_len(), 48], &host);
            let table: Tensor<2> = seeded.tensor([64, 16], &host);

            let product = reference::linear(x.clone(), &Weight::dense(values.clone()), None);
            let (host_table, metadata) = (RopeTable(table.clone()), case.metadata(&host));
            let rows = reference::rope_and_store_kv(product, None, Some(&host_table), &metadata.positions, options);
            let mut host_layer = KvLayer::new(case.num_blocks, 16, heads, &host);
            let store = QkvOptions { heads, rotary_dim: 0, norm_eps: None };
            rope_and_store_kv(rows.clone(), None, None, &metadata, (&mut host_layer, store));
            let expected = reference::paged_attention(rows.clone(), &host_layer, &metadata, attention);

            let (weight, table) = (Weight::dense(moved(&values, device)), RopeTable(moved(&table, device)));
            let projection = Projection { norm: None, weight: &weight, bias: None };
            let qkv = QkvProjection { projection, head_norms: None, rope: Some(&table), options };
            let mut layer = KvLayer::new(case.num_blocks, 16, heads, device);
            let metadata = case.metadata(device);
            let got = self_attention(moved(&x, device), qkv, &metadata, (&mut layer, attention));
            assert_close(got, moved(&expected, device), 2e-5);
            let stored = layer.keys().reshape([-1, 32]).select(0, metadata.slot_mapping.clone());
            assert_close(moved(&stored, &host), rows.narrow(1, 64, 32), 2e-5);
        });
    }
}
