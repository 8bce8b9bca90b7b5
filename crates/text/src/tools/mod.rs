//! Tool calls in what a model writes: one file per family of formats, and the table that lists them.
//!
//! Readers take the text one character at a time, so that how it was cut into pieces changes nothing. What turns out not
//! to be a call comes back as text. Arguments are passed on as they come.

mod arguments_object;
mod call_list;
mod deepseek;
mod described;
mod hermes;
mod json_call;
mod json_scanner;
mod llama3_json;
mod mistral;
mod phi;
mod python_call;
mod pythonic;

#[cfg(test)]
mod tests;

use crate::message_event::EventSink;

pub use described::describe_tools;

/// A family of tool call formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{…}</tool_call>`
    Hermes,
    /// `{"name": …, "parameters": …}`
    Llama3Json,
    /// `[name(key=value)]`
    Pythonic,
    /// `[TOOL_CALLS]…`
    Mistral,
    /// `<｜tool▁call▁begin｜>…`
    DeepSeek,
    /// `functools[…]`
    Phi,
}

/// The names under which a format can be asked for; the first of each is its own.
const NAMES: [(&str, ToolFormat); 13] = [
    ("hermes", ToolFormat::Hermes),
    ("qwen", ToolFormat::Hermes),
    ("llama3_json", ToolFormat::Llama3Json),
    ("llama4_json", ToolFormat::Llama3Json),
    ("pythonic", ToolFormat::Pythonic),
    ("llama4_pythonic", ToolFormat::Pythonic),
    ("mistral", ToolFormat::Mistral),
    ("deepseek_v3", ToolFormat::DeepSeek),
    ("deepseek_v31", ToolFormat::DeepSeek),
    ("deepseek", ToolFormat::DeepSeek),
    ("phi4_mini_json", ToolFormat::Phi),
    ("phi", ToolFormat::Phi),
    ("granite", ToolFormat::Phi),
];

impl ToolFormat {
    /// The format with this name.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|&(_, format)| format)
    }

    /// All names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|&(name, _)| name)
    }

    /// The format that a chat template asks for, as far as its text tells.
    pub fn of_template(source: &str) -> Option<Self> {
        let shown = |words: &[&str]| words.iter().any(|word| source.contains(word));
        let table: [(&[&str], Self); 6] = [
            (&["[TOOL_CALLS]"], Self::Mistral),
            (&["<｜tool▁call"], Self::DeepSeek),
            (&["functools[", "<|tool_call|>"], Self::Phi),
            (&["<tool_call>"], Self::Hermes),
            (&["<|python_start|>", "[func_name1(", "python_call"], Self::Pythonic),
            (&["<|python_tag|>", "\"parameters\": "], Self::Llama3Json),
        ];
        table.iter().find(|(words, _)| shown(words)).map(|&(_, format)| format)
    }

    /// How calls are written, where they are JSON between two marks.
    pub fn written(self) -> Option<WrittenCall> {
        match self {
            Self::Hermes => {
                let [begin, end] = hermes::MARKS;
                Some(WrittenCall { begin, end, arguments: "arguments", several: true })
            }
            Self::Llama3Json => Some(WrittenCall { begin: "", end: "", arguments: "parameters", several: false }),
            Self::Pythonic | Self::Mistral | Self::DeepSeek | Self::Phi => None,
        }
    }

    /// Words of the format that may be special tokens, which texts usually leave out.
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &hermes::MARKS,
            Self::Llama3Json => &["<|python_tag|>"],
            Self::Pythonic => &["<|python_start|>", "<|python_end|>", "<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
            Self::DeepSeek => deepseek::MARKERS,
            Self::Phi => &["<|tool_call|>", "<|/tool_call|>"],
        }
    }
}

/// A call as a format writes it: an object with the name and the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrittenCall {
    /// What stands before it.
    pub begin: &'static str,
    /// What stands behind it.
    pub end: &'static str,
    /// The property that holds the arguments.
    pub arguments: &'static str,
    /// One call may follow another.
    pub several: bool,
}

