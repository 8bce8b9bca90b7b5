//! Requests as clients send them. Values are checked in `validate.rs`; here only their types count.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::fields::{Loose, OneOrMany, Prompt};
use super::structured::{ResponseFormat, StructuredOutputFields};
use super::tools::{PastCall, Tool};

/// Calls a macro with its arguments and, after them, the fields that every generating endpoint has.
///
/// Macros and not `#[serde(flatten)]`, which would buffer the whole body and could not refuse unknown fields.
macro_rules! with_shared_fields {
    ($declare:ident! { $($arguments:tt)* }) => {
        $declare! { $($arguments)* shared {
        /// The model's served name; the only model when absent.
        model: String,
        /// See [`firebrick_engine::SamplingParams`], as the fields below.
        temperature: f64,
        /// Nucleus sampling.
        top_p: f64,
        /// Keep the most likely tokens; 0 or -1 keep all.
        top_k: i64,
        /// Relative probability floor.
        min_p: f64,
        /// Fixes the draws.
        seed: i64,
        /// Tokens to generate at most.
        max_tokens: i64,
        /// End-of-sequence is impossible before this many tokens.
        min_tokens: i64,
        /// Generate past end-of-sequence.
        ignore_eos: bool,
        /// Strings that end the text.
        stop: OneOrMany,
        /// Tokens that end the text.
        stop_token_ids: Vec<i64>,
        /// Keep the stop string in the text.
        include_stop_str_in_output: bool,
        /// Choices per prompt.
        n: i64,
        /// Penalty per occurrence.
        frequency_penalty: f64,
        /// Penalty for having occurred.
        presence_penalty: f64,
        /// Divisor of logits of tokens seen.
        repetition_penalty: f64,
        /// Token id to bias.
        logit_bias: HashMap<String, f64>,
        /// Answer with server-sent events.
        stream: bool,
        /// Which usage reports a stream carries.
        stream_options: StreamOptionFields,
        /// Tokens that a chunk of a stream holds at least, the first and the last aside.
        stream_interval: i64,
        /// Leave special tokens out of the text.
        skip_special_tokens: bool,
        /// Lower runs first.
        priority: i64,
        /// Separates prefix caches.
        cache_salt: String,
        /// Text, JSON, JSON of a schema, or text with tags.
        response_format: ResponseFormat,
        /// What the text must match.
        structured_outputs: StructuredOutputFields,
        /// An older way to ask for JSON of a schema.
        guided_json: Value,
        /// An older way to ask for a regular expression.
        guided_regex: String,
        /// An older way to ask for a choice.
        guided_choice: Vec<String>,
        /// An older way to ask for a grammar.
        guided_grammar: String,
        /// White space in the JSON of `guided_json`.
        guided_whitespace_pattern: String,
        /// Generate so many choices per prompt and answer with the likeliest `n`.
        best_of: i64,
        /// Search for the likeliest texts, with `best_of` beams, or `n`. Nothing is drawn then, so that temperature and
        /// seed change nothing.
        use_beam_search: bool,
        /// How much longer texts are favoured by beam search.
        length_penalty: f64,
        /// Report log-probabilities of the prompt's tokens and of this many alternatives.
        prompt_logprobs: i64,
        /// Texts that must not be generated.
        bad_words: Vec<String>,
        /// The only tokens that may be generated.
        allowed_token_ids: Vec<i64>,
        /// Keep this many of the prompt's last tokens; -1 keeps what fits.
        truncate_prompt_tokens: i64,
        /// Report the tokens of prompt and text.
        return_token_ids: bool,
        /// Show tokens as `token_id:N` where log-probabilities show their text.
        return_tokens_as_token_ids: bool,
        /// Refused unless `left`: a prompt that is too long keeps its end.
        truncation_side: String,
        /// Refused unless true.
        spaces_between_special_tokens: bool,
        } }
    };
}

