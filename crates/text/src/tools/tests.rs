//! Every format: what is a call, what is text, and that cutting the text changes nothing.

use super::ToolFormat::{DeepSeek, Hermes, Llama3Json, Mistral, Phi, Pythonic};
use super::{ToolFormat, ToolReading};
use crate::message_event::MessageEvent;
use crate::message_reader::MessageReader;
use crate::reasoning::ReasoningFormat;

/// A message as a client that collects sees it.
#[derive(Debug, Default, PartialEq)]
struct Collected {
    reasoning: String,
    text: String,
    calls: Vec<(String, String)>,
}

impl Collected {
    fn add(&mut self, events: Vec<MessageEvent>) {
        for event in events {
            match event {
                MessageEvent::Reasoning(text) => self.reasoning.push_str(&text),
                MessageEvent::Text(text) => self.text.push_str(&text),
                MessageEvent::CallBegin { name } => self.calls.push((name, String::new())),
                MessageEvent::CallArguments(text) => self.calls.last_mut().expect("a call began").1.push_str(&text),
                MessageEvent::CallEnd => {
                    let arguments = &self.calls.last().expect("a call began").1;
                    let parsed = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(arguments);
                    assert!(parsed.is_ok(), "arguments of a complete call are an object: {arguments}");
                }
                MessageEvent::CallBroken { raw } => {
                    self.calls.pop();
                    self.text.push_str(&raw);
                }
            }
        }
    }
}

fn read<'a>(reader: &MessageReader, pieces: impl IntoIterator<Item = &'a str>) -> Collected {
    let (mut reader, mut collected) = (reader.clone(), Collected::default());
    pieces.into_iter().for_each(|piece| collected.add(reader.push(piece)));
    collected.add(reader.finish());
    collected
}

fn reader(reading: &ToolReading) -> MessageReader {
    MessageReader::new(ReasoningFormat::named("qwen3"), Some(reading), "")
}

fn of(format: ToolFormat, text: &str) -> Collected {
    read(&reader(&ToolReading::Format(format)), [text])
}

fn calls(collected: &Collected) -> Vec<(&str, &str)> {
    collected.calls.iter().map(|(name, arguments)| (name.as_str(), arguments.as_str())).collect()
}

