//! The plan of one step: a flat list of tokens, and which sequences want a token sampled.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{PromptRows, SamplingParams, SequenceId, TokenId, TokenMask};

/// The work of one step, as flat arrays that become tensors unchanged.
///
/// There are `S` sequences and `T` tokens. Sequence `s` owns tokens `query_starts[s]..query_starts[s + 1]`; prefill,
/// chunked prefill and decode differ only in how many that is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// The step's number, from 1.
    pub step: u64,
    /// `[T]` input tokens.
    pub tokens: Vec<TokenId>,
    /// `[T]` position of each token in its sequence.
    pub positions: Vec<u32>,
    /// `[T]` KV slot to write: `block * block_size + offset`.
    pub slot_mapping: Vec<u32>,
    /// `[S + 1]` first token of each sequence.
    pub query_starts: Vec<u32>,
    /// `[S]` tokens of each sequence in the cache once this step has run.
    pub context_lens: Vec<u32>,
    /// `[S, blocks_per_row]` block ids, row-major, rows padded with 0.
    pub block_tables: Vec<u32>,
    /// Columns of `block_tables`.
    pub blocks_per_row: usize,
    /// Sequences whose last token's logits become a new token, in the order of the results.
    pub samples: Vec<SampleRow>,
    /// Tokens of prompts whose results are reported.
    #[serde(default)]
    pub prompt_rows: Vec<PromptRows>,
    /// Input tokens that nobody knew when the step was planned, because the step before was still choosing them; `tokens`
    /// has 0 in their places.
    pub carried: Vec<CarriedToken>,
}

/// An input token that the step before chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedToken {
    /// Index in [`Batch::tokens`].
    pub token: u32,
    /// Index in the [`Batch::samples`] of the step before. Where its logits are not finite any token may be taken: what
    /// is computed from it is dropped.
    pub sample: u32,
}

impl Batch {
    /// Empties it for the next plan; the buffers are kept.
    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.slot_mapping.clear();
        self.query_starts.clear();
        self.query_starts.push(0);
        self.context_lens.clear();
        self.block_tables.clear();
        self.blocks_per_row = 0;
        self.samples.clear();
        self.prompt_rows.clear();
        self.carried.clear();
    }

    /// Number of sequences.
    pub fn num_sequences(&self) -> usize {
        self.context_lens.len()
    }

    /// Number of tokens.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }
}

/// One token to be sampled: everything the draw depends on, nothing of its neighbours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleRow {
    /// Whose token it is.
    pub sequence: SequenceId,
    /// Index of the sequence in the batch, `0..S`; its logits are those of its last token.
    pub row: u32,
    /// How to choose.
    pub params: Arc<SamplingParams>,
    /// Seed of the request's draws, already resolved and mixed with the choice's index.
    pub seed: u64,
    /// Index in the sequence of the token to be chosen: the counter of the generator.
    pub position: u32,
    /// Tokens made impossible for this draw (`min_tokens` not reached, bad words), sorted.
    pub suppressed: Vec<TokenId>,
    /// The only tokens that are possible for this draw; `None`: all.
    #[serde(skip)]
    pub allowed: Option<TokenMask>,
    /// The tokens so far, present when a penalty needs them.
    pub history: Option<TokenHistory>,
}

/// A sequence's tokens, split where generation began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenHistory {
    /// The prompt.
    pub prompt: Arc<[TokenId]>,
    /// What has been generated.
    pub output: Vec<TokenId>,
}
