//! Values as Python's `repr` writes them, for templates that print a list or a mapping.

use minijinja::Value;
use minijinja::value::ValueKind;

/// Deeper values are shown as `...`; request bodies are not nested so deeply.
const DEPTH_MAX: usize = 128;

/// `repr(value)` of Python.
pub(crate) fn python_repr(value: &Value) -> String {
    let mut out = String::new();
    write(value, DEPTH_MAX, &mut out);
    out
}

fn write(value: &Value, depth: usize, out: &mut String) {
    if depth == 0 {
        return out.push_str("...");
    }
    match value.kind() {
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write(&item, depth - 1, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write(&key, depth - 1, out);
                out.push_str(": ");
                write(&value.get_item(&key).unwrap_or_default(), depth - 1, out);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

/// Single quotes, unless the text has some and no double ones.
fn quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if character == mark => out.extend(['\\', character]),
            _ if character.is_control() => out.push_str(&format!("\\x{:02x}", character as u32)),
            _ => out.push(character),
        }
    }
    out.push(mark);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_as_in_python() {
        let value: serde_json::Value =
            serde_json::from_str(r#"{"a": [1, 2.5, true, null], "it's": "say \"hi\"\n", "b": "it's", "é": {}}"#)
                .expect("valid JSON");
        assert_eq!(
            python_repr(&Value::from_serialize(&value)),
            r#"{'a': [1, 2.5, True, None], "it's": 'say "hi"\n', 'b': "it's", 'é': {}}"#
        );
    }
}
