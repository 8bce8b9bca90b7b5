//! GPU backends: Burn has one backend for every GPU runtime; the tensor's client says which kernels to launch.

use burn::backend::tensor::{FloatTensor, IntTensor};
#[cfg(feature = "cuda")]
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
#[cfg(feature = "cuda")]
use bytes::Bytes;

#[cfg(feature = "wgpu")]
use crate::Packing;
use crate::activation::Activation;
#[cfg(feature = "wgpu")]
use crate::attention::RotatingAttention;
use crate::attention::{AttentionOptions, Derived, KvTensors, QueryLens};
#[cfg(feature = "wgpu")]
use crate::backend::{Activated, FusedPackedOps, PackedOps, Surroundings};
#[cfg(feature = "cuda")]
use crate::backend::{BatchTensors, FusedLayers, PreparedNorm};
use crate::backend::{FusedOps, FusedProjections, Optional, ProjectionInputs};
use crate::carry_tokens::CarryTokens;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::e4m3::E4M3;
use crate::overwrite::Overwrite;
#[cfg(feature = "cuda")]
use crate::overwrite::on_cuda::OverwriteCarrying;
use crate::read_back::on_gpus::{ReadBack, Started};
use crate::rope_and_store_kv::QkvOptions;
use crate::sample::SampleOptions;
#[cfg(feature = "cuda")]
use crate::upload::Upload;
#[cfg(feature = "wgpu")]
use crate::wgpu;

/// What [`rope_and_store_kv`](crate::rope_and_store_kv) does with a projection, and where to.
pub(crate) struct QkvTarget {
    pub query_norm: CubeTensor,
    pub key_norm: CubeTensor,
    pub table: CubeTensor,
    pub positions: CubeTensor,
    pub slot_mapping: CubeTensor,
    pub key_cache: CubeTensor,
    pub value_cache: CubeTensor,
    pub options: QkvOptions,
}

/// The operands of [`rope_and_store_kv`](crate::rope_and_store_kv).
pub(crate) struct QkvInputs {
    pub qkv: CubeTensor,
    pub target: QkvTarget,
}

/// The operands of [`paged_attention`](crate::paged_attention). Kernels that take a token at a time read where it stands
/// from `positions` and `sequence_of_token`, those that take a sequence's tokens together from the others.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(crate) struct AttentionInputs {
    pub qkv: CubeTensor,
    pub key_cache: CubeTensor,
    pub value_cache: CubeTensor,
    pub positions: CubeTensor,
    pub sequence_of_token: CubeTensor,
    pub block_tables: CubeTensor,
    pub query_starts: CubeTensor,
    pub context_lens: CubeTensor,
    pub query_lens: QueryLens,
    pub derived: Derived,
    pub options: AttentionOptions,
}

impl KvTensors<CubeBackend> {
    /// Keys and values; their dtype says what they hold.
    fn into_pair(self) -> (CubeTensor, CubeTensor) {
        match self {
            Self::Floats(keys, values) | Self::Codes(keys, values) => (keys, values),
        }
    }

    fn of(keys: CubeTensor, values: CubeTensor) -> Self {
        if keys.dtype == E4M3 { Self::Codes(keys, values) } else { Self::Floats(keys, values) }
    }
}

/// Calls a kernel of the runtime that `$tensor` lives on.
macro_rules! on_runtime_of {
    ($tensor:expr, $op:ident($($argument:expr),*)) => {
        match $tensor.client.name() {
            #[cfg(feature = "cuda")]
            "cuda" => cuda::$op($($argument),*),
            #[cfg(feature = "wgpu")]
            _ => wgpu::$op($($argument),*),
            #[cfg(not(feature = "wgpu"))]
            other => unreachable!("this build opens CUDA devices only, not {other}"),
        }
    };
}

