//! What a client asks of the engine: a prompt of tokens and how to continue it.

use serde::{Deserialize, Serialize};

use crate::{Constraint, PromptOutput, TokenId};

/// How the next token is chosen and when a sequence ends.
///
/// Order of application, as in the OpenAI and vLLM APIs: logit bias, allowed tokens, suppression (`min_tokens`, bad
/// words), penalties, temperature, `min_p`, `top_k`, `top_p`, then one draw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// 0 chooses the most likely token; larger values flatten the distribution.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep this many most likely tokens; `None` keeps all.
    pub top_k: Option<u32>,
    /// Keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Fixes the draws of this request. `None`: the engine derives one from its own seed and the request's number.
    pub seed: Option<u64>,
    /// Tokens to generate at most; `None`: up to the model's length. 0 only computes the prompt, for its
    /// [`PromptOutput`].
    pub max_tokens: Option<u32>,
    /// End-of-sequence and stop tokens are impossible before this many generated tokens.
    pub min_tokens: u32,
    /// Keep generating past end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Tokens that end the sequence, beside the model's end-of-sequence tokens.
    pub stop_token_ids: Vec<TokenId>,
    /// Subtracted from a token's logit once per earlier occurrence in the output.
    pub frequency_penalty: f32,
    /// Subtracted from the logit of every token already in the output.
    pub presence_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or output (Keskar et al., 2019).
    /// 1 is off.
    pub repetition_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// The only tokens that may be generated; empty allows all.
    #[serde(default)]
    pub allowed_token_ids: Vec<TokenId>,
    /// Runs of tokens that must not be generated: the last token of a run is impossible after the others.
    #[serde(default)]
    pub bad_words: Vec<Vec<TokenId>>,
    /// Report the chosen token's log-probability and those of this many most likely tokens.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: None,
            min_p: 0.0,
            seed: None,
            max_tokens: None,
            min_tokens: 0,
            ignore_eos: false,
            stop_token_ids: Vec::new(),
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            allowed_token_ids: Vec::new(),
            bad_words: Vec::new(),
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether choosing a token needs the tokens before it.
    pub fn needs_history(&self) -> bool {
        self.frequency_penalty != 0.0 || self.presence_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}

/// One client request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The prompt; never empty.
    pub prompt: Vec<TokenId>,
    /// How to continue it.
    pub params: SamplingParams,
    /// How many independent continuations; they share the prompt's blocks.
    pub n: u32,
    /// Lower runs first under [`SchedulingPolicy::Priority`](crate::SchedulingPolicy::Priority).
    pub priority: i32,
    /// The model's end-of-sequence tokens.
    pub eos_token_ids: Vec<TokenId>,
    /// Requests share cached blocks only with requests of the same salt.
    pub cache_salt: Option<String>,
    /// What each continuation must follow, such as a grammar.
    #[serde(default)]
    pub constraint: Option<Constraint>,
    /// What is reported of the prompt.
    #[serde(default)]
    pub prompt_output: Option<PromptOutput>,
}

impl Request {
    /// A request for one continuation with default priority.
    pub fn new(prompt: Vec<TokenId>, params: SamplingParams) -> Self {
        Self {
            prompt,
            params,
            n: 1,
            priority: 0,
            eos_token_ids: Vec::new(),
            cache_salt: None,
            constraint: None,
            prompt_output: None,
        }
    }
}
