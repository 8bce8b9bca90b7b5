//! Arguments of a call whose name is known: a JSON object, passed on as it comes.

use crate::message_event::EventSink;

use super::json_call::CallStep;
use super::json_scanner::{JsonScanner, Scan, push_escaped};

/// The state of reading one object.
#[derive(Debug, Clone)]
pub(crate) struct ArgumentsObject {
    scanner: JsonScanner,
    raw: String,
    name: String,
}

impl ArgumentsObject {
    /// Before the object; `lead` is what led to it, and is text if none follows.
    pub fn new(lead: impl Into<String>, name: impl Into<String>) -> Self {
        Self { scanner: JsonScanner::new(), raw: lead.into(), name: name.into() }
    }

    /// Takes a character.
    pub fn step(&mut self, c: char, sink: &mut EventSink) -> CallStep {
        let (fresh, in_text) = (self.scanner.is_fresh(), self.scanner.is_in_text());
        if fresh && c.is_whitespace() {
            self.raw.push(c);
            return CallStep::More;
        }
        let scan = self.scanner.push(c);
        if scan == Scan::Invalid {
            self.fail(sink);
            return CallStep::Invalid;
        }
        if fresh {
            sink.begin(std::mem::take(&mut self.name));
        }
        self.raw.push(c);
        let mut piece = String::new();
        push_escaped(&mut piece, c, in_text);
        sink.arguments(&piece);
        if scan == Scan::More {
            return CallStep::More;
        }
        sink.end();
        CallStep::Done
    }

    /// The text ends within what can be nothing but arguments: the call keeps as much of them as there is.
    pub fn cut(&mut self, sink: &mut EventSink) {
        if self.scanner.is_fresh() {
            sink.begin(std::mem::take(&mut self.name));
        }
    }

    /// What was read is no object.
    pub fn fail(&mut self, sink: &mut EventSink) {
        let raw = std::mem::take(&mut self.raw);
        if self.scanner.is_fresh() { sink.text(&raw) } else { sink.broken(raw) }
    }
}
