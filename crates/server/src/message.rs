//! What an answer's text means: how it is read, and the message it grows into.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use firebrick_engine::TokenId;
use firebrick_text::{MessageEvent, MessageReader, ToolFormat, ToolReading};

use crate::error::ApiError;
use crate::prompt::ValidPrompt;
use crate::state::Model;
use crate::tool_use::{ToolChoice, ToolUse};

/// What a request says about the message that it wants.
#[derive(Clone, Debug)]
pub struct MessageDraft {
    /// Tools and the choice among them.
    pub tools: ToolUse,
    /// Show what the model thinks before it speaks.
    pub include_reasoning: bool,
}

/// How the text of a choice becomes a message.
#[derive(Clone, Debug)]
pub struct MessageOptions {
    /// At the beginning of a choice.
    pub reader: MessageReader,
    /// Special tokens that the reader must see.
    pub shown: Arc<[TokenId]>,
    /// Show what the model thinks before it speaks.
    pub include_reasoning: bool,
    /// The choice ends with its first call.
    pub ends_with_call: bool,
    /// A choice with calls ends with the reason `tool_calls`; OpenAI says `stop` where the tool was named.
    pub calls_are_a_reason: bool,
    /// Ids of calls have nine characters, as Mistral's templates demand.
    pub short_call_ids: bool,
}

impl MessageOptions {
    /// For answers to `prompt`. `is_constrained`: the text follows a grammar from its first token, so that it holds no
    /// reasoning.
    pub fn new(
        draft: &MessageDraft,
        model: &Model,
        prompt: Option<&ValidPrompt>,
        is_constrained: bool,
    ) -> Result<Self, ApiError> {
        let dialect = &model.dialect;
        let tools = &draft.tools;
        let reading = match tools.reading(dialect) {
            Some(ToolReading::Format(format)) if is_constrained => Some(ToolReading::FormatOrJson(format)),
            reading => reading,
        };
        if reading.is_none() && *tools.choice() == ToolChoice::Auto {
            let message = "tool calls are not parsed, because the server was started with --tool-call-parser none";
            return Err(ApiError::parameter("tools", message));
        }
        let reasoning = dialect.reasoning.filter(|_| !is_constrained);
        let ending = prompt.map_or("", |prompt| prompt.ending.as_str());
        let special = dialect.markers().filter_map(|marker| model.tokenizer.token_id(marker));
        Ok(Self {
            reader: MessageReader::new(reasoning, reading.as_ref(), ending),
            shown: special.collect(),
            include_reasoning: draft.include_reasoning,
            ends_with_call: *tools.choice() == ToolChoice::Auto && !tools.is_parallel(),
            calls_are_a_reason: !matches!(tools.choice(), ToolChoice::Named(_)),
            short_call_ids: dialect.tools == Some(ToolFormat::Mistral),
        })
    }
}

/// A whole message, in the order it was said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CollectedMessage {
    /// Its parts; neighbours are of different kinds.
    pub parts: Vec<MessagePart>,
    /// Calls begun so far, those that turned out to be broken among them.
    pub num_calls: u32,
}

/// One part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessagePart {
    /// What the model thought.
    Reasoning(String),
    /// What it says.
    Text(String),
    /// A tool call.
    Call {
        /// Its number among the calls that were begun, also those that broke: a stream has shown them, so that the ids of
        /// later calls do not change.
        number: u32,
        /// The tool.
        name: String,
        /// A JSON object as text.
        arguments: String,
    },
}

impl CollectedMessage {
    /// Adds what was said.
    pub fn add(&mut self, event: MessageEvent) {
        match (event, self.parts.last_mut()) {
            (MessageEvent::Reasoning(more), Some(MessagePart::Reasoning(text)))
            | (MessageEvent::Text(more), Some(MessagePart::Text(text))) => text.push_str(&more),
            (MessageEvent::Reasoning(text), _) => self.parts.push(MessagePart::Reasoning(text)),
            (MessageEvent::Text(text), _) => self.parts.push(MessagePart::Text(text)),
            (MessageEvent::CallBegin { name }, _) => {
                self.parts.push(MessagePart::Call { number: self.num_calls, name, arguments: String::new() });
                self.num_calls += 1;
            }
            (MessageEvent::CallArguments(more), Some(MessagePart::Call { arguments, .. })) => arguments.push_str(&more),
            (MessageEvent::CallBroken { raw }, _) => {
                self.parts.pop();
                self.add(MessageEvent::Text(raw));
            }
            (MessageEvent::CallArguments(_) | MessageEvent::CallEnd, _) => {}
        }
    }

    /// All text.
    pub fn text(&self) -> String {
        let text = |part: &MessagePart| match part {
            MessagePart::Text(text) => Some(text.clone()),
            _ => None,
        };
        self.parts.iter().filter_map(text).collect()
    }

    /// All reasoning.
    pub fn reasoning(&self) -> Option<String> {
        let reasoning = |part: &MessagePart| match part {
            MessagePart::Reasoning(text) => Some(text.clone()),
            _ => None,
        };
        let text: String = self.parts.iter().filter_map(reasoning).collect();
        Some(text).filter(|text| !text.is_empty())
    }

    /// Numbers, names and arguments of all calls.
    pub fn calls(&self) -> impl Iterator<Item = (u32, &str, &str)> {
        self.parts.iter().filter_map(|part| match part {
            MessagePart::Call { number, name, arguments } => Some((*number, name.as_str(), arguments.as_str())),
            _ => None,
        })
    }
}

/// Ids of an answer's calls: unique, and the same whenever they are asked for.
#[derive(Clone, Debug)]
pub struct CallIds {
    key: RandomState,
    short: bool,
}

impl CallIds {
    /// Ids for a new answer; short ones have nine letters and digits and nothing else.
    pub fn new(short: bool) -> Self {
        Self { key: RandomState::new(), short }
    }

    /// The id of a call of a choice, beginning with `prefix` unless ids are short.
    pub fn id(&self, prefix: &str, choice: u32, call: u32) -> String {
        let number = self.key.hash_one((choice, call));
        if !self.short {
            return format!("{prefix}{number:016x}");
        }
        let digit = |place: u32| char::from_digit((number / 36_u64.pow(place) % 36) as u32, 36).expect("below 36");
        (0..9).map(digit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_call_becomes_text_again() {
        let mut message = CollectedMessage::default();
        for event in [
            MessageEvent::Text("a ".to_owned()),
            MessageEvent::CallBegin { name: "f".to_owned() },
            MessageEvent::CallArguments("{\"x\"".to_owned()),
            MessageEvent::CallBroken { raw: "<tool_call>{\"x\"".to_owned() },
            MessageEvent::Text(" b".to_owned()),
        ] {
            message.add(event);
        }
        assert_eq!(message.parts, [MessagePart::Text("a <tool_call>{\"x\" b".to_owned())]);
        message.add(MessageEvent::CallBegin { name: "g".to_owned() });
        assert_eq!(message.calls().collect::<Vec<_>>(), [(1, "g", "")]);
    }

    #[test]
    fn ids_repeat_within_an_answer_and_differ_between_calls() {
        let ids = CallIds::new(false);
        assert_eq!(ids.id("call_", 0, 1), ids.id("call_", 0, 1));
        assert_ne!(ids.id("call_", 0, 1), ids.id("call_", 1, 0));
        assert_ne!(ids.id("call_", 0, 0), CallIds::new(false).id("call_", 0, 0));
        let short = CallIds::new(true).id("call_", 0, 0);
        assert!(short.len() == 9 && short.chars().all(|c| c.is_ascii_alphanumeric()), "{short}");
    }
}
