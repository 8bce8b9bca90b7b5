//! An answer's text to a message: reasoning, text and tool calls, as they come.

use crate::message_event::{EventSink, MessageEvent};
use crate::reasoning::{Portion, ReasoningFormat, ReasoningReader};
use crate::tools::{ToolReader, ToolReading};

/// Reads one answer. How its text is cut into pieces changes nothing but how the events are cut.
#[derive(Debug, Clone)]
pub struct MessageReader {
    reasoning: Option<ReasoningReader>,
    tools: Option<ToolReader>,
    sink: EventSink,
}

impl MessageReader {
    /// At the beginning of an answer to `prompt`. Without a format for reasoning nothing is reasoning, without a reading
    /// for tools nothing is a call.
    pub fn new(reasoning: Option<ReasoningFormat>, tools: Option<&ToolReading>, prompt: &str) -> Self {
        Self {
            reasoning: reasoning.map(|format| ReasoningReader::new(format, format.is_open_after(prompt))),
            tools: tools.map(ToolReader::new),
            sink: EventSink::default(),
        }
    }

    /// Whether a token that adds nothing visible would belong to reasoning.
    pub fn is_reasoning(&self) -> bool {
        self.reasoning.as_ref().is_some_and(ReasoningReader::is_inside)
    }

    /// Takes a piece of text.
    pub fn push(&mut self, text: &str) -> Vec<MessageEvent> {
        let mut events = Vec::new();
        match &mut self.reasoning {
            None => answer(text, &mut self.tools, &mut self.sink, &mut events),
            Some(reasoning) => {
                for c in text.chars() {
                    match reasoning.step(c) {
                        Portion::Nothing => {}
                        Portion::Reasoning(text) => reason(text, &mut events),
                        Portion::Answer(text) => answer(&text, &mut self.tools, &mut self.sink, &mut events),
                    }
                }
            }
        }
        events
    }

    /// The answer ends: what was held back comes now.
    pub fn finish(&mut self) -> Vec<MessageEvent> {
        let mut events = Vec::new();
        match self.reasoning.as_mut().map_or(Portion::Nothing, ReasoningReader::finish) {
            Portion::Nothing => {}
            Portion::Reasoning(text) => reason(text, &mut events),
            Portion::Answer(text) => answer(&text, &mut self.tools, &mut self.sink, &mut events),
        }
        if let Some(tools) = &mut self.tools {
            tools.finish(&mut self.sink);
            self.sink.finish();
            join(&mut events, self.sink.take());
        }
        events
    }
}

fn reason(text: String, events: &mut Vec<MessageEvent>) {
    join(events, vec![MessageEvent::Reasoning(text)]);
}

fn answer(text: &str, tools: &mut Option<ToolReader>, sink: &mut EventSink, events: &mut Vec<MessageEvent>) {
    match tools {
        Some(tools) => {
            tools.push(text, sink);
            join(events, sink.take());
        }
        None if text.is_empty() => {}
        None => join(events, vec![MessageEvent::Text(text.to_owned())]),
    }
}

/// Appends events; texts of one kind become one.
fn join(events: &mut Vec<MessageEvent>, more: Vec<MessageEvent>) {
    for event in more {
        match (events.last_mut(), event) {
            (Some(MessageEvent::Text(text)), MessageEvent::Text(more))
            | (Some(MessageEvent::Reasoning(text)), MessageEvent::Reasoning(more))
            | (Some(MessageEvent::CallArguments(text)), MessageEvent::CallArguments(more)) => text.push_str(&more),
            (_, event) => events.push(event),
        }
    }
}
