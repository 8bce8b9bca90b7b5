//! Server-sent events on their way to the client, and what every writer of them may look at.

use serde::Serialize;

use crate::answer::AnswerHead;
use crate::generation::Generation;
use crate::openai::{Field, Usage};
use crate::validate::StreamOptions;

/// The events that are ready, as one piece to write.
pub struct EventFrame<'a> {
    /// What all parts of the answer share.
    pub head: &'a AnswerHead,
    /// What the stream reports about usage.
    pub options: StreamOptions,
    /// What has been generated so far.
    pub generation: &'a Generation,
    bytes: Vec<u8>,
}

impl<'a> EventFrame<'a> {
    /// No events yet.
    pub fn new(head: &'a AnswerHead, options: StreamOptions, generation: &'a Generation) -> Self {
        Self { head, options, generation, bytes: Vec::new() }
    }

    /// An event without a name.
    pub fn event<T: Serialize>(&mut self, value: &T) {
        self.bytes.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.bytes, value).expect("response types hold only maps with string keys");
        self.bytes.extend_from_slice(b"\n\n");
    }

    /// An event with a name.
    pub fn named_event<T: Serialize>(&mut self, name: &str, value: &T) {
        self.bytes.extend_from_slice(b"event: ");
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(b'\n');
        self.event(value);
    }

    /// The word that ends OpenAI's streams.
    pub fn done(&mut self) {
        self.bytes.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// The `usage` of a chunk that is not the last: absent, null or the counts so far.
    pub fn chunk_usage(&self) -> Field<Usage> {
        match self.options {
            StreamOptions { continuous_usage: true, .. } => Some(Some(self.generation.usage())),
            StreamOptions { include_usage: true, .. } => Some(None),
            _ => None,
        }
    }

    /// What is to be written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
