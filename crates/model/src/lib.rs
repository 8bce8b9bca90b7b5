//! Model architectures, written once on Burn's tensors and the operations of `firebrick-ops`.
//!
//! [`load`] turns a checkpoint into a [`CausalLm`] on a device; a forward pass takes a flat batch of tokens of many
//! sequences and their places in the paged [`KvCache`]. Nothing here asks which device it runs on.

mod error;
mod input;
mod kv_cache;
pub mod layers;
mod loader;
mod models;
mod registry;
mod step_kernels;

pub use error::LoadError;
pub use input::{ForwardInput, LayerOutputs};
pub use kv_cache::KvCache;
pub use loader::{Fp8, LoadOptions, Progress};
pub use registry::{CausalLm, load};
pub use step_kernels::{KernelOptions, burns_part, step_kernels};
