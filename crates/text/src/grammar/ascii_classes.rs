//! Regular expressions as clients mean them: `\d` and `\w` are ASCII, as in ECMAScript, where JSON Schema takes its
//! patterns from. The grammar library would take all digits and letters of Unicode. `\s` is Unicode's white space in both.

use serde_json::{Map, Value};

use super::schema_walk::for_each_schema;

/// The same expression with the classes written out. A class may stand within another one.
pub(super) fn of_pattern(pattern: &str) -> String {
    let mut written = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        let escaped = if c == '\\' { chars.next() } else { None };
        match (c, escaped) {
            (_, Some('d')) => written.push_str("[0-9]"),
            (_, Some('D')) => written.push_str("[^0-9]"),
            (_, Some('w')) => written.push_str("[A-Za-z0-9_]"),
            (_, Some('W')) => written.push_str("[^A-Za-z0-9_]"),
            (c, escaped) => {
                written.push(c);
                written.extend(escaped);
            }
        }
    }
    written
}

/// The same schema with such expressions.
pub(super) fn of_schema(schema: &Value) -> Value {
    let mut schema = schema.clone();
    for_each_schema(&mut schema, &mut |fields| {
        if let Some(Value::String(pattern)) = fields.get_mut("pattern") {
            *pattern = of_pattern(pattern);
        }
        if let Some(Value::Object(patterns)) = fields.get_mut("patternProperties") {
            let named: Map<String, Value> = std::mem::take(patterns);
            patterns.extend(named.into_iter().map(|(pattern, schema)| (of_pattern(&pattern), schema)));
        }
    });
    schema
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes_are_written_out_and_nothing_else_changes() {
        for (pattern, expected) in [
            (r"\d+-\w*", "[0-9]+-[A-Za-z0-9_]*"),
            (r"[\w.-]\D\W", "[[A-Za-z0-9_].-][^0-9][^A-Za-z0-9_]"),
            (r"\\d\\\d\s\p{L}\.", r"\\d\\[0-9]\s\p{L}\."),
            ("é\\", "é\\"),
        ] {
            assert_eq!(of_pattern(pattern), expected);
        }
    }

    #[test]
    fn patterns_of_schemas_are_found_wherever_they_stand() {
        let schema = json!({
            "properties": {"pattern": {"pattern": "\\d"}, "x": {"const": {"pattern": "\\d"}}},
            "patternProperties": {"^\\w$": {"items": {"pattern": "a"}}},
        });
        let expected = json!({
            "properties": {"pattern": {"pattern": "[0-9]"}, "x": {"const": {"pattern": "\\d"}}},
            "patternProperties": {"^[A-Za-z0-9_]$": {"items": {"pattern": "a"}}},
        });
        assert_eq!(of_schema(&schema), expected);
    }
}
