//! The events of a streamed message.

use firebrick_text::MessageEvent;
use serde_json::{Value, json};

use crate::choice::{Delta, Finish};
use crate::error::ApiError;
use crate::event_frame::EventFrame;
use crate::message::MessagePart;

use super::error::AnthropicErrorBody;
use super::format::{Ending, empty_block, object, usage_value};

/// Writes a streamed message.
#[derive(Default)]
pub struct MessagesWriter {
    /// Number of the block that is open, or of the next one.
    index: u32,
    open: Option<MessagePart>,
    /// Calls begun so far.
    num_calls: u32,
    finish: Option<Finish>,
}

impl MessagesWriter {
    /// The message exists.
    pub fn begin(&mut self, frame: &mut EventFrame) {
        let message = object(frame.head, Vec::new(), &Ending::default(), &frame.generation.usage());
        frame.named_event("message_start", &json!({"type": "message_start", "message": message}));
    }

    /// More of the message.
    pub fn add(&mut self, frame: &mut EventFrame, delta: Delta) {
        for event in delta.events {
            match event {
                MessageEvent::Text(text) => {
                    self.open(frame, MessagePart::Text(String::new()));
                    self.grow(frame, json!({"type": "text_delta", "text": text}));
                }
                MessageEvent::Reasoning(text) => {
                    self.open(frame, MessagePart::Reasoning(String::new()));
                    self.grow(frame, json!({"type": "thinking_delta", "thinking": text}));
                }
                MessageEvent::CallBegin { name } => {
                    self.close(frame);
                    let number = self.num_calls;
                    self.num_calls += 1;
                    self.open(frame, MessagePart::Call { number, name, arguments: String::new() });
                }
                MessageEvent::CallArguments(text) => {
                    self.grow(frame, json!({"type": "input_json_delta", "partial_json": text}));
                }
                // What was shown of a broken call cannot be taken back.
                MessageEvent::CallEnd | MessageEvent::CallBroken { .. } => self.close(frame),
            }
        }
        self.finish = delta.finish.or(self.finish.take());
    }

    /// The message is complete.
    pub fn end(&mut self, frame: &mut EventFrame) {
        self.close(frame);
        let Ending { stop_reason, stop_sequence } = Ending::new(self.finish.as_ref(), self.num_calls > 0);
        let delta = json!({"stop_reason": stop_reason, "stop_sequence": stop_sequence});
        let usage = usage_value(&frame.generation.usage());
        frame.named_event("message_delta", &json!({"type": "message_delta", "delta": delta, "usage": usage}));
        frame.named_event("message_stop", &json!({"type": "message_stop"}));
    }

    /// The message cannot go on.
    pub fn fail(&mut self, frame: &mut EventFrame, error: &ApiError) {
        frame.named_event("error", &AnthropicErrorBody::of(error));
    }

    /// Opens a block unless one of this kind is open; the one before is complete.
    fn open(&mut self, frame: &mut EventFrame, part: MessagePart) {
        if self.open.as_ref() == Some(&part) {
            return;
        }
        self.close(frame);
        let block = empty_block(frame.head, &part);
        let event = json!({"type": "content_block_start", "index": self.index, "content_block": block});
        frame.named_event("content_block_start", &event);
        self.open = Some(part);
    }

    fn grow(&self, frame: &mut EventFrame, delta: Value) {
        let event = json!({"type": "content_block_delta", "index": self.index, "delta": delta});
        frame.named_event("content_block_delta", &event);
    }

    fn close(&mut self, frame: &mut EventFrame) {
        if self.open.take().is_some() {
            let event = json!({"type": "content_block_stop", "index": self.index});
            frame.named_event("content_block_stop", &event);
            self.index += 1;
        }
    }
}
