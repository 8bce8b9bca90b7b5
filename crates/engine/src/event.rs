//! What comes back from a step.

use crate::{PromptResult, RequestId, TokenId};

/// Log-probabilities of one generated position, under the model's own distribution (before penalties and filters).
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// Rank of the chosen token, 1 for the most likely.
    pub rank: u32,
    /// The most likely tokens, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// A token chosen by the sampler.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub token: TokenId,
    /// Present when the request asked for log-probabilities.
    pub logprobs: Option<TokenLogprobs>,
}

/// The sampler's answer for one row.
#[derive(Clone, Debug, PartialEq)]
pub enum SampleOutcome {
    /// A token.
    Token(SampledToken),
    /// The row's logits were not finite; only this sequence ends.
    NotFinite,
}

/// What a step gives back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// One per `batch.samples`, in order.
    pub samples: Vec<SampleOutcome>,
    /// One per `batch.prompt_rows`, in order.
    pub prompts: Vec<PromptResult>,
}

impl From<Vec<SampleOutcome>> for StepOutput {
    fn from(samples: Vec<SampleOutcome>) -> Self {
        Self { samples, prompts: Vec::new() }
    }
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-sequence or stop token; the id is that of a requested stop token, `None` for end-of-sequence.
    Stop(Option<TokenId>),
    /// `max_tokens` or the model's length was reached.
    Length,
    /// The client left or asked to stop.
    Abort,
    /// The request's own conditions left no token to choose: a grammar that the vocabulary cannot spell, or a grammar or
    /// `allowed_token_ids` against `bad_words`, `min_tokens` or each other.
    Impossible,
    /// The model's output was not usable, or the device failed.
    Error(String),
}

/// Something that happened to one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    /// The request.
    pub request: RequestId,
    /// Which of its `n` choices.
    pub index: u32,
    /// What happened.
    pub kind: EventKind,
}

/// Events of one sequence come in this order: `Scheduled` once, `Prompt`s, `Token`s, `Finished` once; nothing after it.
#[derive(Clone, Debug, PartialEq)]
pub enum EventKind {
    /// Entered a batch for the first time; this many prompt tokens came from the prefix cache.
    Scheduled {
        /// Prompt tokens whose keys and values were already there.
        cached_tokens: u32,
    },
    /// Results of the next positions of the prompt, where the request asked for them; its first choice has them.
    Prompt(PromptResult),
    /// A new token. `is_stop`: it ended the sequence and is not part of the text.
    Token {
        /// The token.
        token: TokenId,
        /// Present when asked for.
        logprobs: Option<TokenLogprobs>,
        /// Ended the sequence; carries no text.
        is_stop: bool,
    },
    /// The sequence is over and its blocks are released.
    Finished {
        /// Why.
        reason: FinishReason,
    },
}
