//! Fused tensor operations of a language model's forward pass; the only crate that knows a backend.
//!
//! Each operation is one name: `src/<op>.rs` holds its contract, its public function and its reference in plain tensor
//! operations; `src/cpu/<op>.rs`, `src/wgpu/<op>.rs` with `shaders/<op>.wgsl`, and `src/cuda/<op>.rs` with
//! `kernels/<op>.cu` hold the kernels. `src/backend.rs` is the one place that chooses between them.

mod activation;
mod attention;
mod backend;
mod built_kernels;
mod carry_tokens;
#[cfg(feature = "cpu")]
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod cube;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
#[cfg(all(target_os = "linux", any(feature = "wgpu", feature = "cuda")))]
mod device_thread;
pub mod e4m3;
mod gather_rows;
mod graph;
mod launch;
mod layer_norm;
mod linear;
mod overwrite;
mod projection;
mod read_back;
mod rms_norm;
mod rope_and_store_kv;
mod sample;
mod section;
pub mod testing;
#[cfg(feature = "cuda")]
mod upload;
mod weight;
#[cfg(feature = "wgpu")]
mod wgpu;
mod work_stream;

pub use activation::{Activation, activation, gated_activation};
pub use attention::{
    AttentionMetadata, AttentionOptions, Derived, KvLayer, QkvProjection, paged_attention, self_attention,
};
pub use backend::FusedOps;
pub use built_kernels::{
    KernelTask, NormKind, ProjectionShape, StepKernels, Use, check_kernels, compile_kernels, has_kernel_compiler,
    kernel_tasks, use_kernels_in,
};
pub use carry_tokens::carry_tokens;
pub use device::{
    Backend, DeviceError, activation_dtype, backend_of, compute_capability, computes_in, device_memory, float_tensor,
    free_device_memory, holds_fp8_cache, holds_fp8_weights, holds_packed_weights, int_tensor, kept_int_tensor,
    open_device, open_device_async, settle_devices, tensor_bytes_max, use_batch_invariant_kernels, use_cuda_kernels_of,
};
pub use gather_rows::{gather_rows, gather_rows_of};
pub use graph::{CapturedGraph, GraphMemory};
pub use layer_norm::layer_norm;
pub use linear::{linear, linear_add};
pub use overwrite::{Carried, Overwrite, overwrite, overwrite_carrying};
pub use projection::{Projection, RowNorm, Stream, Then, project, project_onto};
pub use rms_norm::{add_rms_norm, rms_norm};
pub use rope_and_store_kv::{HeadLayout, QkvOptions, RopeTable, rope_and_store_kv};
pub use sample::{
    Logprobs, RowParams, SAMPLE_LOGPROBS_MAX, SampleOptions, SamplePlan, Sampled, SampledRow, TokenEdit, sample,
};
pub use section::{SECTION_ALIGNMENT, Section, section};
pub use weight::{Codes, Packing, Scales, Weight};
pub use work_stream::WorkStream;

/// The operations in plain tensor operations: what every kernel is compared with.
pub mod reference {
    pub use crate::activation::reference as activation;
    pub use crate::attention::reference as paged_attention;
    pub use crate::gather_rows::reference as gather_rows;
    pub use crate::layer_norm::reference as layer_norm;
    pub use crate::linear::reference as linear;
    pub use crate::rms_norm::reference as rms_norm;
    pub use crate::rope_and_store_kv::reference as rope_and_store_kv;
    pub use crate::sample::reference as sample;
}
