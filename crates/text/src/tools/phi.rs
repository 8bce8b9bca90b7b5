//! Phi-4-mini and Granite: a list of calls behind `functools` or `<|tool_call|>`.

use crate::message_event::EventSink;

use super::call_list::CallList;
use super::json_call::CallStep;
use crate::triggers::Triggers;

const BEGINS: [&str; 2] = ["functools", "<|tool_call|>"];
const WORDS: [&str; 3] = [BEGINS[0], BEGINS[1], "<|/tool_call|>"];

/// The state of reading this format.
#[derive(Debug, Clone)]
pub(crate) struct Phi {
    triggers: Triggers,
    list: Option<CallList>,
}

impl Phi {
    pub fn new() -> Self {
        Self { triggers: Triggers::new(&WORDS), list: None }
    }

    pub fn step(&mut self, c: char, sink: &mut EventSink) {
        if let Some(list) = &mut self.list {
            let step = list.step(c, sink);
            if step != CallStep::More {
                self.list = None;
            }
            if step != CallStep::Invalid {
                return;
            }
        }
        if let Some(word) = self.triggers.step_into(c, sink) {
            match BEGINS.get(word) {
                Some(&begin) => self.list = Some(CallList::new(begin)),
                None if !sink.is_after_call() => sink.text(WORDS[word]),
                None => {}
            }
        }
    }

    pub fn finish(&mut self, sink: &mut EventSink) {
        match &mut self.list {
            Some(list) => list.fail(sink),
            None => sink.text(&self.triggers.finish()),
        }
    }
}
