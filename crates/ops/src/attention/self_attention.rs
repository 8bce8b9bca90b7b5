//! Rows to the outputs of their heads: the projection to queries, keys and values, and attention over the cache.

#[cfg(feature = "wgpu")]
use burn::backend::{
    Backend, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::Tensor;

#[cfg(feature = "wgpu")]
use super::KvTensors;
use super::{AttentionMetadata, AttentionOptions, KvLayer, paged_attention};
#[cfg(feature = "wgpu")]
use crate::QkvOptions;
use crate::{QkvProjection, project_qkv};

/// [`paged_attention`] of what [`project_qkv`] returns: the two one after the other, or fewer kernels with the same results.
pub fn self_attention(
    x: Tensor<2>,
    qkv: QkvProjection,
    metadata: &AttentionMetadata,
    (layer, options): (&mut KvLayer, AttentionOptions),
) -> Tensor<2> {
    #[cfg(feature = "wgpu")]
    if on_wgpu::rotates(&x, &qkv, metadata) {
        return on_wgpu::self_attention(x, qkv, metadata, (layer, options));
    }
    let qkv = project_qkv(x, qkv, metadata, layer);
    paged_attention(qkv, layer, metadata, options)
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
        check_operands(&rows, layer, metadata, options);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{AttentionCase, Seeded, assert_close, for_each_device};
    use crate::{
        HeadLayout, Projection, QkvOptions, RopeTable, Then, Weight, activation_dtype, project, rope_and_store_kv,
    };
    use burn::tensor::DType;

    #[test]
    fn tokens_that_decode_attend_and_store_as_the_operations_one_after_the_other_do() {
        for_each_device(|device| {
            if activation_dtype(device, DType::BF16) != DType::F32 {
                return; // projections round to 16 bits; `project_qkv` has its tests
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
}
