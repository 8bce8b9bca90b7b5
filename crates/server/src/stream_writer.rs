//! Streams in every wire format: the one place that lists them.

use crate::answer::{AnswerHead, Format};
use crate::anthropic::MessagesWriter;
use crate::chat_format::ChatWriter;
use crate::choice::Delta;
use crate::completion_format::CompletionWriter;
use crate::error::ApiError;
use crate::event_frame::EventFrame;
use crate::responses::ResponseWriter;

/// Writes one stream.
pub enum StreamWriter {
    /// `/v1/chat/completions`.
    Chat(ChatWriter),
    /// `/v1/completions`.
    Completion(CompletionWriter),
    /// `/v1/responses`.
    Response(Box<ResponseWriter>),
    /// Anthropic's `/v1/messages`.
    Messages(MessagesWriter),
}

impl StreamWriter {
    /// Before the first event.
    pub fn new(head: &AnswerHead) -> Self {
        match &head.format {
            Format::Chat => Self::Chat(ChatWriter::new(head)),
            Format::Completion => Self::Completion(CompletionWriter::new(head)),
            Format::Response(format) => Self::Response(Box::new(ResponseWriter::new((**format).clone()))),
            Format::Messages => Self::Messages(MessagesWriter::default()),
        }
    }

    /// What comes before the first token.
    pub fn begin(&mut self, frame: &mut EventFrame) {
        match self {
            Self::Chat(writer) => writer.begin(frame),
            Self::Completion(writer) => writer.begin(frame),
            Self::Response(writer) => writer.begin(frame),
            Self::Messages(writer) => writer.begin(frame),
        }
    }

    /// More of a choice.
    pub fn add(&mut self, frame: &mut EventFrame, delta: Delta) {
        match self {
            Self::Chat(writer) => writer.add(frame, delta),
            Self::Completion(writer) => writer.add(frame, delta),
            Self::Response(writer) => writer.add(frame, delta),
            Self::Messages(writer) => writer.add(frame, delta),
        }
    }

    /// All choices are complete.
    pub fn end(&mut self, frame: &mut EventFrame) {
        match self {
            Self::Chat(writer) => writer.end(frame),
            Self::Completion(writer) => writer.end(frame),
            Self::Response(writer) => writer.end(frame),
            Self::Messages(writer) => writer.end(frame),
        }
    }

    /// The stream cannot go on.
    pub fn fail(&mut self, frame: &mut EventFrame, error: &ApiError) {
        match self {
            Self::Chat(writer) => writer.fail(frame, error),
            Self::Completion(writer) => writer.fail(frame, error),
            Self::Response(writer) => writer.fail(frame, error),
            Self::Messages(writer) => writer.fail(frame, error),
        }
    }
}
