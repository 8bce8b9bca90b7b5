//! Calls written as a JSON list of objects: `[{"name": …, "arguments": {…}}, …]`.

use crate::message_event::EventSink;

use super::json_call::{Arguments, CallStep, JsonCall};

/// The state of reading one list.
#[derive(Debug, Clone)]
pub(crate) struct CallList {
    /// What was written since the last call, with what led to it.
    raw: String,
    place: ListPlace,
}

#[derive(Debug, Clone)]
enum ListPlace {
    Before,
    Element(Box<JsonCall>),
    After,
}

impl CallList {
    /// Before the list; `lead` is what led to it, and is text if none follows.
    pub fn new(lead: impl Into<String>) -> Self {
        Self { raw: lead.into(), place: ListPlace::Before }
    }

    /// Takes a character; `Done` with the closing bracket.
    pub fn step(&mut self, c: char, sink: &mut EventSink) -> CallStep {
        match &mut self.place {
            ListPlace::Element(call) => {
                let step = call.step(c, sink);
                if step == CallStep::Done {
                    self.place = ListPlace::After;
                    return CallStep::More;
                }
                step
            }
            ListPlace::Before | ListPlace::After if c.is_whitespace() => {
                self.raw.push(c);
                CallStep::More
            }
            ListPlace::Before if c == '[' => self.element(c),
            ListPlace::After if c == ',' => self.element(c),
            ListPlace::After if c == ']' => CallStep::Done,
            _ => {
                self.fail(sink);
                CallStep::Invalid
            }
        }
    }

    fn element(&mut self, c: char) -> CallStep {
        self.raw.push(c);
        let lead = std::mem::take(&mut self.raw);
        self.place = ListPlace::Element(Box::new(JsonCall::new(lead, Arguments::Optional)));
        CallStep::More
    }

    /// The text ends within a list that can be nothing else: what is there of a call is a call.
    pub fn cut(&mut self, sink: &mut EventSink) {
        if let ListPlace::Element(call) = &mut self.place {
            call.cut(sink);
        }
    }

    /// The text ends within what may be no list.
    pub fn fail(&mut self, sink: &mut EventSink) {
        match &mut self.place {
            ListPlace::Element(call) => call.fail(sink),
            ListPlace::Before | ListPlace::After => sink.text(&std::mem::take(&mut self.raw)),
        }
    }
}
