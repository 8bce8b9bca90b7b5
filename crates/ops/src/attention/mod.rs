//! Attention over a paged KV cache (Kwon et al., 2023).

mod derived;
mod kv_layer;
mod metadata;
mod paged_attention;
mod self_attention;

pub use derived::Derived;
pub(crate) use derived::forget_derived;
pub use kv_layer::{KvLayer, KvTensors};
pub use metadata::{AttentionMetadata, QueryLens};
pub use paged_attention::{AttentionOptions, paged_attention, reference};
#[cfg(feature = "wgpu")]
pub(crate) use self_attention::RotatingAttention;
pub use self_attention::{QkvProjection, self_attention};
