//! The table of operations that have kernels, and the one place that chooses a backend's kernel.

use burn::backend::{
    Backend, Dispatch, ExtensionType, backend_extension,
    tensor::{FloatTensor, IntTensor},
};

use burn::tensor::Tensor;

#[cfg(any(feature = "cpu", feature = "wgpu"))]
use crate::Packing;
use crate::activation::Activation;
use crate::attention::{AttentionOptions, Derived, KvTensors, QueryLens};
use crate::rope_and_store_kv::QkvOptions;
use crate::sample::SampleOptions;

/// A tensor that an operation may do without.
#[derive(ExtensionType)]
pub enum Optional<B: Backend> {
    /// It is there.
    Given(FloatTensor<B>),
    /// It is not.
    Absent,
}

impl Optional<Dispatch> {
    /// What the dispatch takes for a tensor that may be there.
    pub(crate) fn of<const D: usize>(tensor: Option<Tensor<D>>) -> Self {
        tensor.map_or(Optional::Absent, |tensor| Optional::Given(tensor.into_dispatch()))
    }
}

impl<B: Backend> Optional<B> {
    pub(crate) fn given(self) -> Option<FloatTensor<B>> {
        match self {
            Optional::Given(tensor) => Some(tensor),
            Optional::Absent => None,
        }
    }
}

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
    /// See [`linear_add`](crate::linear_add).
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Optional<Self>,
        #[extension_type] residual: Optional<Self>,
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
        #[extension_type] cache: KvTensors<Self>,
        options: QkvOptions,
    ) -> (FloatTensor<Self>, KvTensors<Self>);
    /// See [`paged_attention`](crate::paged_attention).
    #[allow(clippy::too_many_arguments)]
    fn paged_attention(
        qkv: FloatTensor<Self>,
        #[extension_type] cache: KvTensors<Self>,
        positions: IntTensor<Self>,
        sequence_of_token: IntTensor<Self>,
        block_tables: IntTensor<Self>,
        query_starts: IntTensor<Self>,
        context_lens: IntTensor<Self>,
        query_lens: QueryLens,
        derived: Derived,
        options: AttentionOptions,
    ) -> FloatTensor<Self>;
    /// See [`sample`](crate::sample). The result is `SampleOptions::result_words` integers.
    fn sample(logits: FloatTensor<Self>, plan: IntTensor<Self>, options: SampleOptions) -> IntTensor<Self>;
}

/// Products with [packed](crate::Packing) weights and rows of such tables; CUDA has no kernels for them and is given dense
/// weights.
#[cfg(any(feature = "cpu", feature = "wgpu"))]
#[backend_extension(Flex: cfg(feature = "cpu"), Cube: cfg(feature = "wgpu"))]
pub trait PackedOps: Backend {
    /// See [`linear_add`](crate::linear_add).
    fn linear_packed(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        packing: Packing,
        #[extension_type] bias: Optional<Self>,
        #[extension_type] residual: Optional<Self>,
    ) -> FloatTensor<Self>;
    /// See [`gather_rows_of`](crate::gather_rows_of).
    fn gather_packed_rows(words: IntTensor<Self>, ids: IntTensor<Self>, packing: Packing) -> FloatTensor<Self>;
}

/// Products with packed weights and what stands around them, which only wgpu has kernels for.
#[cfg(feature = "wgpu")]
#[backend_extension(Cube)]
pub trait FusedPackedOps: Backend {
    /// See [`project`](crate::project).
    fn project_packed(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        packing: Packing,
        #[extension_type] around: Surroundings<Self>,
    ) -> FloatTensor<Self>;
}

/// What stands before and after a product with packed weights.
#[cfg(feature = "wgpu")]
#[derive(ExtensionType)]
pub struct Surroundings<B: Backend> {
    /// The weight of the norm of the rows, by root mean square.
    #[extension_type]
    pub norm_weight: Optional<B>,
    /// Its epsilon.
    pub norm_eps: f32,
    /// Added to the product.
    #[extension_type]
    pub bias: Optional<B>,
    /// Added after the bias.
    #[extension_type]
    pub residual: Optional<B>,
    /// What is done with the sums.
    pub activated: Activated,
}