/// Declares a request type: its own fields and the shared ones.
macro_rules! request {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $type:ty,)* }
        shared { $($(#[$shared_doc:meta])* $shared:ident: $shared_type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Default, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$doc])* pub $field: Option<$type>,)*
            $($(#[$shared_doc])* pub $shared: Option<$shared_type>,)*
            // Informational: accepted and not used.
            #[serde(rename = "user")]
            #[schemars(with = "Option<Value>")]
            _user: Option<IgnoredAny>,
            #[serde(rename = "metadata")]
            #[schemars(with = "Option<Value>")]
            _metadata: Option<IgnoredAny>,
            #[serde(rename = "store")]
            #[schemars(with = "Option<Value>")]
            _store: Option<IgnoredAny>,
            #[serde(rename = "service_tier")]
            #[schemars(with = "Option<Value>")]
            _service_tier: Option<IgnoredAny>,
            #[serde(rename = "safety_identifier")]
            #[schemars(with = "Option<Value>")]
            _safety_identifier: Option<IgnoredAny>,
            #[serde(rename = "guided_decoding_backend")]
            #[schemars(with = "Option<Value>")]
            _guided_decoding_backend: Option<IgnoredAny>,
            #[serde(rename = "prompt_cache_key")]
            #[schemars(with = "Option<Value>")]
            _prompt_cache_key: Option<IgnoredAny>,
            #[serde(rename = "prompt_cache_retention")]
            #[schemars(with = "Option<Value>")]
            _prompt_cache_retention: Option<IgnoredAny>,
            #[serde(rename = "prompt_cache_options")]
            #[schemars(with = "Option<Value>")]
            _prompt_cache_options: Option<IgnoredAny>,
            #[serde(rename = "request_id")]
            #[schemars(with = "Option<Value>")]
            _request_id: Option<IgnoredAny>,
        }

        impl $name {
            /// The fields that every generating endpoint has; they are gone from `self` afterwards.
            pub fn take_sampling(&mut self) -> SamplingFields {
                SamplingFields { $($shared: self.$shared.take(),)* }
            }
        }
    };
}

/// Declares the struct of the shared fields alone.
macro_rules! shared_fields {
    (shared { $($(#[$doc:meta])* $field:ident: $type:ty,)* }) => {
        /// What every generating endpoint takes, unchecked.
        #[derive(Debug, Default)]
        pub struct SamplingFields {
            $($(#[$doc])* pub $field: Option<$type>,)*
        }
    };
}

with_shared_fields! { shared_fields! {} }

with_shared_fields! { request! {
    /// The body of `/v1/chat/completions`.
    ChatRequest {
        /// The conversation.
        messages: Vec<ChatMessage>,
        /// The newer name of `max_tokens`.
        max_completion_tokens: i64,
        /// Report log-probabilities.
        logprobs: bool,
        /// How many alternatives per token.
        top_logprobs: i64,
        /// Begin the assistant's turn.
        add_generation_prompt: bool,
        /// Continue the last message.
        continue_final_message: bool,
        /// Variables for the chat template.
        chat_template_kwargs: serde_json::Map<String, Value>,
        /// Refused: templates come with the model.
        chat_template: Loose,
        /// What the model may call.
        tools: Vec<Tool>,
        /// Whether it must; see `tool_use.rs`.
        tool_choice: Value,
        /// Several calls in one answer are allowed.
        parallel_tool_calls: bool,
        /// Show what the model thinks before it speaks.
        include_reasoning: bool,
        /// A variable for the chat template; `none` also asks it not to think.
        reasoning_effort: String,
        /// Refused unless empty.
        functions: Loose,
        /// Refused unless `none`.
        function_call: Loose,
        /// Put the model's special tokens around the rendered text.
        add_special_tokens: bool,
        /// Only `["text"]`.
        modalities: OneOrMany,
        /// Texts that the chat template may put before the conversation, as its variable `documents`.
        documents: Vec<serde_json::Map<String, Value>>,
        /// A guess at the answer, which could make it come sooner: informational.
        prediction: Loose,
        /// A variable for the chat template: `low`, `medium` or `high`.
        verbosity: String,
        /// Refused unless empty.
        audio: Loose,
        /// Refused: nothing is searched.
        web_search_options: Loose,
        /// Refused unless empty.
        moderation: Loose,
        /// Refused unless false: an answer does not repeat what it continues.
        echo: Loose,
    }
} }

with_shared_fields! { request! {
    /// The body of `/v1/completions`.
    CompletionRequest {
        /// What to continue.
        prompt: Prompt,
        /// Report log-probabilities of this many alternatives.
        logprobs: i64,
        /// Begin the text with the prompt.
        echo: bool,
        /// Add the model's special tokens to text prompts.
        add_special_tokens: bool,
        /// Refused unless empty.
        suffix: Loose,
    }
} }

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StreamOptionFields {
    /// A last chunk with the usage.
    pub include_usage: Option<bool>,
    /// The usage so far in every chunk.
    pub continuous_usage_stats: Option<bool>,
    /// Padding against traffic analysis; refused unless false.
    pub include_obfuscation: Option<bool>,
}

/// One message of a conversation.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Option<String>,
    /// What is said.
    pub content: Option<MessageContent>,
    /// The speaker's name.
    pub name: Option<String>,
    /// What the assistant called.
    pub tool_calls: Option<Vec<PastCall>>,
    /// The call whose result this is.
    pub tool_call_id: Option<String>,
    /// Refused unless empty.
    pub function_call: Option<Loose>,
    /// What the assistant thought before it spoke.
    pub reasoning: Option<String>,
    /// The older name of `reasoning`.
    pub reasoning_content: Option<String>,
    // Parts of answers that clients send back: accepted and not used.
    #[serde(rename = "refusal")]
    #[schemars(with = "Option<Value>")]
    _refusal: Option<IgnoredAny>,
    #[serde(rename = "annotations")]
    #[schemars(with = "Option<Value>")]
    _annotations: Option<IgnoredAny>,
    #[serde(rename = "audio")]
    #[schemars(with = "Option<Value>")]
    _audio: Option<IgnoredAny>,
}

/// Text, or a list of parts.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(untagged)]
pub enum MessageContent {
    /// The whole text.
    Text(String),
    /// Texts in a row.
    Parts(Vec<ContentPart>),
}

/// One part of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ContentPart {
    /// `text`; other types are refused.
    pub r#type: String,
    /// The text.
    pub text: Option<String>,
}

impl<'de> Deserialize<'de> for MessageContent {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ContentVisitor;
        impl<'de> serde::de::Visitor<'de> for ContentVisitor {
            type Value = MessageContent;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a string or a list of content parts")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<MessageContent, E> {
                Ok(MessageContent::Text(text.to_owned()))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<MessageContent, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = seq.next_element()? {
                    parts.push(part);
                }
                Ok(MessageContent::Parts(parts))
            }
        }
        deserializer.deserialize_any(ContentVisitor)
    }
}
