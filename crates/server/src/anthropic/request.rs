//! The bodies of `/v1/messages` and `/v1/messages/count_tokens`. Values are checked in `input.rs`.

use std::fmt;

use schemars::JsonSchema;
use serde::de::{Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::openai::Loose;

/// What to answer, and how.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MessagesRequest {
    /// The model's served name.
    pub model: Option<String>,
    /// Tokens to generate at most; must be given.
    pub max_tokens: Option<i64>,
    /// The conversation.
    pub messages: Option<Vec<Turn>>,
    /// What the model is told before the conversation.
    pub system: Option<Blocks>,
    /// Strings that end the text.
    pub stop_sequences: Option<Vec<String>>,
    /// Answer with server-sent events.
    pub stream: Option<bool>,
    /// 0 always takes the most likely token.
    pub temperature: Option<f64>,
    /// Nucleus sampling.
    pub top_p: Option<f64>,
    /// Keep the most likely tokens.
    pub top_k: Option<i64>,
    /// Tools that the model may use.
    pub tools: Option<Vec<AnthropicTool>>,
    /// Whether it must.
    pub tool_choice: Option<AnthropicToolChoice>,
    /// Whether to think first.
    pub thinking: Option<Thinking>,
    /// Refused unless empty.
    pub mcp_servers: Option<Loose>,
    /// Refused unless empty.
    pub container: Option<Loose>,
    /// Refused unless it keeps all that it names.
    pub context_management: Option<ContextManagement>,
    /// The form of the text and how long to think.
    pub output_config: Option<OutputConfig>,
    /// The older place of `output_config.format`.
    pub output_format: Option<OutputFormat>,
    /// Variables for the chat template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Separates prefix caches.
    pub cache_salt: Option<String>,
    // Informational: accepted and not used.
    #[serde(rename = "metadata")]
    #[schemars(with = "Option<Value>")]
    _metadata: Option<IgnoredAny>,
    #[serde(rename = "service_tier")]
    #[schemars(with = "Option<Value>")]
    _service_tier: Option<IgnoredAny>,
    #[serde(rename = "speed")]
    #[schemars(with = "Option<Value>")]
    _speed: Option<IgnoredAny>,
    #[serde(rename = "cache_control")]
    #[schemars(with = "Option<Value>")]
    _cache_control: Option<IgnoredAny>,
}

/// `context_management`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ContextManagement {
    /// What is taken out of a conversation before it is answered.
    pub edits: Option<Vec<ContextEdit>>,
}

/// One kind of edit.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ContextEdit {
    /// Such as `clear_thinking_20251015`.
    pub r#type: String,
    /// What stays: `all`, or something that has no meaning here.
    pub keep: Option<Value>,
}

/// `output_config`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutputConfig {
    /// A JSON schema.
    pub format: Option<OutputFormat>,
    /// How long to think; see `reasoning_effort` of chat completions.
    pub effort: Option<String>,
}

/// A JSON schema that the text follows.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutputFormat {
    /// `json_schema`.
    pub r#type: String,
    /// The schema.
    pub schema: Option<Value>,
}

/// A conversation whose tokens are to be counted.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CountTokensRequest {
    /// The model's served name.
    pub model: Option<String>,
    /// The conversation.
    pub messages: Option<Vec<Turn>>,
    /// What the model is told before the conversation.
    pub system: Option<Blocks>,
    /// Tools that the model may use.
    pub tools: Option<Vec<AnthropicTool>>,
    /// Whether it must.
    pub tool_choice: Option<AnthropicToolChoice>,
    /// Whether to think first.
    pub thinking: Option<Thinking>,
    /// Refused unless empty.
    pub mcp_servers: Option<Loose>,
    /// Refused unless it keeps all that it names.
    pub context_management: Option<ContextManagement>,
    /// The form of the text and how long to think.
    pub output_config: Option<OutputConfig>,
    #[serde(rename = "cache_control")]
    #[schemars(with = "Option<Value>")]
    _cache_control: Option<IgnoredAny>,
}

/// One turn of a conversation.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Turn {
    /// `user` or `assistant`.
    pub role: Option<String>,
    /// What is said.
    pub content: Option<Blocks>,
}

/// A text, or a list of blocks.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Blocks {
    /// Plain text.
    Text(String),
    /// Blocks in a row.
    List(Vec<Block>),
}

/// One block; its type says which fields count. Others, such as `cache_control`, change nothing here.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Block {
    /// `text`, `thinking`, `redacted_thinking`, `tool_use` or `tool_result`.
    pub r#type: String,
    /// Of a text.
    pub text: Option<String>,
    /// Of thinking.
    pub thinking: Option<String>,
    /// Of a tool use.
    pub id: Option<String>,
    /// Of a tool use.
    pub name: Option<String>,
    /// Of a tool use: an object.
    pub input: Option<Value>,
    /// Of a tool result.
    pub tool_use_id: Option<String>,
    /// Of a tool result.
    pub content: Option<Blocks>,
    /// Of a tool result: the tool failed.
    pub is_error: Option<bool>,
}

/// A tool that the model may use.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct AnthropicTool {
    /// `custom`; tools that run at the provider are refused.
    pub r#type: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// JSON schema of its input.
    pub input_schema: Option<Value>,
    /// Whether input must follow the schema; it does whenever a use is forced.
    pub strict: Option<bool>,
    /// Refused when true: there is no search for tools.
    pub defer_loading: Option<bool>,
    /// Refused: what other kinds of tools have.
    #[serde(flatten)]
    #[schemars(skip)]
    pub other: Map<String, Value>,
    // Input is streamed as it is generated in any case.
    #[serde(rename = "eager_input_streaming")]
    #[schemars(with = "Option<Value>")]
    _eager_input_streaming: Option<IgnoredAny>,
    #[serde(rename = "cache_control")]
    #[schemars(with = "Option<Value>")]
    _cache_control: Option<IgnoredAny>,
}

/// `tool_choice`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AnthropicToolChoice {
    /// `auto`, `any`, `tool` or `none`.
    pub r#type: String,
    /// Of `tool`.
    pub name: Option<String>,
    /// At most one tool use in an answer.
    pub disable_parallel_tool_use: Option<bool>,
}

/// `thinking`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Thinking {
    /// `enabled`, `adaptive` or `disabled`.
    pub r#type: String,
    /// Accepted; the model itself decides how long it thinks.
    pub budget_tokens: Option<i64>,
    /// Accepted: thinking is shown as it is.
    pub display: Option<String>,
}

impl<'de> Deserialize<'de> for Blocks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BlocksVisitor;
        impl<'de> Visitor<'de> for BlocksVisitor {
            type Value = Blocks;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or a list of content blocks")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Blocks, E> {
                Ok(Blocks::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Blocks, A::Error> {
                let mut blocks = Vec::new();
                while let Some(block) = seq.next_element()? {
                    blocks.push(block);
                }
                Ok(Blocks::List(blocks))
            }
        }
        deserializer.deserialize_any(BlocksVisitor)
    }
}