/// Operations that GPUs have kernels for where rows are few; elsewhere they are composed of those above.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[backend_extension(Cube)]
pub trait FusedProjections: Backend {
    /// See [`project`](crate::project).
    fn project(#[extension_type] inputs: ProjectionInputs<Self>) -> FloatTensor<Self>;
}

/// Parts of layers that only CUDA has kernels for: on wgpu they would bind more than 8 buffers.
#[cfg(feature = "cuda")]
#[backend_extension(Cube)]
pub trait FusedLayers: Backend {
    /// See [`project_onto`](crate::project_onto): the rows, and what their norm with this weight needs, if it was prepared.
    fn project_onto(
        #[extension_type] inputs: ProjectionInputs<Self>,
        norm_weight: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, PreparedNorm<Self>);
    /// See [`self_attention`](crate::self_attention). The norms and the table are read as `qkv_options` says.
    #[allow(clippy::too_many_arguments)]
    fn self_attention(
        #[extension_type] inputs: ProjectionInputs<Self>,
        query_norm: FloatTensor<Self>,
        key_norm: FloatTensor<Self>,
        table: FloatTensor<Self>,
        #[extension_type] batch: BatchTensors<Self>,
        #[extension_type] cache: KvTensors<Self>,
        qkv_options: QkvOptions,
        options: AttentionOptions,
    ) -> (FloatTensor<Self>, KvTensors<Self>);
}

/// The index tensors of [`AttentionMetadata`](crate::AttentionMetadata).
#[cfg(feature = "cuda")]
#[derive(ExtensionType)]
pub struct BatchTensors<B: Backend> {
    /// See there.
    pub positions: IntTensor<B>,
    /// See there.
    pub slot_mapping: IntTensor<B>,
    /// See there.
    pub sequence_of_token: IntTensor<B>,
    /// See there.
    pub block_tables: IntTensor<B>,
    /// See there.
    pub query_starts: IntTensor<B>,
    /// See there.
    pub context_lens: IntTensor<B>,
    /// How many tokens the sequences have.
    pub query_lens: QueryLens,
    /// What kernels derive from these.
    pub derived: Derived,
}

/// What the norm of rows needs, where the product that they come from left it beside them.
#[cfg(feature = "cuda")]
#[derive(ExtensionType)]
pub enum PreparedNorm<B: Backend> {
    /// The rows times the weight of the norm, `[T, H]`, and the sums of the squares of each 64 of their elements,
    /// `[T, ceil(H / 64)]`, padded with zeros to fours.
    Given(FloatTensor<B>, FloatTensor<B>),
    /// Nothing was.
    Absent,
}

/// The operands of a product with what stands before and after it.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[derive(ExtensionType)]
pub struct ProjectionInputs<B: Backend> {
    /// The rows.
    pub x: FloatTensor<B>,
    /// The weight of the norm before the product.
    #[extension_type]
    pub norm_weight: Optional<B>,
    /// Its bias, which makes it a layer norm.
    #[extension_type]
    pub norm_bias: Optional<B>,
    /// Its epsilon.
    pub norm_eps: f32,
    /// What it needs, where that was prepared.
    #[cfg(feature = "cuda")]
    #[extension_type]
    pub prepared: PreparedNorm<B>,
    /// The weights of the product.
    #[extension_type]
    pub weight: WeightTensors<B>,
    /// Added to the product.
    #[extension_type]
    pub bias: Optional<B>,
    /// Added after the bias.
    #[extension_type]
    pub residual: Optional<B>,
    /// What is done with the sums.
    pub activated: Activated,
}

/// The weights `[N, K]` of a product as they lie in memory.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[derive(ExtensionType)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))] // only CUDA is given codes
pub enum WeightTensors<B: Backend> {
    /// Elements of a float dtype.
    Floats(FloatTensor<B>),
    /// Bytes that are [codes](crate::e4m3) of floats, and what the codes of each row are multiplied by.
    Codes(IntTensor<B>, FloatTensor<B>),
}

/// What becomes of the outputs of a product.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activated {
    /// They are the result.
    Not,
    /// All of them go through an activation.
    All(Activation),
    /// The first half are gates of the second.
    Gated(Activation),
}