impl FusedOps for CubeBackend {
    fn gather_rows(table: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        on_runtime_of!(table, gather_rows(table, ids))
    }
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        on_runtime_of!(x, rms_norm(x, weight, eps))
    }
    fn add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        on_runtime_of!(x, add_rms_norm(x, residual, weight, eps))
    }
    fn layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        on_runtime_of!(x, layer_norm(x, weight, bias, eps))
    }
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Optional<Self>,
        residual: Optional<Self>,
    ) -> FloatTensor<Self> {
        on_runtime_of!(x, linear(x, weight, bias.given(), residual.given()))
    }
    fn activation(x: FloatTensor<Self>, kind: Activation) -> FloatTensor<Self> {
        on_runtime_of!(x, activation(x, kind))
    }
    fn gated_activation(gate_up: FloatTensor<Self>, kind: Activation) -> FloatTensor<Self> {
        on_runtime_of!(gate_up, gated_activation(gate_up, kind))
    }
    fn rope_and_store_kv(
        qkv: FloatTensor<Self>,
        query_norm: FloatTensor<Self>,
        key_norm: FloatTensor<Self>,
        table: FloatTensor<Self>,
        positions: IntTensor<Self>,
        slot_mapping: IntTensor<Self>,
        cache: KvTensors<Self>,
        options: QkvOptions,
    ) -> (FloatTensor<Self>, KvTensors<Self>) {
        let (key_cache, value_cache) = cache.into_pair();
        let target =
            QkvTarget { query_norm, key_norm, table, positions, slot_mapping, key_cache, value_cache, options };
        let inputs = QkvInputs { qkv, target };
        let (qkv, keys, values) = on_runtime_of!(inputs.qkv, rope_and_store_kv(inputs));
        (qkv, KvTensors::of(keys, values))
    }
    fn paged_attention(
        qkv: FloatTensor<Self>,
        cache: KvTensors<Self>,
        positions: IntTensor<Self>,
        sequence_of_token: IntTensor<Self>,
        block_tables: IntTensor<Self>,
        query_starts: IntTensor<Self>,
        context_lens: IntTensor<Self>,
        query_lens: QueryLens,
        derived: Derived,
        options: AttentionOptions,
    ) -> FloatTensor<Self> {
        let (key_cache, value_cache) = cache.into_pair();
        let inputs = AttentionInputs {
            qkv,
            key_cache,
            value_cache,
            positions,
            sequence_of_token,
            block_tables,
            query_starts,
            context_lens,
            query_lens,
            derived,
            options,
        };
        on_runtime_of!(inputs.qkv, paged_attention(inputs))
    }
    fn sample(logits: FloatTensor<Self>, plan: IntTensor<Self>, options: SampleOptions) -> IntTensor<Self> {
        on_runtime_of!(logits, sample(logits, plan, options))
    }
}

#[cfg(feature = "wgpu")]
impl PackedOps for CubeBackend {
    fn linear_packed(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        packing: Packing,
        bias: Optional<Self>,
        residual: Optional<Self>,
    ) -> FloatTensor<Self> {
        let norm_weight = Optional::Absent;
        let around = Surroundings { norm_weight, norm_eps: 0.0, bias, residual, activated: Activated::Not };
        wgpu::linear_packed(x, (words, packing), around)
    }
    fn gather_packed_rows(words: IntTensor<Self>, ids: IntTensor<Self>, packing: Packing) -> FloatTensor<Self> {
        wgpu::gather_packed_rows(words, ids, packing)
    }
}

#[cfg(feature = "wgpu")]
impl FusedPackedOps for CubeBackend {
    fn project_packed(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        packing: Packing,
        around: Surroundings<Self>,
    ) -> FloatTensor<Self> {
        wgpu::linear_packed(x, (words, packing), around)
    }
}

#[cfg(feature = "wgpu")]
impl RotatingAttention for CubeBackend {
    fn rotating_attention(
        qkv: FloatTensor<Self>,
        table: FloatTensor<Self>,
        positions: IntTensor<Self>,
        sequence_of_token: IntTensor<Self>,
        block_tables: IntTensor<Self>,
        cache: KvTensors<Self>,
        qkv_options: QkvOptions,
        options: AttentionOptions,
    ) -> (FloatTensor<Self>, KvTensors<Self>) {
        let (key_cache, value_cache) = cache.into_pair();
        let operands = wgpu::AttentionOperands {
            qkv,
            key_cache,
            value_cache,
            positions,
            sequence_of_token,
            block_tables,
            options,
        };
        let (out, keys, values) = wgpu::rotating_attention(operands, table, qkv_options);
        (out, KvTensors::of(keys, values))
    }
}

