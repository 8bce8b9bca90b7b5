//! Where each token of a batch stands and where its sequence's keys and values are.

use burn::tensor::{Int, Tensor};

use super::Derived;

/// How many tokens the sequences of a batch have in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryLens {
    /// Each has one: all of them decode.
    Single,
    /// Each has several.
    Several,
    /// One may have several, another one.
    Mixed,
}

/// The index tensors that attention needs, 32-bit integers, for `S` sequences and `T` tokens.
#[derive(Clone, Debug)]
pub struct AttentionMetadata {
    /// `[T]` position of each token in its sequence.
    pub positions: Tensor<1, Int>,
    /// `[T]` cache slot to write for each token.
    pub slot_mapping: Tensor<1, Int>,
    /// `[T]` which sequence each token belongs to.
    pub sequence_of_token: Tensor<1, Int>,
    /// `[S, B]` block ids of each sequence, rows padded with 0.
    pub block_tables: Tensor<2, Int>,
    /// `[S + 1]` first token of each sequence.
    pub query_starts: Tensor<1, Int>,
    /// `[S]` tokens of each sequence in the cache, those of this batch included. 0: the sequence is padding, and the rows of its
    /// tokens may be anything.
    pub context_lens: Tensor<1, Int>,
    /// Fewest tokens of one sequence in this batch, or fewer.
    pub query_len_min: usize,
    /// Most tokens of one sequence in this batch, or more.
    pub query_len_max: usize,
    /// Longest context in this batch.
    pub context_len_max: usize,
    /// What kernels derive from these; nothing at first. With another tensor above there must be a new one.
    pub derived: Derived,
}

impl AttentionMetadata {
    /// How many tokens the sequences have in this batch.
    pub(crate) fn query_lens(&self) -> QueryLens {
        match (self.query_len_min, self.query_len_max) {
            (_, 0..=1) => QueryLens::Single,
            (0..=1, _) => QueryLens::Mixed,
            _ => QueryLens::Several,
        }
    }
}
