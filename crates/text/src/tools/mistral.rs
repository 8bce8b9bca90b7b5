//! Mistral: behind `[TOOL_CALLS]` a list of calls, or in newer models `name{…}` or `name[ARGS]{…}`, each with a tag of
//! its own.

use crate::message_event::EventSink;

use super::arguments_object::ArgumentsObject;
use super::call_list::CallList;
use super::is_tool_name;
use super::json_call::CallStep;
use crate::triggers::Triggers;

const TAG: &str = "[TOOL_CALLS]";
/// A name with the id that may stand between name and arguments; anything longer is text.
const HEAD_BYTES_MAX: usize = 256;

/// The state of reading this format.
#[derive(Debug, Clone)]
pub(crate) struct Mistral {
    triggers: Triggers,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Text,
    /// Behind the tag.
    Head(String),
    List(Box<CallList>),
    Arguments(Box<ArgumentsObject>),
}

impl Mistral {
    pub fn new() -> Self {
        Self { triggers: Triggers::new(&[TAG]), place: Place::Text }
    }

    pub fn step(&mut self, c: char, sink: &mut EventSink) {
        let step = match &mut self.place {
            Place::Text => return self.text(c, sink),
            Place::Head(head) => return Self::head(std::mem::take(head), c).apply(self, c, sink),
            Place::List(list) => list.step(c, sink),
            Place::Arguments(arguments) => arguments.step(c, sink),
        };
        if step != CallStep::More {
            self.place = Place::Text;
        }
        if step == CallStep::Invalid {
            self.text(c, sink);
        }
    }

    fn head(mut head: String, c: char) -> Head {
        match c {
            '[' if head.trim().is_empty() => Head::List(format!("{TAG}{head}")),
            '{' => {
                let name = head.split('[').next().unwrap_or_default().trim().to_owned();
                let lead = format!("{TAG}{head}");
                if is_tool_name(&name) { Head::Arguments { lead, name } } else { Head::Text(lead) }
            }
            _ if head.len() < HEAD_BYTES_MAX => {
                head.push(c);
                Head::More(head)
            }
            _ => Head::Text(format!("{TAG}{head}")),
        }
    }

    fn text(&mut self, c: char, sink: &mut EventSink) {
        if self.triggers.step_into(c, sink).is_some() {
            self.place = Place::Head(String::new());
        }
    }

    pub fn finish(&mut self, sink: &mut EventSink) {
        match &mut self.place {
            Place::Text => sink.text(&self.triggers.finish()),
            Place::Head(head) => sink.text(&format!("{TAG}{head}")),
            Place::List(list) => list.fail(sink),
            Place::Arguments(arguments) => arguments.fail(sink),
        }
    }
}

/// What the text behind the tag turns out to be.
enum Head {
    More(String),
    List(String),
    Arguments { lead: String, name: String },
    Text(String),
}

impl Head {
    fn apply(self, reader: &mut Mistral, c: char, sink: &mut EventSink) {
        match self {
            Self::More(head) => {
                reader.place = Place::Head(head);
                return;
            }
            Self::List(lead) => reader.place = Place::List(Box::new(CallList::new(lead))),
            Self::Arguments { lead, name } => {
                reader.place = Place::Arguments(Box::new(ArgumentsObject::new(lead, name)));
            }
            Self::Text(text) => {
                sink.text(&text);
                reader.place = Place::Text;
            }
        }
        reader.step(c, sink);
    }
}
