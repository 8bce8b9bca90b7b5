//! What the worker and the page say to each other, as JSON.

use firebrick_engine::{EngineSnapshot, RowSnapshot, SamplingParams};
use serde::{Deserialize, Serialize};

/// How to load a model and how large everything may become.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadRequest {
    /// The file's name, for messages.
    pub name: String,
    /// Where to compute.
    pub device: DeviceName,
    /// Tokens per KV block.
    pub block_size: u32,
    /// KV blocks.
    pub num_blocks: u32,
    /// Tokens in one step, at most.
    pub max_num_batched_tokens: u32,
    /// Sequences in one step, at most.
    pub max_num_seqs: u32,
    /// Prompt and answer together, at most; cut to what the model was made for.
    pub max_model_len: u32,
    /// Share blocks between requests with equal beginnings.
    pub enable_prefix_caching: bool,
    /// Draws of requests without a seed derive from this.
    pub seed: u64,
}

/// A way to compute in a browser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceName {
    /// WGSL on the browser's adapter.
    Webgpu,
    /// WebAssembly on one core.
    Cpu,
}

/// What was loaded.
#[derive(Clone, Debug, Serialize)]
pub struct ModelFacts {
    /// The file's name.
    pub name: String,
    /// Its architecture.
    pub architecture: String,
    /// Where it runs.
    pub device: DeviceName,
    /// Form of the weights.
    pub dtype: String,
    /// Numbers in the model.
    pub num_parameters: u64,
    /// Layers.
    pub num_layers: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Bytes of the weights on the device, about.
    pub weight_bytes: u64,
    /// Bytes of one token's keys and values.
    pub kv_bytes_per_token: u64,
    /// Prompt and answer together, at most.
    pub max_model_len: u32,
    /// The model has a template for conversations.
    pub has_chat_template: bool,
}

/// One turn of a conversation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A request of the page: a conversation, or a plain text to continue.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatRequest {
    /// The conversation so far; empty for a plain text.
    #[serde(default)]
    pub messages: Vec<Turn>,
    /// Text after the rendered conversation: the beginning of an answer to be continued, or the plain text.
    #[serde(default)]
    pub text: String,
    /// How tokens are chosen; what is left out has its default.
    #[serde(default)]
    pub sampling: Sampling,
    /// Texts that end the answer.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Go on after the model's own end.
    #[serde(default)]
    pub ignore_eos: bool,
    /// Cut `max_tokens` to what the model and the pool have room for, instead of refusing; the reply says to how many.
    #[serde(default)]
    pub fit: bool,
}

/// The sampling settings of the page, named as in the HTTP API.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    max_tokens: Option<u32>,
    seed: Option<u64>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
}

impl Sampling {
    /// As the engine takes it.
    pub fn params(&self, ignore_eos: bool) -> SamplingParams {
        let default = SamplingParams::default();
        SamplingParams {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_p: self.top_p.unwrap_or(default.top_p),
            top_k: self.top_k,
            max_tokens: self.max_tokens,
            seed: self.seed,
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            repetition_penalty: self.repetition_penalty.unwrap_or(default.repetition_penalty),
            ignore_eos,
            ..default
        }
    }
}

/// An accepted request.
#[derive(Clone, Debug, Serialize)]
pub struct Accepted {
    /// Its number, in every later report.
    pub request: u64,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Tokens that the answer may have, where that was limited.
    pub max_tokens: Option<u32>,
}

/// What one step did.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// What happened to requests, in order.
    pub events: Vec<Event>,
    /// The rows of the batch that ran.
    pub rows: Vec<RowSnapshot>,
    /// The engine's state after the step.
    pub engine: EngineSnapshot,
    /// Shapes of steps that are replayed from a recording by now.
    pub num_graphs: usize,
}

/// Something that happened to a request.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// It entered a batch for the first time.
    Scheduled {
        /// Which.
        request: u64,
        /// Prompt tokens whose keys and values were already there.
        cached_tokens: u32,
    },
    /// It got a token.
    Token {
        /// Which.
        request: u64,
        /// The token.
        token: u32,
        /// Text that is certain now; may be empty.
        text: String,
    },
    /// It is over.
    Finished {
        /// Which.
        request: u64,
        /// The last piece of text.
        text: String,
        /// `stop`, `length`, `abort`, or what failed.
        reason: String,
    },
}

/// One token of a block.
#[derive(Clone, Debug, Serialize)]
pub struct BlockToken {
    /// The token.
    pub token: u32,
    /// How it is written.
    pub text: String,
}
