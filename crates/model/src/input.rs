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
    /// Tokens whose hidden states are wanted, in the order wanted; `None`: all, in their own order.
    pub output_rows: Option<Tensor<1, Int>>,
}

impl ForwardInput {
    /// The rows that the last layer goes on with behind its attention, where those are fewer than the batch has.
    pub(crate) fn rows_of_last_layer(&self) -> Option<&Tensor<1, Int>> {
        self.output_rows.as_ref().filter(|rows| rows.dims()[0] < self.tokens.dims()[0])
    }
}

/// Collects the residual stream after every layer, for comparisons between backends: `[T, hidden]` each, or after the last
/// the wanted rows alone, where those are fewer.
pub type LayerOutputs = Vec<Tensor<2>>;
