//! The events of a streamed response.

use firebrick_text::MessageEvent;
use serde_json::{Value, json};

use crate::choice::{Delta, Finish};
use crate::error::ApiError;
use crate::event_frame::EventFrame;
use crate::message::{CollectedMessage, MessagePart};

use super::format::{ResponseFormat, reasoning_part, status_of, text_part};

/// Writes a streamed response.
pub struct ResponseWriter {
    format: ResponseFormat,
    sequence_number: u64,
    /// Items that are complete.
    output: Vec<Value>,
    /// The item that grows.
    open: Option<MessagePart>,
    /// What has been said, as a later response continues it.
    message: CollectedMessage,
    finish: Option<Finish>,
}

impl ResponseWriter {
    /// Before the first event.
    pub fn new(format: ResponseFormat) -> Self {
        Self {
            format,
            sequence_number: 0,
            output: Vec::new(),
            open: None,
            message: CollectedMessage::default(),
            finish: None,
        }
    }

    /// The response exists.
    pub fn begin(&mut self, frame: &mut EventFrame) {
        let object = self.format.object(frame.head, "in_progress", Vec::new(), None);
        self.event(frame, "response.created", json!({"response": object}));
        self.event(frame, "response.in_progress", json!({"response": object}));
    }

    /// More of the response.
    pub fn add(&mut self, frame: &mut EventFrame, delta: Delta) {
        for event in delta.events {
            self.message.add(event.clone());
            self.said(frame, event);
        }
        self.finish = delta.finish.or(self.finish.take());
    }

    /// The response is complete.
    pub fn end(&mut self, frame: &mut EventFrame) {
        let status = status_of(self.finish.as_ref());
        self.close(frame, status);
        let output = std::mem::take(&mut self.output);
        let usage = frame.generation.usage();
        let object = self.format.finished(frame.head, output, self.finish.as_ref(), &usage);
        self.format.store(frame.head, object.clone(), &self.message);
        self.event(frame, &format!("response.{status}"), json!({"response": object}));
    }

    /// The response has failed.
    pub fn fail(&mut self, frame: &mut EventFrame, error: &ApiError) {
        if self.sequence_number == 0 {
            self.begin(frame);
        }
        self.close(frame, "incomplete");
        let output = std::mem::take(&mut self.output);
        let object = self.format.failed(frame.head, output, error);
        self.event(frame, "response.failed", json!({"response": object}));
    }

    fn said(&mut self, frame: &mut EventFrame, event: MessageEvent) {
        match event {
            MessageEvent::Text(text) => {
                if !matches!(self.open, Some(MessagePart::Text(_))) {
                    self.open(frame, MessagePart::Text(String::new()), Some(text_part("")));
                }
                let fields = json!({"content_index": 0, "delta": text, "logprobs": []});
                self.item_event(frame, "response.output_text.delta", fields);
                self.grow(&text);
            }
            MessageEvent::Reasoning(text) => {
                if !matches!(self.open, Some(MessagePart::Reasoning(_))) {
                    self.open(frame, MessagePart::Reasoning(String::new()), Some(reasoning_part("")));
                }
                let fields = json!({"content_index": 0, "delta": text});
                self.item_event(frame, "response.reasoning_text.delta", fields);
                self.grow(&text);
            }
            MessageEvent::CallBegin { name } => {
                // The message has counted it already.
                let number = self.message.num_calls - 1;
                self.open(frame, MessagePart::Call { number, name, arguments: String::new() }, None);
            }
            MessageEvent::CallArguments(text) => {
                self.item_event(frame, "response.function_call_arguments.delta", json!({"delta": text}));
                self.grow(&text);
            }
            MessageEvent::CallEnd => self.close(frame, "completed"),
            // What was shown of it cannot be taken back.
            MessageEvent::CallBroken { .. } => self.close(frame, "incomplete"),
        }
    }

    fn grow(&mut self, more: &str) {
        match &mut self.open {
            Some(MessagePart::Reasoning(text) | MessagePart::Text(text)) => text.push_str(more),
            Some(MessagePart::Call { arguments, .. }) => arguments.push_str(more),
            None => {}
        }
    }

    /// Begins an item; the one before is complete.
    fn open(&mut self, frame: &mut EventFrame, part: MessagePart, content: Option<Value>) {
        self.close(frame, "completed");
        let item = self.format.item(frame.head, self.index(), &part, "in_progress");
        let index = self.index();
        self.open = Some(part);
        self.event(frame, "response.output_item.added", json!({"output_index": index, "item": item}));
        if let Some(content) = content {
            self.item_event(frame, "response.content_part.added", json!({"content_index": 0, "part": content}));
        }
    }

    /// Ends the item that grows, if there is one.
    fn close(&mut self, frame: &mut EventFrame, status: &str) {
        let Some(part) = &self.open else { return };
        let item = self.format.item(frame.head, self.index(), part, status);
        match part.clone() {
            MessagePart::Text(text) => {
                let fields = json!({"content_index": 0, "text": text, "logprobs": []});
                self.item_event(frame, "response.output_text.done", fields);
                let fields = json!({"content_index": 0, "part": text_part(&text)});
                self.item_event(frame, "response.content_part.done", fields);
            }
            MessagePart::Reasoning(text) => {
                self.item_event(frame, "response.reasoning_text.done", json!({"content_index": 0, "text": text}));
                let fields = json!({"content_index": 0, "part": reasoning_part(&text)});
                self.item_event(frame, "response.content_part.done", fields);
            }
            MessagePart::Call { name, arguments, .. } => {
                let fields = json!({"name": name, "arguments": arguments});
                self.item_event(frame, "response.function_call_arguments.done", fields);
            }
        }
        let index = self.index();
        self.open = None;
        self.event(frame, "response.output_item.done", json!({"output_index": index, "item": item}));
        self.output.push(item);
    }

    /// Place of the item that grows, or of the next one.
    fn index(&self) -> u32 {
        self.output.len() as u32
    }

    /// An event about the item that grows.
    fn item_event(&mut self, frame: &mut EventFrame, name: &str, mut fields: Value) {
        let Some(part) = &self.open else { return };
        fields["item_id"] = json!(self.format.item_id(self.index(), part));
        fields["output_index"] = json!(self.index());
        self.event(frame, name, fields);
    }

    fn event(&mut self, frame: &mut EventFrame, name: &str, mut fields: Value) {
        fields["type"] = json!(name);
        fields["sequence_number"] = json!(self.sequence_number);
        self.sequence_number += 1;
        frame.named_event(name, &fields);
    }
}
