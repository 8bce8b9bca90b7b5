//! Carries out planned batches on devices: index tensors in, forward pass, logits processing, sampling.
//!
//! [`LocalExecutor`] runs one model on one device. It knows nothing of scheduling, text or HTTP and never allocates a
//! block; everything a token depends on comes with the [`Batch`](firebrick_engine::Batch).

mod failure;
mod graph;
mod inputs;
mod local;
mod logits_processor;
mod memory;
mod prompt_rows;
mod sampler;

pub use inputs::forward_input;
pub use local::{CacheOptions, LocalExecutor};
pub use memory::{KvBudget, available_host_memory};