#[test]
fn what_looks_like_a_call_within_json_is_text_where_the_text_may_be_json() {
    let call = r#"<tool_call>{"name": "f", "arguments": {}}</tool_call>"#;
    let json = format!("{{\"a\": {}}}", serde_json::Value::from("<tool_call>{\"name\": 1}</tool_call>"));
    let quoted = format!("{{\"a\": '{call}'}}");
    let either = |text: &str| read(&reader(&ToolReading::FormatOrJson(Hermes)), [text]);
    for text in [&json, &quoted] {
        assert_eq!(either(text), Collected { text: text.clone(), ..Collected::default() });
    }
    assert_eq!(calls(&of(Hermes, &quoted)), [("f", "{}")], "between other text it is one");
    assert_eq!(calls(&either(&format!("{call}\n{call}"))), [("f", "{}"), ("f", "{}")]);
    let bare = |text| read(&reader(&ToolReading::FormatOrJson(Llama3Json)), [text]);
    assert_eq!(calls(&bare(r#"{"name": "f", "parameters": {}}"#)), [("f", "{}")]);
    assert_eq!(bare(r#"{"a": 1}"#).text, r#"{"a": 1}"#);
}

/// Texts with one call of `f` with `{"a": 1}`-like arguments and one of `g` without any.
const TWO_CALLS: [(ToolFormat, &str); 11] = [
    (
        Hermes,
        "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>{\"arguments\": {}, \"name\": \"g\"}</tool_call>\n",
    ),
    (
        Hermes,
        "Let me see.<tool_call>{\"id\": [1, {}], \"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}<tool_call>{\"name\": \"g\"}",
    ),
    (
        Llama3Json,
        "{\"name\": \"f\", \"parameters\": {\"a\": 1}}; {\"type\": \"function\", \"name\": \"g\", \"parameters\": null}",
    ),
    (
        Llama3Json,
        "Let me see.<|python_tag|>{\"name\": \"f\", \"parameters\": {\"a\": 1}};{\"name\": \"g\", \"parameters\": {}}",
    ),
    (Pythonic, "[f(a=1), g()]"),
    (Pythonic, "Let me see.<|python_start|>[f( a = 1 ),g()]<|python_end|>"),
    (
        Mistral,
        "Let me see.[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", \"arguments\": {}}]",
    ),
    (Mistral, "Let me see.[TOOL_CALLS]f{\"a\": 1}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}"),
    (
        DeepSeek,
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    (
        DeepSeek,
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜><｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    (Phi, "Let me see.\nfunctools[{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", \"arguments\": {}}]"),
];

/// Texts that hold no call and must come back as they are.
const NO_CALLS: [(ToolFormat, &str); 27] = [
    (Hermes, " plain text with < and {\"name\": \"f\", \"arguments\": {}} \n"),
    (Hermes, "<tool_call>no object</tool_call>"),
    (Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1,}}</tool_call> and more"),
    (Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}"),
    (Hermes, "<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>"),
    (Hermes, "<tool_call>{\"arguments\": {\"a\": 1}}</tool_call>"),
    (Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": [1]}"),
    (Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": \"x\"}"),
    (Hermes, "a <tool_call"),
    (Hermes, "</tool_call>"),
    (Llama3Json, "The answer is {\"name\": \"f\", \"parameters\": {}}"),
    (Llama3Json, "{\"name\": \"Bob\", \"age\": 5}"),
    (Llama3Json, " {\"a\""),
    (Llama3Json, "{not json}"),
    (Llama3Json, "  \n"),
    (Pythonic, "[1, 2, 3] is a list"),
    (Pythonic, "[a link](https://example.org/(x)) and [f(1)]"),
    (Pythonic, "[f(a=1"),
    (Pythonic, "[f(a=b)]"),
    (Pythonic, "See [f(a=1)]"),
    (Mistral, "[TOOL_CALLS"),
    (Mistral, "[TOOL_CALLS] nothing of the kind"),
    (Mistral, "[TOOL_CALLS]f{\"a\": }"),
    (Mistral, "[TOOL_CALLS][{\"a\": 1}]"),
    (DeepSeek, "<｜tool▁call▁begin｜>no separator {"),
    (DeepSeek, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\""),
    (Phi, "functools is a module, functools[0] is not a call"),
];

#[test]
fn calls_are_found_in_every_format() {
    for (format, text) in TWO_CALLS {
        let collected = of(format, text);
        let [(f, first), (g, second)] = &calls(&collected)[..] else { panic!("{format:?} {text}: {collected:?}") };
        let first: serde_json::Value = serde_json::from_str(first).expect("JSON");
        assert_eq!((*f, *g, *second), ("f", "g", "{}"), "{format:?} {text}");
        assert_eq!(first, serde_json::json!({"a": 1}));
        let said = if text.starts_with("Let me see.") { "Let me see." } else { "" };
        assert_eq!(collected.text, said, "{format:?} {text}");
    }
}

#[test]
fn what_is_not_a_call_comes_back_as_text() {
    for (format, text) in NO_CALLS {
        let collected = of(format, text);
        assert_eq!((collected.text.as_str(), collected.calls.len()), (text, 0), "{format:?}");
    }
}

#[test]
fn arguments_keep_their_text_and_line_ends_in_strings_are_escaped() {
    let text = "<tool_call>{\"name\": \"f\", \"arguments\": { \"a\" : \"x\ny\t\\n\" , \"b\":1.50 }}</tool_call>";
    assert_eq!(calls(&of(Hermes, text)), [("f", "{ \"a\" : \"x\\ny\\t\\n\" , \"b\":1.50 }")]);
}

#[test]
fn arguments_are_passed_on_as_they_come() {
    let mut reader = reader(&ToolReading::Format(Hermes));
    reader.push("<tool_call>{\"name\": \"f\", \"arguments\"");
    assert_eq!(reader.push(": {\"a"), [begin("f"), MessageEvent::CallArguments("{\"a".to_owned())]);
    assert_eq!(reader.push("\": 1"), [MessageEvent::CallArguments("\": 1".to_owned())]);
    assert_eq!(reader.push("}}"), [MessageEvent::CallArguments("}".to_owned()), MessageEvent::CallEnd]);
}

fn begin(name: &str) -> MessageEvent {
    MessageEvent::CallBegin { name: name.to_owned() }
}

#[test]
fn a_good_call_before_a_broken_one_stays() {
    let collected = of(Hermes, "<tool_call>{\"name\":\"f\"}</tool_call><tool_call>{\"name\":</tool_call>");
    assert_eq!(calls(&collected), [("f", "{}")]);
    assert_eq!(collected.text, "<tool_call>{\"name\":</tool_call>");
}

#[test]
fn constrained_texts_are_calls_from_their_first_character() {
    let list =
        read(&reader(&ToolReading::List), ["[{\"name\": \"f\", \"parameters\": {\"a\": 1}},", "{\"name\":\"g\"}]"]);
    assert_eq!(calls(&list), [("f", "{\"a\": 1}"), ("g", "{}")]);
    let named = read(&reader(&ToolReading::ArgumentsOf("f".to_owned())), ["{\"a\"", ": 1} "]);
    assert_eq!((calls(&named), named.text.as_str()), (vec![("f", "{\"a\": 1}")], ""));
    let neither = read(&reader(&ToolReading::List), ["Sorry."]);
    assert_eq!((neither.calls.len(), neither.text.as_str()), (0, "Sorry."));
}

#[test]
fn constrained_texts_that_end_early_keep_the_part_of_a_call() {
    let whole = "[{\"name\": \"f\", \"parameters\": {\"a\": 1}}, {\"name\": \"g\", \"parameters\": {}}]";
    let list = |end: &str| {
        let text = &whole[..whole.find(end).expect("a part of it") + end.len()];
        let collected = read(&reader(&ToolReading::List), [text]);
        assert_eq!(collected.text, "", "{text}");
        collected.calls.into_iter().map(|(name, arguments)| format!("{name}{arguments}")).collect::<Vec<_>>()
    };
    let none: [&str; 0] = [];
    assert_eq!(list("["), none);
    assert_eq!(list("\"name\": \"f"), none);
    assert_eq!(list("\"f\""), ["f"]);
    assert_eq!(list("{\"a\":"), ["f{\"a\":"]);
    assert_eq!(list("1}"), ["f{\"a\": 1}"]);
    assert_eq!(list("}}, "), ["f{\"a\": 1}"]);
    assert_eq!(list("\"g\""), ["f{\"a\": 1}", "g"]);
    for arguments in ["", "{\"a\": \"x"] {
        let named = read(&reader(&ToolReading::ArgumentsOf("f".to_owned())), [arguments]);
        assert_eq!((calls(&named), named.text.as_str()), (vec![("f", arguments)], ""));
    }
}

#[test]
fn reasoning_comes_before_text_and_calls() {
    let text = "<think>\nI need <tool_call>.\n</think>\n\nWell\n<tool_call>{\"name\":\"f\"}</tool_call>";
    let collected = of(Hermes, text);
    assert_eq!((collected.reasoning.as_str(), collected.text.as_str()), ("I need <tool_call>.", "Well"));
    assert_eq!(calls(&collected), [("f", "{}")]);
}

#[test]
fn reasoning_may_begin_in_the_prompt() {
    let format = ReasoningFormat::named("qwen3");
    let prompted = MessageReader::new(format, None, "<|assistant|><think>\n");
    let collected = read(&prompted, ["Hm. </thi", "nk> \n Yes. </think>"]);
    assert_eq!((collected.reasoning.as_str(), collected.text.as_str()), ("Hm.", "Yes. </think>"));
    let closed = MessageReader::new(format, None, "<think>\n\n</think>\n\n");
    assert_eq!(read(&closed, [" Yes."]).text, " Yes.");
    let implied = MessageReader::new(ReasoningFormat::named("deepseek_r1"), None, "");
    assert_eq!(read(&implied, ["<think>Hm.</think>Yes."]).reasoning, "Hm.");
    assert_eq!(read(&implied, ["Hm."]).reasoning, "Hm.");
}

#[test]
fn cutting_a_text_changes_nothing() {
    let mut random = Random(7);
    for (format, text) in TWO_CALLS.into_iter().chain(NO_CALLS) {
        let reader = reader(&ToolReading::Format(format));
        for text in [text.to_owned(), format!("<think> a\n</think>\n{text}")] {
            assert_same_in_pieces(&reader, &text, &mut random);
        }
    }
}

#[test]
fn damaged_texts_are_read_the_same_in_pieces() {
    let mut random = Random(11);
    let readings = TWO_CALLS.map(|(format, text)| (ToolReading::Format(format), text));
    let lists = [
        (ToolReading::List, "[{\"name\": \"f\", \"parameters\": {\"a\": [1, \"x\"]}}]"),
        (ToolReading::ArgumentsOf("f".to_owned()), "{\"a\": -1.5e3}"),
    ];
    for (reading, text) in readings.into_iter().chain(lists) {
        let reader = reader(&reading);
        for _ in 0..150 {
            assert_same_in_pieces(&reader, &damaged(text, &mut random), &mut random);
        }
    }
}

fn assert_same_in_pieces(reader: &MessageReader, text: &str, random: &mut Random) {
    let whole = read(reader, [text]);
    let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let single = ends.windows(2).map(|pair| &text[pair[0]..pair[1]]);
    assert_eq!(read(reader, single), whole, "{text}");
    for _ in 0..4 {
        let mut cuts = vec![0, text.len()];
        cuts.extend((0..random.below(6)).map(|_| ends[random.below(ends.len())]));
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]);
        assert_eq!(read(reader, pieces), whole, "{text} cut at {cuts:?}");
    }
}

/// A few characters lost, doubled, swapped or put in.
fn damaged(text: &str, random: &mut Random) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..=random.below(4) {
        let at = random.below(chars.len());
        match random.below(4) {
            0 => drop(chars.remove(at)),
            1 => chars.insert(at, chars[at]),
            2 => chars.truncate(at.max(1)),
            _ => chars[at] = ['{', '}', '"', '\\', '<', '[', '\n', 'é'][random.below(8)],
        }
        if chars.is_empty() {
            chars.push('<');
        }
    }
    chars.into_iter().collect()
}

/// Xorshift: enough for tests.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}
