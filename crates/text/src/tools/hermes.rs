//! Hermes and Qwen: text, then `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as often as needed.

use crate::message_event::EventSink;

use super::json_call::{Arguments, CallStep, JsonCall};
use crate::triggers::Triggers;

/// What stands before a call and behind it.
pub(crate) const MARKS: [&str; 2] = [BEGIN, END];
const BEGIN: &str = "<tool_call>";
const END: &str = "</tool_call>";

/// The state of reading this format.
#[derive(Debug, Clone)]
pub(crate) struct Hermes {
    triggers: Triggers,
    call: Option<JsonCall>,
}

impl Hermes {
    pub fn new() -> Self {
        Self { triggers: Triggers::new(&[BEGIN, END]), call: None }
    }

    pub fn step(&mut self, c: char, sink: &mut EventSink) {
        if let Some(call) = &mut self.call {
            let step = call.step(c, sink);
            if step != CallStep::More {
                self.call = None;
            }
            if step != CallStep::Invalid {
                return;
            }
        }
        match self.triggers.step_into(c, sink) {
            Some(0) => self.call = Some(JsonCall::new(BEGIN, Arguments::Optional)),
            Some(_) if !sink.is_after_call() => sink.text(END),
            _ => {}
        }
    }

    pub fn finish(&mut self, sink: &mut EventSink) {
        match &mut self.call {
            Some(call) => call.fail(sink),
            None => sink.text(&self.triggers.finish()),
        }
    }
}
