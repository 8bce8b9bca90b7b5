//! Grammars in Lark notation for what clients write in other forms: choices and structural tags.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{GrammarError, StructuralTag, ascii_classes};

/// A literal; the notation has the escapes of JSON, and takes no control character as it is.
pub(super) fn literal(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    let escaped = |c: char| if c.is_control() { format!("\\u{:04x}", c as u32) } else { c.to_string() };
    quoted.chars().map(escaped).collect()
}

/// One of these texts.
pub(super) fn of_choices(choices: &[String]) -> String {
    let literals: Vec<String> = choices.iter().map(|choice| literal(choice)).collect();
    format!("start: {}\n", literals.join("\n  | "))
}

/// JSON of the one schema, or calls of the other between two marks, which are written as the notation writes them.
pub(super) fn of_json_or_calls([answer, call]: [&Value; 2], [begin, end]: &[String; 2], several: bool) -> String {
    let is_bare = |mark: &str| mark == "\"\"";
    let before = if is_bare(begin) { String::new() } else { format!("{begin} \"\\n\"? ") };
    let behind = if is_bare(end) { String::new() } else { format!(" \"\\n\"? {end}") };
    let more = if several { " (\"\\n\"? call)*" } else { "" };
    format!("start: answer | call{more}\nanswer: %json {answer}\ncall: {before}body{behind}\nbody: %json {call}\n")
}

/// Free text in which each trigger begins a tag.
pub(super) fn of_structural_tag(tag: &StructuralTag) -> Result<String, GrammarError> {
    let invalid = |reason: String| Err(GrammarError::Invalid { reason });
    if tag.structures.is_empty() || tag.triggers.is_empty() || tag.triggers.iter().any(String::is_empty) {
        return invalid("a structural tag needs structures and triggers, none of them empty".to_owned());
    }
    let (mut rules, mut names) = (String::new(), Vec::new());
    for (number, trigger) in tag.triggers.iter().enumerate() {
        // The longest trigger counts where several fit; the text before it ends where the trigger does.
        let longest = |begin: &str| {
            tag.triggers.iter().filter(|trigger| begin.starts_with(*trigger)).max_by_key(|trigger| trigger.len())
        };
        let begun = tag.structures.iter().filter(|structure| longest(&structure.begin) == Some(trigger));
        let bodies: Vec<String> = begun
            .map(|structure| {
                let rest = &structure.begin[trigger.len()..];
                let rest = if rest.is_empty() { String::new() } else { literal(rest) + " " };
                let end =
                    if structure.end.is_empty() { String::new() } else { " ".to_owned() + &literal(&structure.end) };
                format!("{rest}%json {}{end}", ascii_classes::of_schema(&structure.schema))
            })
            .collect();
        if bodies.is_empty() {
            continue;
        }
        let _ = writeln!(rules, "before_{number}[lazy]: /(?s:.*)/ {}", literal(trigger));
        let _ = writeln!(rules, "tag_{number}: before_{number} ({})", bodies.join(" | "));
        names.push(format!("tag_{number}"));
    }
    let fits = |begin: &str| tag.triggers.iter().any(|trigger| begin.starts_with(trigger));
    if let Some(structure) = tag.structures.iter().find(|structure| !fits(&structure.begin)) {
        return invalid(format!("the tag {} begins with none of the triggers", json!(structure.begin)));
    }
    let triggers: Vec<String> = tag.triggers.iter().map(|trigger| literal(trigger)).collect();
    let _ = writeln!(rules, "REST: /(?s:.*)/ & ~(/(?s:.*)/ ({}) /(?s:.*)/)", triggers.join(" | "));
    Ok(format!("start: ({})* REST\n{rules}", names.join(" | ")))
}
