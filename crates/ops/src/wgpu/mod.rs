//! WGSL kernels for Vulkan, Metal, DirectX 12 and WebGPU: one file per operation, its shader beside it in `shaders/`.
//!
//! Activations are 32-bit floats; weights may be 16-bit and are widened with a core function of WGSL, so that adapters
//! and browsers without 16-bit arithmetic read half the bytes too; quantised ones stay as their file has them. No subgroup operations, at most 256 threads, 16 KiB
//! of memory and 8 storage buffers: what WebGPU guarantees. Every sum has a fixed order that depends on the row alone.

mod activation;
mod adapter;
mod carry_tokens;
mod gather_rows;
mod kernel;
mod layer_norm;
mod linear;
mod matrix;
mod paged_attention;
mod rms_norm;
mod rope_and_store_kv;
mod sample;
mod template;
mod thread;

pub(crate) use activation::{activation, gated_activation};
pub(crate) use adapter::{open, open_async};
pub(crate) use carry_tokens::carry_tokens;
pub(crate) use gather_rows::{gather_packed_rows, gather_rows};
pub(crate) use layer_norm::layer_norm;
pub(crate) use linear::{linear, linear_packed, project, takes_norms};
pub(crate) use paged_attention::{AttentionOperands, paged_attention, rotates, rotating_attention};
pub(crate) use rms_norm::{add_rms_norm, rms_norm};
pub(crate) use rope_and_store_kv::rope_and_store_kv;
pub(crate) use sample::sample;
pub(crate) use thread::{read_back, replay};

/// A file of `shaders/`.
macro_rules! shader_text {
    ($path:literal) => {
        include_str!(concat!("../../../../shaders/", $path))
    };
}
use shader_text;
