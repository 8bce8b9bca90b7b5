//! Responses and stream chunks, in the order of fields that clients are used to.

use firebrick_engine::TokenId;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::choice::TokenLogprob;

use super::tools::{CallDelta, ReplyCall};

/// A field that is absent, null or a value.
pub type Field<T> = Option<Option<T>>;

/// What ended a choice beyond `finish_reason`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    /// A requested stop token.
    Token(TokenId),
    /// A stop string.
    Text(String),
}

/// Token counts of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Both together.
    pub total_tokens: u64,
    /// Tokens of all choices, end-of-sequence tokens included.
    pub completion_tokens: u64,
    /// More about the prompt.
    pub prompt_tokens_details: PromptTokensDetails,
    /// More about the completion.
    pub completion_tokens_details: CompletionTokensDetails,
}

/// More about the prompt's tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PromptTokensDetails {
    /// Those whose keys and values came from the prefix cache.
    pub cached_tokens: u64,
}

/// More about the completion's tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CompletionTokensDetails {
    /// Those of a separate reasoning text.
    pub reasoning_tokens: u64,
}

/// How fast the request was.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct VllmStats {
    /// From arrival to the last token.
    pub inference_time_seconds: f64,
    /// Generated tokens over that time.
    pub tokens_per_second: f64,
}

/// The answer of `/v1/chat/completions`.
#[derive(Debug, Serialize)]
pub struct ChatResponse {
    /// `chatcmpl-…`.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The served name that was asked for.
    pub model: String,
    /// One per `n`.
    pub choices: Vec<ChatChoice>,
    /// Token counts.
    pub usage: Usage,
    /// Speed.
    pub vllm_stats: VllmStats,
    /// The prompt's tokens, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<TokenId>>,
    /// One entry per token of the prompt, when asked for; nothing predicts the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Option<PromptPosition>>>,
}

/// One choice of a chat answer.
#[derive(Debug, Serialize)]
pub struct ChatChoice {
    /// Its number.
    pub index: u32,
    /// The assistant's message.
    pub message: ReplyMessage,
    /// Present when asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `abort`.
    pub finish_reason: &'static str,
    /// Which stop token or string.
    pub stop_reason: Option<StopReason>,
    /// Its tokens, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<TokenId>>,
}

/// The assistant's message.
#[derive(Debug, Serialize)]
pub struct ReplyMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The text; null beside calls without any.
    pub content: Option<String>,
    /// What the model thought before it spoke.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The same under its older name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// What it calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ReplyCall>,
}

/// Log-probabilities of a chat choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChatLogprobs {
    /// One entry per token.
    pub content: Vec<ChatTokenLogprob>,
}

/// Log-probabilities at one position.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatTokenLogprob {
    /// The chosen token.
    #[serde(flatten)]
    pub chosen: ChatTopLogprob,
    /// The most likely tokens.
    pub top_logprobs: Vec<ChatTopLogprob>,
}

/// A token and how likely it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatTopLogprob {
    /// Its text.
    pub token: String,
    /// Its log-probability.
    pub logprob: f32,
    /// What it adds to the text; need not be UTF-8.
    pub bytes: Vec<u8>,
}

/// A chunk of a streamed chat answer.
#[derive(Debug, Serialize)]
pub struct ChatChunk<'a> {
    /// `chatcmpl-…`.
    pub id: &'a str,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The served name.
    pub model: &'a str,
    /// One choice, or none in the usage chunk.
    pub choices: Vec<ChatChunkChoice>,
    /// Absent unless the client asked for usage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Field<Usage>,
    /// In the usage chunk only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vllm_stats: Option<VllmStats>,
    /// The prompt's tokens in a choice's first chunk, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<TokenId>>,
}

/// What a chunk adds to a choice.
#[derive(Debug, Default, Serialize)]
pub struct ChatChunkChoice {
    /// The choice's number.
    pub index: u32,
    /// The addition.
    pub delta: ChatDelta,
    /// Of the tokens in this chunk.
    pub logprobs: Option<ChatLogprobs>,
    /// Set in the choice's last chunk.
    pub finish_reason: Option<&'static str>,
    /// Present in the choice's last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Field<StopReason>,
    /// The chunk's tokens, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<TokenId>>,
}

