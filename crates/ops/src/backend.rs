//! The table of operations that have kernels, and the one place that chooses a backend's kernel.

use burn::backend::{
    Backend, backend_extension,
    tensor::{FloatTensor, IntTensor},
};

use crate::activation::Activation;
use crate::attention::AttentionOptions;
use crate::rope_and_store_kv::QkvOptions;
use crate::sample::SampleOptions;

/// The operations as backends implement them, on backend tensors. Shapes are checked by the public functions.
#[backend_extension(Flex: cfg(feature = "cpu"), Cube: cfg(any(feature = "wgpu", feature = "cuda")))]
pub trait FusedOps: Backend {
    /// See [`gather_rows`](crate::gather_rows).
    fn gather_rows(table: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self>;
    /// See [`rms_norm`](crate::rms_norm).
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;
    /// See [`add_rms_norm`](crate::add_rms_norm).
    fn add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// See [`layer_norm`](crate::layer_norm).
    fn layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;
    /// See [`linear`](crate::linear). `bias` is read when `has_bias`.
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        has_bias: bool,
    ) -> FloatTensor<Self>;
    /// See [`activation`](crate::activation).
    fn activation(x: FloatTensor<Self>, kind: Activation) -> FloatTensor<Self>;
    /// See [`gated_activation`](crate::gated_activation).
    fn gated_activation(gate_up: FloatTensor<Self>, kind: Activation) -> FloatTensor<Self>;
    /// See [`rope_and_store_kv`](crate::rope_and_store_kv). `norms` and `table` are read as `options` says.
    #[allow(clippy::too_many_arguments)]
    fn rope_and_store_kv(
        qkv: FloatTensor<Self>,
        query_norm: FloatTensor<Self>,
        key_norm: FloatTensor<Self>,
        table: FloatTensor<Self>,
        positions: IntTensor<Self>,
        slot_mapping: IntTensor<Self>,
        key_cache: FloatTensor<Self>,
        value_cache: FloatTensor<Self>,
        options: QkvOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// See [`paged_attention`](crate::paged_attention).
    #[allow(clippy::too_many_arguments)]
    fn paged_attention(
        qkv: FloatTensor<Self>,
        key_cache: FloatTensor<Self>,
        value_cache: FloatTensor<Self>,
        positions: IntTensor<Self>,
        sequence_of_token: IntTensor<Self>,
        block_tables: IntTensor<Self>,
        options: AttentionOptions,
    ) -> FloatTensor<Self>;
    /// See [`sample`](crate::sample). The result is `SampleOptions::result_words` integers.
    fn sample(logits: FloatTensor<Self>, plan: IntTensor<Self>, options: SampleOptions) -> IntTensor<Self>;
}
