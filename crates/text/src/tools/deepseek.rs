//! DeepSeek V3, R1 and V3.1: tags around each call; the older ones put `function` before the name and the arguments into a
//! fenced block.

use crate::message_event::EventSink;

use super::arguments_object::ArgumentsObject;
use super::is_tool_name;
use super::json_call::CallStep;
use crate::triggers::Triggers;

const CALL: &str = "<｜tool▁call▁begin｜>";
const SEPARATOR: &str = "<｜tool▁sep｜>";
/// What stands around calls and says nothing by itself.
const FRAMES: [&str; 3] = ["<｜tool▁calls▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"];
const WORDS: [&str; 4] = [CALL, FRAMES[0], FRAMES[1], FRAMES[2]];
/// Kind and name of a call with what stands between; anything longer is text.
const HEAD_BYTES_MAX: usize = 256;

/// All tags of the format; they are special tokens.
pub(crate) const MARKERS: &[&str] = &[CALL, SEPARATOR, FRAMES[0], FRAMES[1], FRAMES[2]];

/// The state of reading this format.
#[derive(Debug, Clone)]
pub(crate) struct DeepSeek {
    triggers: Triggers,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Text,
    /// Behind the tag of a call, before its arguments.
    Head(String),
    Arguments(Box<ArgumentsObject>),
    /// Behind the arguments: the end of the fence is not text.
    Tail,
}

impl DeepSeek {
    pub fn new() -> Self {
        Self { triggers: Triggers::new(&WORDS), place: Place::Text }
    }

    pub fn step(&mut self, c: char, sink: &mut EventSink) {
        match &mut self.place {
            Place::Head(head) if c == '{' => {
                let lead = format!("{CALL}{head}");
                match name_in(head) {
                    Some(name) => self.place = Place::Arguments(Box::new(ArgumentsObject::new(lead, name))),
                    None => self.give_up(&lead, sink),
                }
                self.step(c, sink);
            }
            Place::Head(head) if head.len() >= HEAD_BYTES_MAX => {
                let lead = format!("{CALL}{head}");
                self.give_up(&lead, sink);
                self.step(c, sink);
            }
            Place::Head(head) => head.push(c),
            Place::Arguments(arguments) => match arguments.step(c, sink) {
                CallStep::More => {}
                CallStep::Done | CallStep::Text => self.place = Place::Tail,
                CallStep::Invalid => {
                    self.place = Place::Text;
                    self.text(c, sink);
                }
            },
            Place::Tail if c == '`' || c.is_whitespace() => {}
            Place::Tail | Place::Text => {
                self.place = Place::Text;
                self.text(c, sink);
            }
        }
    }

    fn give_up(&mut self, text: &str, sink: &mut EventSink) {
        sink.text(text);
        self.place = Place::Text;
    }

    fn text(&mut self, c: char, sink: &mut EventSink) {
        // The other words, the frame around the calls, are never text.
        if self.triggers.step_into(c, sink) == Some(0) {
            self.place = Place::Head(String::new());
        }
    }

    pub fn finish(&mut self, sink: &mut EventSink) {
        match &mut self.place {
            Place::Text => sink.text(&self.triggers.finish()),
            Place::Head(head) => sink.text(&format!("{CALL}{head}")),
            Place::Arguments(arguments) => arguments.fail(sink),
            Place::Tail => {}
        }
    }
}

/// `function<sep>name\n```json\n` or `name<sep>`.
fn name_in(head: &str) -> Option<String> {
    let (before, behind) = head.split_once(SEPARATOR)?;
    let behind = behind.trim();
    let name = if behind.is_empty() { before } else { behind.lines().next().unwrap_or_default() };
    let name = name.trim();
    is_tool_name(name).then(|| name.to_owned())
}
