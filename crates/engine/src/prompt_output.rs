//! What a request learns about its prompt: log-probabilities of its tokens, or its hidden states pooled into a vector.
//!
//! Results come chunk by chunk, as the prompt is computed. Each position is reported once: chunks, preemption and
//! abandoned steps change nothing. A position that is still to be reported must be computed, so such a sequence takes from
//! the prefix cache only what stands before it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{SequenceId, TokenId, TokenLogprobs};

/// What is reported of a prompt, beside or instead of generated tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PromptOutput {
    /// The log-probability of each token but the first, and those of this many most likely tokens in its place.
    Logprobs(u32),
    /// The hidden states after the last norm, as one vector.
    Pooled(Pooling),
}

/// How the hidden states of a prompt become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the last token.
    Last,
    /// That of the first token.
    Cls,
}

impl PromptOutput {
    /// The positions whose results are wanted.
    pub(crate) fn positions(self, prompt_len: u32) -> Range<u32> {
        match self {
            Self::Logprobs(_) => 0..prompt_len - 1,
            Self::Pooled(Pooling::Mean) => 0..prompt_len,
            Self::Pooled(Pooling::Last) => prompt_len - 1..prompt_len,
            Self::Pooled(Pooling::Cls) => 0..1,
        }
    }
}

/// Tokens of a batch whose results are reported, a run of one sequence's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptRows {
    /// Whose prompt it is.
    pub sequence: SequenceId,
    /// Places in the batch's `tokens`.
    pub tokens: Range<u32>,
    /// What is reported of them.
    pub wanted: PromptWanted,
}

/// What is reported of a run of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PromptWanted {
    /// How likely the prompt's next token was after each of them.
    Logprobs {
        /// The next token of each.
        next: Vec<TokenId>,
        /// Most likely tokens to report beside it.
        count: u32,
    },
    /// The sum of their hidden states after the last norm.
    HiddenSum,
}

/// The results of one [`PromptRows`].
#[derive(Clone, Debug, PartialEq)]
pub enum PromptResult {
    /// One entry per token: the prompt's next token and its log-probabilities; not a number where the logits are not
    /// finite.
    Logprobs(Vec<(TokenId, TokenLogprobs)>),
    /// A vector, and how many states it is the sum of; it holds numbers that are not finite where the model gave such.
    HiddenSum {
        /// The sum.
        sum: Vec<f32>,
        /// Tokens.
        count: u32,
    },
}

impl PromptRows {
    /// A result that says nothing, for replays: no decision depends on it.
    pub(crate) fn nothing(&self) -> PromptResult {
        match self.wanted {
            PromptWanted::Logprobs { .. } => PromptResult::Logprobs(Vec::new()),
            PromptWanted::HiddenSum => PromptResult::HiddenSum { sum: Vec::new(), count: 0 },
        }
    }
}
