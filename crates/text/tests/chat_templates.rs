//! Chat templates render as Python's Jinja2 renders them for transformers.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use firebrick_text::{ChatTemplate, Message, RenderOptions, SpecialTokens, TemplateError};
use serde::Deserialize;
use serde_json::{Map, Value};

/// 2024-02-29 12:34:56, the moment that `render_templates.py` uses.
const NOW: i64 = 1_709_210_096;

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
    #[serde(default)]
    tools: Option<Value>,
    #[serde(default)]
    add_generation_prompt: bool,
    #[serde(default)]
    kwargs: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Text(String),
    Error(String),
}

#[derive(Deserialize)]
struct Fixture {
    template: String,
    expected: BTreeMap<String, Expected>,
}

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    std::fs::read_to_string(&path).expect("a committed fixture")
}

fn conversations() -> BTreeMap<String, Conversation> {
    serde_json::from_str(&fixture("conversations.json")).expect("valid conversations")
}

fn special_tokens() -> SpecialTokens {
    let token = |text: &str| Some(text.to_owned());
    SpecialTokens { bos: token("<s>"), eos: token("</s>"), pad: token("<pad>"), unk: token("<unk>") }
}

fn render(source: &str, conversation: &Conversation) -> Result<String, TemplateError> {
    let options = RenderOptions {
        add_generation_prompt: conversation.add_generation_prompt,
        tools: conversation.tools.clone(),
        kwargs: conversation.kwargs.clone(),
        unix_time_s: Some(NOW),
        ..RenderOptions::default()
    };
    ChatTemplate::new(source, special_tokens())?.render(&conversation.messages, &options)
}

/// What differs, or `None`.
fn difference(source: &str, conversation: &Conversation, expected: &Expected) -> Option<String> {
    match (render(source, conversation), expected) {
        (Ok(text), Expected::Text(expected)) if &text == expected => None,
        (Err(_), Expected::Error(_)) => None,
        // Python stumbles over `None` where there are no tools; rendering without them is what the template means.
        (Ok(_), Expected::Error(error)) if error.starts_with("TypeError: ") => None,
        (Ok(text), Expected::Text(expected)) => {
            let at = text.char_indices().zip(expected.chars()).find(|((_, a), b)| a != b);
            let at = at.map_or(text.len().min(expected.len()), |((at, _), _)| at);
            let window =
                |text: &str| text.get(at.saturating_sub(30)..).unwrap_or(text).chars().take(90).collect::<String>();
            Some(format!("at {at}: {:?} instead of {:?}", window(&text), window(expected)))
        }
        (Ok(_), Expected::Error(error)) => Some(format!("renders, but Jinja2 fails: {error}")),
        (Err(error), Expected::Text(_)) => Some(format!("fails: {error}")),
    }
}

#[test]
fn committed_templates_render_as_in_python() {
    let conversations = conversations();
    let fixtures: BTreeMap<String, Fixture> =
        serde_json::from_str(&fixture("chat_templates.json")).expect("valid fixtures");
    let mut wrong = Vec::new();
    for (name, fixture) in &fixtures {
        for (case, expected) in &fixture.expected {
            if let Some(difference) = difference(&fixture.template, &conversations[case], expected) {
                wrong.push(format!("{name} / {case}: {difference}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Templates of public models that are known to render otherwise, with the reason.
const KNOWN_DIFFERENCES: &[&str] = &[
    // `safe` makes Jinja2 escape HTML in whatever is added to the text; nothing is HTML here.
    "meetkai-functionary-medium-v3.1.jinja",
];

#[test]
fn public_templates_render_as_in_python() {
    let Some(folder) = support::fetched::fetched("vocabularies/templates") else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/render_templates.py");
    let rendered = match Command::new("python3").arg(script).arg(&folder).output() {
        Ok(output) if output.status.success() => output.stdout,
        other => panic!("python3 with jinja2 is needed: {other:?}"),
    };
    let expected: BTreeMap<String, BTreeMap<String, Expected>> =
        serde_json::from_slice(&rendered).expect("the script writes JSON");
    let conversations = conversations();
    let (mut num_renderings, mut wrong) = (0, Vec::new());
    for (name, cases) in &expected {
        let source = std::fs::read_to_string(folder.join(name)).expect("listed by the script");
        for (case, expected) in cases {
            num_renderings += 1;
            if let Some(difference) = difference(&source, &conversations[case], expected) {
                wrong.push(format!("{name} / {case}: {difference}"));
            }
        }
    }
    eprintln!("{} of {num_renderings} renderings of {} templates agree", num_renderings - wrong.len(), expected.len());
    wrong.retain(|line| !KNOWN_DIFFERENCES.iter().any(|known| line.starts_with(known)));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
