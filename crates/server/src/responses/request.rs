//! The body of `/v1/responses`. Values are checked in `input.rs`; here only their types count.

use std::collections::HashMap;
use std::fmt;

use schemars::JsonSchema;
use serde::de::{Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::openai::{Loose, MessageContent, OneOrMany, StructuredOutputFields};

/// What to answer, and how.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResponsesRequest {
    /// The model's served name; the only model when absent.
    pub model: Option<String>,
    /// A text, or a conversation.
    pub input: Option<ResponseInput>,
    /// A system message before the conversation; not carried over to later responses.
    pub instructions: Option<String>,
    /// The response that this one continues.
    pub previous_response_id: Option<String>,
    /// Keep the response, so that it can be retrieved and continued.
    pub store: Option<bool>,
    /// Answer at once and generate behind; poll for the result.
    pub background: Option<bool>,
    /// Answer with server-sent events.
    pub stream: Option<bool>,
    /// Options of the stream.
    pub stream_options: Option<ResponseStreamOptions>,
    /// Tokens to generate at most.
    pub max_output_tokens: Option<i64>,
    /// 0 always takes the most likely token.
    pub temperature: Option<f64>,
    /// Nucleus sampling.
    pub top_p: Option<f64>,
    /// Keep the most likely tokens.
    pub top_k: Option<i64>,
    /// Relative probability floor.
    pub min_p: Option<f64>,
    /// Fixes the draws.
    pub seed: Option<i64>,
    /// Divisor of logits of tokens seen.
    pub repetition_penalty: Option<f64>,
    /// Penalty for having occurred.
    pub presence_penalty: Option<f64>,
    /// Penalty per occurrence.
    pub frequency_penalty: Option<f64>,
    /// Strings that end the text.
    pub stop: Option<OneOrMany>,
    /// Tokens that end the text.
    pub stop_token_ids: Option<Vec<i64>>,
    /// Keep the stop string in the text.
    pub include_stop_str_in_output: Option<bool>,
    /// Generate past end-of-sequence.
    pub ignore_eos: Option<bool>,
    /// Token id to bias.
    pub logit_bias: Option<HashMap<String, f64>>,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: Option<bool>,
    /// What the text must match.
    pub structured_outputs: Option<StructuredOutputFields>,
    /// Show what the model thinks before it speaks.
    pub include_reasoning: Option<bool>,
    /// Lower runs first.
    pub priority: Option<i64>,
    /// Separates prefix caches.
    pub cache_salt: Option<String>,
    /// Variables for the chat template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Functions that the model may call.
    pub tools: Option<Vec<FlatTool>>,
    /// Whether it must.
    pub tool_choice: Option<Value>,
    /// Several calls in one response are allowed.
    pub parallel_tool_calls: Option<bool>,
    /// How long to think.
    pub reasoning: Option<ReasoningFields>,
    /// The form of the text.
    pub text: Option<TextFields>,
    /// `auto` or `disabled`, which are the same here: a conversation that is too long is refused.
    pub truncation: Option<String>,
    /// Only `reasoning.encrypted_content`, which changes nothing: reasoning is readable wherever it stands.
    pub include: Option<Vec<String>>,
    /// Refused unless 0.
    pub top_logprobs: Option<i64>,
    /// Refused: there are no built-in tools.
    pub max_tool_calls: Option<i64>,
    /// Refused: use `previous_response_id`.
    pub conversation: Option<Loose>,
    /// Refused: prompts are not kept here.
    pub prompt: Option<Loose>,
    /// Refused unless empty: a conversation is sent as it is.
    pub context_management: Option<Loose>,
    /// Refused unless empty.
    pub moderation: Option<Loose>,
    /// Sent back with the response.
    pub metadata: Option<Map<String, Value>>,
    /// Sent back with the response.
    pub user: Option<String>,
    /// Sent back with the response.
    pub safety_identifier: Option<String>,
    /// Sent back with the response; the prefix cache needs no key.
    pub prompt_cache_key: Option<String>,
    // Informational: accepted and not used.
    #[serde(rename = "client_metadata")]
    #[schemars(with = "Option<Value>")]
    _client_metadata: Option<IgnoredAny>,
    #[serde(rename = "service_tier")]
    #[schemars(with = "Option<Value>")]
    _service_tier: Option<IgnoredAny>,
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

/// `stream_options`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResponseStreamOptions {
    /// Padding against traffic analysis; refused unless false.
    pub include_obfuscation: Option<bool>,
}

