//! What a chat template is given: messages, special tokens and options.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// The special tokens that a template may name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<String>,
    /// Ends a text.
    pub eos: Option<String>,
    /// Fills up a batch.
    pub pad: Option<String>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<String>,
}

/// One message of a conversation, in the shape of the OpenAI API.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what the template knows.
    pub role: String,
    /// What is said; may be absent where `tool_calls` stand.
    #[serde(default)]
    pub content: Option<MessageContent>,
    /// The speaker's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What an assistant thought before it spoke.
    #[serde(default, alias = "reasoning", skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The tools an assistant called; arguments may be JSON text, templates see them as objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Value>,
    /// The call that a `tool` message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message with plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(MessageContent::Text(content.into())), ..Self::default() }
    }
}

/// The content of a message: a text, or a list of parts.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum MessageContent {
    /// Plain text.
    Text(String),
    /// Parts, each a text.
    Parts(Vec<ContentPart>),
}

impl MessageContent {
    /// The whole text; parts are joined by line ends.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => {
                let texts: Vec<&str> = parts.iter().map(|ContentPart::Text { text }| text.as_str()).collect();
                texts.join("\n")
            }
        }
    }
}

impl<'de> Deserialize<'de> for MessageContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self::Text(text)),
            Value::Array(parts) => parts.into_iter().map(part).collect::<Result<_, _>>().map(Self::Parts),
            _ => Err("message content must be a string or a list of parts".to_owned()),
        }
        .map_err(D::Error::custom)
    }
}

fn part(mut value: Value) -> Result<ContentPart, String> {
    let kind = value["type"].as_str().unwrap_or("(none)").to_owned();
    if kind != "text" {
        return Err(format!("a content part of type {kind:?} is not supported; only \"text\" is"));
    }
    match value.get_mut("text").map(Value::take) {
        Some(Value::String(text)) => Ok(ContentPart::Text { text }),
        _ => Err("a content part of type \"text\" needs a string \"text\"".to_owned()),
    }
}

/// One part of a message's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ContentPart {
    /// A text.
    Text {
        /// The text.
        text: String,
    },
}

/// How a conversation becomes a prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RenderOptions {
    /// End with what begins an answer of the assistant.
    pub add_generation_prompt: bool,
    /// End inside the last message, so that the model continues it.
    pub continue_final_message: bool,
    /// The tools the model may call, in the shape of the OpenAI API.
    pub tools: Option<Value>,
    /// Further variables of the template (`enable_thinking`, …).
    pub kwargs: Map<String, Value>,
    /// What time templates are told it is, in seconds since 1970 (in the time zone to show). Without it, templates do
    /// not see a date at all, and those that want one use their own default.
    pub unix_time_s: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_a_string_or_text_parts() {
        let message: Message = serde_json::from_str(
            r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"refusal":null}"#,
        )
        .expect("valid");
        assert_eq!(message.content.expect("given").text(), "a\nb");
        let message: Message = serde_json::from_str(r#"{"role":"assistant","content":null}"#).expect("valid");
        assert_eq!(message.content, None);
    }

    #[test]
    fn unsupported_parts_are_named() {
        let text = r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}"#;
        let error = serde_json::from_str::<Message>(text).expect_err("images are refused");
        assert!(error.to_string().contains("image_url"), "{error}");
    }
}