/// An addition to a message.
#[derive(Debug, Default, Serialize)]
pub struct ChatDelta {
    /// `assistant`, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More reasoning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The same under its older name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// More of calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<CallDelta>,
}

/// The answer of `/v1/completions`.
#[derive(Debug, Serialize)]
pub struct CompletionResponse {
    /// `cmpl-…`.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The served name that was asked for.
    pub model: String,
    /// `n` per prompt.
    pub choices: Vec<CompletionChoice>,
    /// Token counts.
    pub usage: Usage,
    /// Speed.
    pub vllm_stats: VllmStats,
}

/// One choice of a completion, or what a chunk adds to it.
#[derive(Debug, Default, Serialize)]
pub struct CompletionChoice {
    /// Prompt number times `n` plus the choice's number.
    pub index: u32,
    /// The text.
    pub text: String,
    /// Present when asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop`, `length` or `abort`; null in chunks before the last.
    pub finish_reason: Option<&'static str>,
    /// Present with `finish_reason`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Field<StopReason>,
    /// Its tokens, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<TokenId>>,
    /// The prompt's tokens, once, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<TokenId>>,
    /// One entry per token of the prompt, when asked for; nothing predicts the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Option<PromptPosition>>>,
}

/// A chunk of a streamed completion.
#[derive(Debug, Serialize)]
pub struct CompletionChunk<'a> {
    /// `cmpl-…`.
    pub id: &'a str,
    /// `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The served name.
    pub model: &'a str,
    /// One choice, or none in the usage chunk.
    pub choices: Vec<CompletionChoice>,
    /// Absent unless the client asked for usage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Field<Usage>,
    /// In the usage chunk only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vllm_stats: Option<VllmStats>,
}

/// Log-probabilities of a completion, one entry per token in every list.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    /// Where the token's text begins, in characters.
    pub text_offset: Vec<usize>,
    /// Log-probability of the chosen token; null for the first of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// Text of the chosen token.
    pub tokens: Vec<String>,
    /// The most likely tokens, and the chosen one where it is none of them; null where nothing is predicted.
    pub top_logprobs: Vec<Option<TopLogprobs>>,
}

impl CompletionLogprobs {
    /// Adds what comes after.
    pub fn extend(&mut self, more: Self) {
        self.text_offset.extend(more.text_offset);
        self.token_logprobs.extend(more.token_logprobs);
        self.tokens.extend(more.tokens);
        self.top_logprobs.extend(more.top_logprobs);
    }
}

/// What might have stood in one place of a prompt: a map from token ids, the actual one first, then the likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptPosition(pub Vec<(TokenId, PromptLogprob)>);

impl Serialize for PromptPosition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(id, logprob)| (id.to_string(), logprob)))
    }
}

/// How likely a token of a prompt was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptLogprob {
    /// Its log-probability.
    pub logprob: f32,
    /// Its place among all tokens, from 1.
    pub rank: u32,
    /// Its text.
    pub decoded_token: String,
}

/// A map from token text to log-probability, in order of likelihood. Texts may repeat: different tokens can read alike.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopLogprobs(Vec<(String, f32)>);

impl TopLogprobs {
    /// The likeliest tokens of a place, best first, and the one that stands there, which may be less likely than all.
    pub fn new<'a>(top: impl IntoIterator<Item = &'a TokenLogprob>, actual: &'a TokenLogprob) -> Self {
        let entry = |token: &TokenLogprob| (token.text.clone(), token.logprob);
        // Where the actual token is among the likeliest, its text is a repetition.
        Self(top.into_iter().chain([actual]).map(entry).collect())
    }
}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (index, (text, logprob)) in self.0.iter().enumerate() {
            // The likelier of two tokens that read alike is kept, since keys must be unique.
            if self.0[..index].iter().all(|(earlier, _)| earlier != text) {
                map.serialize_entry(text, logprob)?;
            }
        }
        map.end()
    }
}