/// A function that the model may call; chat completions write it one level deeper.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct FlatTool {
    /// `function`; other kinds are refused.
    pub r#type: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// JSON schema of its arguments.
    pub parameters: Option<Value>,
    /// Whether arguments must follow the schema.
    pub strict: Option<bool>,
    /// Refused: what other kinds of tools have.
    #[serde(flatten)]
    #[schemars(skip)]
    pub other: Map<String, Value>,
}

/// `reasoning`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReasoningFields {
    /// How long to think; see `reasoning_effort` of chat completions.
    pub effort: Option<String>,
    /// Accepted: reasoning is shown in full.
    pub summary: Option<String>,
    /// The older name of `summary`.
    pub generate_summary: Option<String>,
}

/// `text`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TextFields {
    /// `{"type": "text"}`, or a JSON schema.
    pub format: Option<TextFormat>,
    /// A variable for the chat template: `low`, `medium` or `high`.
    pub verbosity: Option<String>,
}

/// `text.format`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TextFormat {
    /// `text`, `json_object` or `json_schema`.
    pub r#type: String,
    /// With `json_schema`.
    pub schema: Option<Value>,
    /// Informational.
    pub name: Option<String>,
    /// Informational.
    pub description: Option<String>,
    /// Objects have no properties but those that the schema names, unless it says otherwise. A schema is followed to the
    /// letter in any case.
    pub strict: Option<bool>,
}

/// A text, or a list of items.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum ResponseInput {
    /// What the user says.
    Text(String),
    /// A conversation.
    Items(Vec<InputItem>),
}

/// One item of a conversation: a message, a call, its output, or reasoning.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InputItem {
    /// `message`, `function_call`, `function_call_output` or `reasoning`.
    pub r#type: Option<String>,
    /// Of a message.
    pub role: Option<String>,
    /// Of a message or of reasoning.
    pub content: Option<MessageContent>,
    /// Of a call and its output.
    pub call_id: Option<String>,
    /// Of a call.
    pub name: Option<String>,
    /// Of a call: a JSON object as text.
    pub arguments: Option<String>,
    /// Of a call's output.
    pub output: Option<MessageContent>,
    /// Of reasoning.
    pub summary: Option<MessageContent>,
    // Parts of answers that clients send back: accepted and not used.
    #[serde(rename = "id")]
    #[schemars(with = "Option<Value>")]
    _id: Option<IgnoredAny>,
    #[serde(rename = "status")]
    #[schemars(with = "Option<Value>")]
    _status: Option<IgnoredAny>,
    #[serde(rename = "encrypted_content")]
    #[schemars(with = "Option<Value>")]
    _encrypted_content: Option<IgnoredAny>,
    #[serde(rename = "namespace")]
    #[schemars(with = "Option<Value>")]
    _namespace: Option<IgnoredAny>,
    #[serde(rename = "phase")]
    #[schemars(with = "Option<Value>")]
    _phase: Option<IgnoredAny>,
}

impl<'de> Deserialize<'de> for ResponseInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InputVisitor;
        impl<'de> Visitor<'de> for InputVisitor {
            type Value = ResponseInput;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or a list of items")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ResponseInput, E> {
                Ok(ResponseInput::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<ResponseInput, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(ResponseInput::Items(items))
            }
        }
        deserializer.deserialize_any(InputVisitor)
    }
}
