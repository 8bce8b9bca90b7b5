//! What a forward pass takes besides the weights and the cache.

use burn::tensor::{Int, Tensor};
use firebrick_ops::AttentionMetadata;

/// A flat batch of `T` tokens of many sequences.
#[derive(Clone, Debug)]
pub struct ForwardInput {
    /// `[T]` token ids.
    pub tokens: Tensor<1, Int>,
    /// Where each token stands and where its context is cached.
    pub metadata: AttentionMetadata,
    /// Tokens whose logits are wanted, in the order wanted.
    pub logit_rows: Tensor<1, Int>,
}

/// Collects the residual stream after every layer, `[T, hidden]` each, for comparisons between backends.
pub type LayerOutputs = Vec<Tensor<2>>;
