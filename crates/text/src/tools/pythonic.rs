//! Llama 3.2, Llama 4 and others: a list of Python calls, `[weather(city="Rome"), time()]`, and nothing before it.
//!
//! A call is passed on once it is whole: its arguments are Python literals and become JSON.

use crate::message_event::EventSink;

use super::python_call::parse_call;
use crate::triggers::Triggers;

const BEGINS: [&str; 2] = ["<|python_start|>", "<|python_tag|>"];
const WORDS: [&str; 3] = [BEGINS[0], BEGINS[1], "<|python_end|>"];
/// A single call longer than this is text.
const CALL_BYTES_MAX: usize = 1 << 20;

/// The state of reading this format.
#[derive(Debug, Clone)]
pub(crate) struct Pythonic {
    triggers: Triggers,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// A list may begin here; white space so far.
    Start(String),
    Call(PythonCall),
    /// Behind a call; white space so far.
    Between(String),
    Text,
}

/// A call as far as it has come.
#[derive(Debug, Clone, Default)]
struct PythonCall {
    /// What led to it.
    lead: String,
    text: String,
    depth: usize,
    quote: Option<char>,
    escaped: bool,
}

impl PythonCall {
    /// Takes a character; `None` when this is no call, otherwise whether it is whole.
    fn push(&mut self, c: char) -> Option<bool> {
        if self.text.is_empty() && c.is_whitespace() {
            self.lead.push(c);
            return Some(false);
        }
        let is_name = c.is_alphanumeric() || matches!(c, '_' | '.' | '-');
        let may_follow = self.depth > 0 || (c == '(' && !self.text.is_empty()) || is_name;
        if !may_follow || self.text.len() >= CALL_BYTES_MAX {
            return None;
        }
        self.text.push(c);
        match (self.quote, c) {
            (Some(_), _) if self.escaped => self.escaped = false,
            (Some(_), '\\') => self.escaped = true,
            (Some(quote), _) if c == quote => self.quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => self.quote = Some(c),
            (None, '(' | '[' | '{') => self.depth += 1,
            (None, ')' | ']' | '}') => self.depth -= 1,
            (None, _) => {}
        }
        Some(self.depth == 0 && matches!(c, ')' | ']' | '}'))
    }

    fn whole(&self) -> String {
        format!("{}{}", self.lead, self.text)
    }
}

impl Pythonic {
    pub fn new() -> Self {
        Self { triggers: Triggers::new(&WORDS), place: Place::Start(String::new()) }
    }

    pub fn step(&mut self, c: char, sink: &mut EventSink) {
        match &mut self.place {
            Place::Start(lead) | Place::Between(lead) if c.is_whitespace() => lead.push(c),
            Place::Start(lead) if c == '[' => {
                let lead = format!("{lead}[");
                self.place = Place::Call(PythonCall { lead, ..PythonCall::default() });
            }
            Place::Between(lead) if c == ',' => {
                let lead = format!("{lead},");
                self.place = Place::Call(PythonCall { lead, ..PythonCall::default() });
            }
            Place::Between(_) if c == ']' => self.place = Place::Text,
            Place::Start(lead) | Place::Between(lead) => {
                let lead = std::mem::take(lead);
                self.give_up(&lead, sink);
                self.text(c, sink);
            }
            Place::Call(call) => match call.push(c) {
                Some(false) => {}
                Some(true) => match parse_call(&call.text) {
                    Some((name, arguments)) => {
                        sink.begin(name);
                        sink.arguments(&arguments);
                        sink.end();
                        self.place = Place::Between(String::new());
                    }
                    None => {
                        let whole = call.whole();
                        self.give_up(&whole, sink);
                    }
                },
                None => {
                    let whole = call.whole();
                    self.give_up(&whole, sink);
                    self.text(c, sink);
                }
            },
            Place::Text => self.text(c, sink),
        }
    }

    /// What was held is text, in which a tag may begin.
    fn give_up(&mut self, held: &str, sink: &mut EventSink) {
        self.place = Place::Text;
        sink.text(held);
    }

    fn text(&mut self, c: char, sink: &mut EventSink) {
        match self.triggers.step_into(c, sink) {
            Some(word) if word < BEGINS.len() => self.place = Place::Start(String::new()),
            Some(word) if !sink.is_after_call() => sink.text(WORDS[word]),
            _ => {}
        }
    }

    pub fn finish(&mut self, sink: &mut EventSink) {
        match &mut self.place {
            Place::Start(lead) => sink.text(lead),
            Place::Between(_) => {}
            Place::Call(call) => sink.text(&call.whole()),
            Place::Text => sink.text(&self.triggers.finish()),
        }
    }
}