/// How calls are to be found in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolReading {
    /// In the model's own format, between other text.
    Format(ToolFormat),
    /// In the model's own format, or the text is JSON and none are in it.
    FormatOrJson(ToolFormat),
    /// All of the text is a JSON list of calls, because it was constrained to be one; where it ends early, the last call
    /// is a part of one.
    List,
    /// All of the text is the arguments of this tool, or a part of them where it ends early.
    ArgumentsOf(String),
}

/// Finds calls in a text that comes in pieces.
#[derive(Debug, Clone)]
pub(crate) struct ToolReader(Reader);

#[derive(Debug, Clone)]
enum Reader {
    Hermes(hermes::Hermes),
    Llama3Json(llama3_json::Llama3Json),
    Pythonic(pythonic::Pythonic),
    Mistral(mistral::Mistral),
    DeepSeek(deepseek::DeepSeek),
    Phi(phi::Phi),
    List(call_list::CallList),
    Arguments(arguments_object::ArgumentsObject),
    /// Before the first character, which tells JSON from calls.
    First(ToolFormat),
    /// Behind a list or arguments that were all, or that were not there.
    Rest,
}

impl ToolReader {
    /// At the beginning of a text.
    pub fn new(reading: &ToolReading) -> Self {
        Self(match reading {
            ToolReading::Format(format) => Reader::of(*format),
            ToolReading::FormatOrJson(format) => Reader::First(*format),
            ToolReading::List => Reader::List(call_list::CallList::new("")),
            ToolReading::ArgumentsOf(name) => {
                Reader::Arguments(arguments_object::ArgumentsObject::new("", name.as_str()))
            }
        })
    }

    /// Takes a piece of text.
    pub fn push(&mut self, text: &str, sink: &mut EventSink) {
        text.chars().for_each(|c| self.step(c, sink));
    }

    fn step(&mut self, c: char, sink: &mut EventSink) {
        let step = match &mut self.0 {
            Reader::Hermes(reader) => return reader.step(c, sink),
            Reader::Llama3Json(reader) => return reader.step(c, sink),
            Reader::Pythonic(reader) => return reader.step(c, sink),
            Reader::Mistral(reader) => return reader.step(c, sink),
            Reader::DeepSeek(reader) => return reader.step(c, sink),
            Reader::Phi(reader) => return reader.step(c, sink),
            Reader::Rest => return sink.text(c.encode_utf8(&mut [0; 4])),
            Reader::First(format) => {
                let begins_call =
                    format.written().is_none_or(|call| call.begin.is_empty() || call.begin.starts_with(c));
                self.0 = if begins_call { Reader::of(*format) } else { Reader::Rest };
                return self.step(c, sink);
            }
            Reader::List(list) => list.step(c, sink),
            Reader::Arguments(arguments) => arguments.step(c, sink),
        };
        if step != json_call::CallStep::More {
            self.0 = Reader::Rest;
        }
        if step == json_call::CallStep::Invalid {
            self.step(c, sink);
        }
    }

    /// The text ends.
    pub fn finish(&mut self, sink: &mut EventSink) {
        match &mut self.0 {
            Reader::Hermes(reader) => reader.finish(sink),
            Reader::Llama3Json(reader) => reader.finish(sink),
            Reader::Pythonic(reader) => reader.finish(sink),
            Reader::Mistral(reader) => reader.finish(sink),
            Reader::DeepSeek(reader) => reader.finish(sink),
            Reader::Phi(reader) => reader.finish(sink),
            Reader::List(list) => list.cut(sink),
            Reader::Arguments(arguments) => arguments.cut(sink),
            Reader::First(_) | Reader::Rest => {}
        }
    }
}

impl Reader {
    fn of(format: ToolFormat) -> Self {
        match format {
            ToolFormat::Hermes => Self::Hermes(hermes::Hermes::new()),
            ToolFormat::Llama3Json => Self::Llama3Json(llama3_json::Llama3Json::new()),
            ToolFormat::Pythonic => Self::Pythonic(pythonic::Pythonic::new()),
            ToolFormat::Mistral => Self::Mistral(mistral::Mistral::new()),
            ToolFormat::DeepSeek => Self::DeepSeek(deepseek::DeepSeek::new()),
            ToolFormat::Phi => Self::Phi(phi::Phi::new()),
        }
    }
}

/// Whether a word can be the name of a tool.
pub(crate) fn is_tool_name(name: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
    !name.is_empty() && name.chars().all(allowed)
}
