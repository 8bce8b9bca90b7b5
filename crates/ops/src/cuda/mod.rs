//! CUDA C++ kernels: one file per operation here and one source of the same name in `kernels/`.
//!
//! Activations are in the dtype of the weights; norm weights, biases and the rotary table are 32-bit floats; every sum is
//! accumulated in 32-bit floats. Everything runs in order on Burn's own CUDA stream: [`launch`] resolves tensors to
//! addresses on the device's thread and enqueues there, [`driver`] keeps what that takes from call to call. Nothing is
//! allocated or waited for after the first call of a kernel, so that all of it can be captured in a CUDA graph.
//!
//! A launch that fails leaves its results marked: reading one back, or anything computed from it, returns the error.

mod activation;
#[cfg(test)]
mod attention_tests;
mod built_kernels;
mod carry_tokens;
mod cublaslt;
mod driver;
#[cfg(test)]
mod fp8_tests;
mod gather_rows;
mod gpu;
mod kernel;
mod launch;
mod layer_norm;
mod linear;
mod linear_few_rows;
mod linear_fp8;
mod linear_quantize;
mod linear_tiles;
mod linear_wgmma;
mod linear_wgmma_tiles;
#[cfg(test)]
mod many_rows_tests;
mod matrix;
mod memory;
mod module_cache;
mod overwrite;
mod paged_attention;
mod pinned;
mod probe;
mod projection;
mod read_back;
mod recorded_memory;
#[cfg(test)]
mod recorded_tests;
mod rms_norm;
mod rope_and_store_kv;
mod sample;
#[cfg(test)]
mod some_rows_tests;
mod stream;
mod tensor_map;
#[cfg(test)]
mod tests;
mod upload;

pub(crate) use activation::{activation, gated_activation};
pub(crate) use built_kernels::{Task, check_built, compile_missing, has_compiler, tasks};
pub(crate) use carry_tokens::carry_tokens;
pub(crate) use gather_rows::gather_rows;
pub(crate) use gpu::use_batch_invariant_kernels;
pub(crate) use layer_norm::layer_norm;
pub(crate) use linear::linear;
pub(crate) use linear_few_rows::FEW_ROWS;
pub(crate) use memory::{clear, free_memory, total_memory};
pub(crate) use module_cache::use_kernels_in;
pub(crate) use overwrite::{Carried, overwrite};
pub(crate) use paged_attention::paged_attention;
pub(crate) use probe::{capability_in_use, has_bfloat16, multiplies_fp8, open, settle, use_kernels_of};
pub(crate) use projection::{project, project_onto, self_attention};
pub(crate) use read_back::read_back;
pub(crate) use recorded_memory::RecordedMemory;
pub(crate) use rms_norm::{add_rms_norm, rms_norm};
pub(crate) use rope_and_store_kv::rope_and_store_kv;
pub(crate) use sample::sample;
pub(crate) use upload::upload;

use burn::tensor::DType;

use crate::e4m3::E4M3;

/// The text of one kernel source.
#[derive(Debug)]
pub(crate) struct Source {
    /// File name without its extension.
    name: &'static str,
    /// What it needs besides [`COMMON`].
    needs: &'static str,
    text: &'static str,
}

/// What comes before every source.
const COMMON: &str = include_str!("../../../../kernels/common.cuh");

macro_rules! sources {
    ($($constant:ident = $name:literal $(needs $($header:ident)+)?),* $(,)?) => {
        $(const $constant: Source = Source {
            name: $name,
            needs: concat!($($(include_str!(concat!("../../../../kernels/", stringify!($header), ".cuh"))),+)?),
            text: include_str!(concat!("../../../../kernels/", $name, ".cu")),
        };)*
        /// Every kernel source, and the names of what it needs.
        #[cfg(test)]
        const SOURCES: &[(Source, &[&str])] = &[$(($constant, &[$($(stringify!($header)),+)?])),*];
    };
}

sources! {
    ACTIVATION = "activation",
    GATHER_ROWS = "gather_rows",
    LAYER_NORM = "layer_norm",
    LINEAR = "linear",
    LINEAR_FEW_ROWS = "linear_few_rows" needs products few_rows,
    LINEAR_FP8 = "linear_fp8",
    LINEAR_QUANTIZE = "linear_quantize",
    LINEAR_TILES = "linear_tiles" needs products,
    LINEAR_WGMMA = "linear_wgmma" needs heads qkv_rows wgmma wgmma_products finish_rows,
    LINEAR_WGMMA_TILES = "linear_wgmma_tiles" needs heads qkv_rows wgmma wgmma_products,
    PAGED_ATTENTION = "paged_attention",
    PAGED_ATTENTION_DECODE = "paged_attention_decode" needs attention heads decode_plan decode_parts fresh_rows decode_attention
        decode_merge,
    PAGED_ATTENTION_PLAN = "paged_attention_plan" needs decode_plan,
    PAGED_ATTENTION_SINGLE = "paged_attention_single" needs attention wgmma attention_copies,
    PAGED_ATTENTION_TILES = "paged_attention_tiles" needs attention,
    PAGED_ATTENTION_WGMMA = "paged_attention_wgmma" needs attention wgmma attention_copies,
    RMS_NORM = "rms_norm",
    ROPE_AND_STORE_KV = "rope_and_store_kv" needs heads qkv_rows,
    SAMPLE = "sample" needs logit_rows,
}

/// The name of a dtype in the sources.
fn element(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        E4M3 => "e4m3",
        other => {
            panic!(
                "the CUDA kernels read f32, f16, bf16 and codes of e4m3, not {other:?}: the tensor was made with another dtype"
            )
        }
    }
}
