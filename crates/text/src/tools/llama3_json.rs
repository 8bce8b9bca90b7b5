//! Llama 3: nothing but `{"name": …, "parameters": {…}}`, several divided by `;`, or the same behind `<|python_tag|>`.

use crate::message_event::EventSink;

use super::json_call::{Arguments, CallStep, JsonCall};
use crate::triggers::Triggers;

const TAG: &str = "<|python_tag|>";

/// The state of reading this format.
#[derive(Debug, Clone)]
pub(crate) struct Llama3Json {
    triggers: Triggers,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// A call may begin here; what was written since the last one.
    Start(String),
    Call(Box<JsonCall>),
    Text,
}

impl Llama3Json {
    pub fn new() -> Self {
        Self { triggers: Triggers::new(&[TAG]), place: Place::Start(String::new()) }
    }

    pub fn step(&mut self, c: char, sink: &mut EventSink) {
        match &mut self.place {
            Place::Start(lead) if c.is_whitespace() || (sink.is_after_call() && c == ';') => lead.push(c),
            Place::Start(lead) if c == '{' => {
                let call = JsonCall::new(std::mem::take(lead), Arguments::Required);
                self.place = Place::Call(Box::new(call));
                self.step(c, sink);
            }
            Place::Start(lead) => {
                let lead = std::mem::take(lead);
                self.place = Place::Text;
                lead.chars().for_each(|c| self.text(c, sink));
                self.text(c, sink);
            }
            Place::Call(call) => match call.step(c, sink) {
                CallStep::More => {}
                CallStep::Done => self.place = Place::Start(String::new()),
                CallStep::Text => self.place = Place::Text,
                CallStep::Invalid => {
                    self.place = Place::Text;
                    self.text(c, sink);
                }
            },
            Place::Text => self.text(c, sink),
        }
    }

    fn text(&mut self, c: char, sink: &mut EventSink) {
        if self.triggers.step_into(c, sink).is_some() {
            self.place = Place::Start(String::new());
        }
    }

    pub fn finish(&mut self, sink: &mut EventSink) {
        match &mut self.place {
            Place::Call(call) => call.fail(sink),
            Place::Start(lead) if !sink.is_after_call() => sink.text(lead),
            Place::Start(_) => {}
            Place::Text => sink.text(&self.triggers.finish()),
        }
    }
}
