//! A call written as a JSON object: `{"name": …, "arguments": {…}}`, in any order, with other members between.

use crate::message_event::EventSink;

use super::json_scanner::{JsonScanner, Place, Scan, push_escaped};

/// What a character did to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallStep {
    /// The call goes on.
    More,
    /// The call is complete with this character.
    Done,
    /// With this character it is clear that all of it is text; it has been passed on.
    Text,
    /// What came before is text, or a broken call, and has been passed on; the character was not taken.
    Invalid,
}

/// Whether an object without arguments is a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// Where nothing but a call can stand, a missing object means no arguments.
    Optional,
    /// Where ordinary JSON can stand too, only an object that has them is a call.
    Required,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    Name,
    Arguments,
    Other,
}

/// The state of reading one call.
#[derive(Debug, Clone)]
pub(crate) struct JsonCall {
    scanner: JsonScanner,
    /// All that was written, with what led to it.
    raw: String,
    rule: Arguments,
    key: String,
    member: Member,
    /// The value of `name`, or of arguments that are not an object, as it is written.
    value: String,
    name: Option<String>,
    /// Arguments that wait for the name.
    waiting: Option<String>,
    begun: bool,
}

impl JsonCall {
    /// Before the object; `lead` is what led to it, and is text if it is no call.
    pub fn new(lead: impl Into<String>, rule: Arguments) -> Self {
        Self {
            scanner: JsonScanner::new(),
            raw: lead.into(),
            rule,
            key: String::new(),
            member: Member::Other,
            value: String::new(),
            name: None,
            waiting: None,
            begun: false,
        }
    }

    /// Takes a character.
    pub fn step(&mut self, c: char, sink: &mut EventSink) -> CallStep {
        let (before, in_text) = (self.scanner.place(), self.scanner.is_in_text());
        let scan = if self.scanner.is_fresh() && c.is_whitespace() { Scan::More } else { self.scanner.push(c) };
        let after = self.scanner.place();
        let valid = scan != Scan::Invalid && self.observe(c, in_text, before, after, sink);
        if !valid {
            self.fail(sink);
            return CallStep::Invalid;
        }
        self.raw.push(c);
        match scan {
            Scan::Done => self.complete(sink),
            _ => CallStep::More,
        }
    }

    /// The text ends within the call.
    pub fn fail(&mut self, sink: &mut EventSink) {
        let raw = std::mem::take(&mut self.raw);
        if self.begun { sink.broken(raw) } else { sink.text(&raw) }
    }

    /// The text ends within what can be nothing but a call: it stays one as soon as its name is known, with as much of
    /// its arguments as there is.
    pub fn cut(&mut self, sink: &mut EventSink) {
        if !self.begun && self.name.is_some() {
            self.waiting.get_or_insert_default();
            self.try_begin(sink);
        }
    }

    fn complete(&mut self, sink: &mut EventSink) -> CallStep {
        if !self.begun && self.rule == Arguments::Optional && self.waiting.is_none() {
            self.waiting = Some("{}".to_owned());
            self.try_begin(sink);
        }
        if self.begun {
            sink.end();
            return CallStep::Done;
        }
        self.fail(sink);
        CallStep::Text
    }

    /// Follows the members of the object; `false` when it cannot be a call.
    fn observe(&mut self, c: char, in_text: bool, before: Place, after: Place, sink: &mut EventSink) -> bool {
        match (before, after) {
            (Place::Key, Place::Key) => self.key.push(c),
            (_, Place::Key) => self.key.clear(),
            (Place::Key, Place::AfterKey) => return self.begin_member(),
            _ => {}
        }
        let starts = before == Place::BeforeValue && after == Place::InValue;
        let goes_on = before == Place::InValue && (after == Place::InValue || after == Place::AfterValue);
        let belongs = starts || (goes_on && (after == Place::InValue || !c.is_whitespace()));
        if belongs && self.member != Member::Other && !self.take(c, in_text, sink) {
            return false;
        }
        let ended = before == Place::InValue && after != Place::InValue;
        !ended || self.end_member(sink)
    }

    fn begin_member(&mut self) -> bool {
        self.value.clear();
        self.member = match self.key.as_str() {
            "name" => Member::Name,
            "arguments" | "parameters" => Member::Arguments,
            _ => Member::Other,
        };
        match self.member {
            Member::Name => self.name.is_none(),
            Member::Arguments => self.waiting.is_none() && !self.begun,
            Member::Other => true,
        }
    }

    fn take(&mut self, c: char, in_text: bool, sink: &mut EventSink) -> bool {
        let is_object = self.begun || self.waiting.is_some() || (self.value.is_empty() && c == '{');
        if self.member == Member::Name || !is_object {
            push_escaped(&mut self.value, c, in_text);
            let mut allowed = if self.member == Member::Name { "\"" } else { "\"n" }.chars();
            return self.value.len() > 1 || allowed.any(|first| first == c);
        }
        let mut piece = String::new();
        push_escaped(&mut piece, c, in_text);
        if self.begun {
            sink.arguments(&piece);
        } else {
            self.waiting.get_or_insert_default().push_str(&piece);
            self.try_begin(sink);
        }
        true
    }

    fn end_member(&mut self, sink: &mut EventSink) -> bool {
        let value = std::mem::take(&mut self.value);
        match std::mem::replace(&mut self.member, Member::Other) {
            Member::Other => return true,
            Member::Name => {
                self.name = serde_json::from_str(&value).ok().filter(|name: &String| !name.is_empty());
                if self.name.is_none() {
                    return false;
                }
            }
            Member::Arguments if value.is_empty() => {}
            Member::Arguments => {
                self.waiting = arguments_of(&value);
                if self.waiting.is_none() {
                    return false;
                }
            }
        }
        self.try_begin(sink);
        true
    }

    fn try_begin(&mut self, sink: &mut EventSink) {
        if let (false, Some(name), Some(_)) = (self.begun, &self.name, &self.waiting) {
            sink.begin(name.clone());
            sink.arguments(&self.waiting.take().unwrap_or_default());
            self.begun = true;
        }
    }
}

/// Arguments that are not written as an object: none, or an object inside a string, as the API carries it.
fn arguments_of(value: &str) -> Option<String> {
    if value == "null" {
        return Some("{}".to_owned());
    }
    let text: String = serde_json::from_str(value).ok()?;
    serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text).ok()?;
    Some(text)
}