impl Overwrite for CubeBackend {
    fn overwrite(target: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self> {
        #[cfg(feature = "cuda")]
        if target.client.name() == "cuda" {
            return cuda::overwrite(target, values, None);
        }
        target.client.write(&target.handle, cubecl::bytes::Bytes::from_elems(values));
        target
    }
}

impl CarryTokens for CubeBackend {
    fn carry_tokens(tokens: IntTensor<Self>, sources: IntTensor<Self>, choices: IntTensor<Self>) -> IntTensor<Self> {
        on_runtime_of!(tokens, carry_tokens(tokens, sources, choices))
    }
}

#[cfg(feature = "cuda")]
impl OverwriteCarrying for CubeBackend {
    fn overwrite_carrying(
        target: IntTensor<Self>,
        values: Vec<i32>,
        (tokens, sources): (usize, usize),
        choices: IntTensor<Self>,
    ) -> IntTensor<Self> {
        cuda::overwrite(target, values, Some(cuda::Carried { choices, tokens, sources }))
    }
}

impl ReadBack for CubeBackend {
    fn read_back(tensor: IntTensor<Self>, started: Started) -> IntTensor<Self> {
        started.put(on_runtime_of!(tensor, read_back(&tensor)));
        tensor
    }
}

#[cfg(feature = "cuda")]
impl Upload for CubeBackend {
    fn upload(like: FloatTensor<Self>, pieces: Vec<Bytes>, shape: [usize; 2], dtype: DType) -> FloatTensor<Self> {
        cuda::upload(&like, pieces, shape, dtype)
    }

    fn cleared(like: FloatTensor<Self>, shape: Shape, dtype: DType) -> FloatTensor<Self> {
        cuda::clear(&like, shape, dtype)
    }

    fn cleared_bytes(like: FloatTensor<Self>, shape: Shape) -> IntTensor<Self> {
        cuda::clear(&like, shape, DType::U8)
    }

    fn upload_codes(like: FloatTensor<Self>, pieces: Vec<Bytes>, shape: [usize; 2]) -> IntTensor<Self> {
        cuda::upload(&like, pieces, shape, E4M3)
    }
}

impl FusedProjections for CubeBackend {
    fn project(inputs: ProjectionInputs<Self>) -> FloatTensor<Self> {
        on_runtime_of!(inputs.x, project(inputs))
    }
}

#[cfg(feature = "cuda")]
impl FusedLayers for CubeBackend {
    fn project_onto(
        inputs: ProjectionInputs<Self>,
        norm_weight: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, PreparedNorm<Self>) {
        let (rows, prepared) = cuda::project_onto(inputs, norm_weight);
        (rows, prepared.map_or(PreparedNorm::Absent, |(scaled, squares)| PreparedNorm::Given(scaled, squares)))
    }

    fn self_attention(
        inputs: ProjectionInputs<Self>,
        query_norm: FloatTensor<Self>,
        key_norm: FloatTensor<Self>,
        table: FloatTensor<Self>,
        batch: BatchTensors<Self>,
        cache: KvTensors<Self>,
        options: QkvOptions,
        attention_options: AttentionOptions,
    ) -> (FloatTensor<Self>, KvTensors<Self>) {
        let (key_cache, value_cache) = cache.into_pair();
        let (positions, slot_mapping) = (batch.positions.clone(), batch.slot_mapping.clone());
        let target =
            QkvTarget { query_norm, key_norm, table, positions, slot_mapping, key_cache, value_cache, options };
        let (out, keys, values) = cuda::self_attention(inputs, target, (&batch, attention_options));
        (out, KvTensors::of(keys, values))
    }
}

#[cfg(feature = "cuda")]
impl BatchTensors<CubeBackend> {
    /// The operands of attention over this batch.
    pub(crate) fn attention_inputs(
        &self,
        qkv: CubeTensor,
        (key_cache, value_cache): (CubeTensor, CubeTensor),
        options: AttentionOptions,
    ) -> AttentionInputs {
        AttentionInputs {
            qkv,
            key_cache,
            value_cache,
            positions: self.positions.clone(),
            sequence_of_token: self.sequence_of_token.clone(),
            block_tables: self.block_tables.clone(),
            query_starts: self.query_starts.clone(),
            context_lens: self.context_lens.clone(),
            query_lens: self.query_lens,
            derived: self.derived.clone(),
            options,
        }
    }
}
