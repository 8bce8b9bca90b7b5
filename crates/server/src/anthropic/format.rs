//! The message object.

use serde_json::{Value, json};

use crate::answer::{AnswerHead, CollectedChoice};
use crate::choice::Finish;
use crate::message::MessagePart;
use crate::openai::{StopReason, Usage};

const CALL_PREFIX: &str = "toolu_";

/// The whole answer.
pub fn message_object(head: &AnswerHead, choices: Vec<CollectedChoice>, usage: &Usage) -> Value {
    let choice = choices.into_iter().next().unwrap_or_default();
    let parts = &choice.message.parts;
    let has_calls = parts.iter().any(|part| matches!(part, MessagePart::Call { .. }));
    let content = parts.iter().map(|part| block(head, part)).collect();
    object(head, content, &Ending::new(choice.finish.as_ref(), has_calls), usage)
}

/// A message; without an ending it is the beginning of a stream.
pub fn object(head: &AnswerHead, content: Vec<Value>, ending: &Ending, usage: &Usage) -> Value {
    json!({
        "id": head.id, "type": "message", "role": "assistant", "model": head.model, "content": content,
        "stop_reason": ending.stop_reason, "stop_sequence": ending.stop_sequence, "usage": usage_value(usage),
    })
}

/// Why a message ends.
#[derive(Default)]
pub struct Ending {
    /// `end_turn`, `max_tokens`, `stop_sequence` or `tool_use`.
    pub stop_reason: Option<&'static str>,
    /// The stop sequence that was found.
    pub stop_sequence: Option<String>,
}

impl Ending {
    /// In Anthropic's words.
    pub fn new(finish: Option<&Finish>, has_calls: bool) -> Self {
        let stop_sequence = match finish.and_then(|finish| finish.stop_reason.clone()) {
            Some(StopReason::Text(text)) => Some(text),
            _ => None,
        };
        let stop_reason = match (finish.map(|finish| finish.reason), &stop_sequence) {
            (Some("length"), _) => "max_tokens",
            (_, Some(_)) => "stop_sequence",
            _ if has_calls => "tool_use",
            _ => "end_turn",
        };
        Self { stop_reason: Some(stop_reason), stop_sequence }
    }
}

/// One block of content, complete.
fn block(head: &AnswerHead, part: &MessagePart) -> Value {
    let mut block = empty_block(head, part);
    match part {
        MessagePart::Reasoning(text) => block["thinking"] = json!(text),
        MessagePart::Text(text) => block["text"] = json!(text),
        MessagePart::Call { arguments, .. } => {
            block["input"] = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
        }
    }
    block
}

/// One block of content before anything was said.
pub fn empty_block(head: &AnswerHead, part: &MessagePart) -> Value {
    match part {
        MessagePart::Reasoning(_) => json!({"type": "thinking", "thinking": "", "signature": ""}),
        MessagePart::Text(_) => json!({"type": "text", "text": ""}),
        MessagePart::Call { number, name, .. } => {
            json!({"type": "tool_use", "id": head.call_ids.id(CALL_PREFIX, 0, *number), "name": name, "input": {}})
        }
    }
}

/// Anthropic counts what came from the cache by itself.
pub fn usage_value(usage: &Usage) -> Value {
    let cached = usage.prompt_tokens_details.cached_tokens;
    json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(cached), "output_tokens": usage.completion_tokens,
        "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached,
    })
}
