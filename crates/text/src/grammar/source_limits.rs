//! Limits of grammar sources, checked before anything is compiled: what is large, deep, or multiplies is refused.

use std::collections::HashMap;

use serde_json::Value;

use super::{GrammarError, GrammarSource, StructuralTag, Whitespace};

/// Bytes of a source, a schema being measured as compact JSON.
const SOURCE_BYTES_MAX: usize = 256 << 10;
/// Bytes of one regular expression.
const PATTERN_BYTES_MAX: usize = 16 << 10;
/// Nested values of a schema, or brackets of a grammar.
const DEPTH_MAX: usize = 64;
/// Values of one `enum`, choices, and alternatives of one `anyOf`.
const ALTERNATIVES_MAX: usize = 10_000;
/// Combinations that intersecting the branches of a schema may give.
const COMBINATIONS_MAX: u64 = 20_000;
/// Rules of a grammar: definitions may use each other in a chain, which is followed recursively.
const RULES_MAX: usize = 2_000;
/// Tags and triggers of a structural tag.
const TAGS_MAX: usize = 128;

/// Refuses a source that exceeds a limit.
pub(super) fn check(source: &GrammarSource) -> Result<(), GrammarError> {
    match source {
        GrammarSource::Json { schema, whitespace } => check_json(schema, whitespace.as_ref()),
        GrammarSource::Regex(pattern) => at_most("a length in bytes", pattern.len(), PATTERN_BYTES_MAX),
        GrammarSource::Choice(choices) => {
            if choices.is_empty() {
                return Err(GrammarError::Invalid { reason: "there is nothing to choose from".to_owned() });
            }
            at_most("a number of choices", choices.len(), ALTERNATIVES_MAX)?;
            let bytes = choices.iter().map(String::len).sum();
            at_most("a length in bytes", bytes, SOURCE_BYTES_MAX)
        }
        GrammarSource::Grammar(text) => check_grammar(text),
        GrammarSource::StructuralTag(tag) => check_tag(tag),
        GrammarSource::JsonOrCalls(either) => {
            check_schema(&either.call)?;
            check_json(&either.answer, either.whitespace.as_ref())
        }
    }
}

pub(super) fn at_most(what: &'static str, found: usize, max: usize) -> Result<(), GrammarError> {
    if found <= max { Ok(()) } else { Err(GrammarError::Limit { what, found, max }) }
}

fn check_json(schema: &Value, whitespace: Option<&Whitespace>) -> Result<(), GrammarError> {
    if let Some(Whitespace::Pattern(pattern)) = whitespace {
        at_most("a white space pattern", pattern.len(), PATTERN_BYTES_MAX)?;
    }
    check_schema(schema)
}

fn check_tag(tag: &StructuralTag) -> Result<(), GrammarError> {
    at_most("a number of tags", tag.structures.len(), TAGS_MAX)?;
    at_most("a number of triggers", tag.triggers.len(), TAGS_MAX)?;
    for structure in &tag.structures {
        at_most("a tag's length in bytes", structure.begin.len() + structure.end.len(), 4096)?;
        check_schema(&structure.schema)?;
    }
    let triggers = tag.triggers.iter().map(String::len).sum();
    at_most("triggers with a length in bytes", triggers, 4096)
}

/// Counts what a grammar's text nests and defines. Brackets inside of strings and expressions count too: that can only
/// refuse what nobody writes.
fn check_grammar(text: &str) -> Result<(), GrammarError> {
    at_most("a length in bytes", text.len(), SOURCE_BYTES_MAX)?;
    at_most("a number of rules", text.matches(':').count().min(text.lines().count()), RULES_MAX)?;
    // JSON within a grammar goes over several lines; rules close their brackets in the line that opens them.
    let has_json = text.contains("%json");
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'\n' => depth = if has_json { depth } else { 0 },
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    at_most("a nesting", deepest, DEPTH_MAX)
}

fn check_schema(schema: &Value) -> Result<(), GrammarError> {
    if !schema.is_object() && !schema.is_boolean() {
        return Err(GrammarError::Invalid { reason: "a JSON schema is an object".to_owned() });
    }
    at_most("a nesting", depth_of(schema), DEPTH_MAX)?;
    at_most("a length in bytes", schema.to_string().len(), SOURCE_BYTES_MAX)?;
    check_values(schema)?;
    let mut combinations = Combinations { root: schema, of_references: HashMap::new() };
    let found = combinations.of(schema);
    at_most(
        "combinations of alternatives (allOf, anyOf, oneOf)",
        usize::try_from(found).unwrap_or(usize::MAX),
        COMBINATIONS_MAX as usize,
    )
}

/// Depth of nesting, without recursing deeper than needed to know that it is too much.
fn depth_of(value: &Value) -> usize {
    let mut deepest = 0;
    let mut open = vec![(value, 1)];
    while let Some((value, depth)) = open.pop() {
        deepest = deepest.max(depth);
        match value {
            Value::Array(values) => open.extend(values.iter().map(|value| (value, depth + 1))),
            Value::Object(map) => open.extend(map.values().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    deepest
}

fn check_values(schema: &Value) -> Result<(), GrammarError> {
    let mut open = vec![schema];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(values) => open.extend(values),
            Value::Object(map) => {
                for (name, value) in map {
                    let count = value.as_array().map_or(0, Vec::len);
                    match name.as_str() {
                        "enum" => at_most("an enum with a number of values", count, ALTERNATIVES_MAX)?,
                        "anyOf" | "oneOf" | "allOf" => at_most("a number of alternatives", count, ALTERNATIVES_MAX)?,
                        "pattern" => {
                            let bytes = value.as_str().map_or(0, str::len);
                            at_most("a pattern with a length in bytes", bytes, PATTERN_BYTES_MAX)?;
                        }
                        _ => {}
                    }
                    open.push(value);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// An upper bound for the branches that the compiler makes when it intersects a schema's parts: sums over alternatives,
/// products over what must hold at once.
struct Combinations<'a> {
    root: &'a Value,
    /// By reference; `None` while it is being followed.
    of_references: HashMap<&'a str, Option<u64>>,
}

impl<'a> Combinations<'a> {
    fn of(&mut self, schema: &'a Value) -> u64 {
        let Some(map) = schema.as_object() else { return 1 };
        let (mut here, mut inside) = (1_u64, 1_u64);
        for (name, value) in map {
            match name.as_str() {
                "$ref" => {
                    let reference = value.as_str().unwrap_or_default();
                    here = here.saturating_mul(self.of_reference(reference));
                }
                "anyOf" | "oneOf" => {
                    let alternatives = value.as_array().into_iter().flatten().map(|schema| self.of(schema));
                    here = here.saturating_mul(alternatives.fold(0, u64::saturating_add).max(1));
                }
                "allOf" => {
                    let parts = value.as_array().into_iter().flatten().map(|schema| self.of(schema));
                    here = here.saturating_mul(parts.fold(1, u64::saturating_mul));
                }
                "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas" => {
                    let schemas = value.as_object().into_iter().flat_map(|map| map.values());
                    inside = schemas.map(|schema| self.of(schema)).fold(inside, u64::max);
                }
                "items"
                | "prefixItems"
                | "additionalProperties"
                | "additionalItems"
                | "not"
                | "if"
                | "then"
                | "else"
                | "contains"
                | "propertyNames"
                | "unevaluatedProperties" => {
                    let schemas = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                    inside = schemas.iter().map(|schema| self.of(schema)).fold(inside, u64::max);
                }
                _ => {}
            }
        }
        here.max(inside)
    }

    fn of_reference(&mut self, reference: &'a str) -> u64 {
        match self.of_references.get(reference) {
            Some(Some(known)) => return *known,
            Some(None) => return 1,
            None => {}
        }
        let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        self.of_references.insert(reference, None);
        let combinations = target.map_or(1, |target| self.of(target));
        self.of_references.insert(reference, Some(combinations));
        combinations
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema(schema: Value) -> Result<(), GrammarError> {
        check(&GrammarSource::Json { schema, whitespace: None })
    }

    fn limit(result: Result<(), GrammarError>) -> &'static str {
        match result {
            Err(GrammarError::Limit { what, .. }) => what,
            other => panic!("expected a limit, got {other:?}"),
        }
    }

    #[test]
    fn ordinary_schemas_pass() {
        assert_eq!(schema(json!({"type": "object", "properties": {"a": {"anyOf": [{"type": "null"}]}}})), Ok(()));
        assert_eq!(schema(json!(true)), Ok(()));
        assert!(matches!(schema(json!("text")), Err(GrammarError::Invalid { .. })));
    }

    #[test]
    fn what_multiplies_is_refused() {
        let ten: Vec<Value> = (0..10).map(|number| json!({"const": number})).collect();
        let any = json!({"anyOf": ten});
        assert_eq!(schema(json!({"allOf": [any, any, any, any]})), Ok(()));
        let combinations = "combinations of alternatives (allOf, anyOf, oneOf)";
        assert_eq!(limit(schema(json!({"allOf": [any, any, any, any, any]}))), combinations);
        let property = json!({"properties": {"a": any}});
        assert_eq!(limit(schema(json!({"allOf": vec![property; 6]}))), combinations);
        let by_reference = json!({"$defs": {"a": any}, "allOf": vec![json!({"$ref": "#/$defs/a"}); 60]});
        assert_eq!(limit(schema(by_reference)), combinations);
        let chain: serde_json::Map<String, Value> = (0..40)
            .map(|number| {
                let next = json!({"$ref": format!("#/$defs/d{}", number + 1)});
                (format!("d{number}"), json!({"anyOf": [next, next]}))
            })
            .collect();
        assert_eq!(limit(schema(json!({"$defs": chain, "$ref": "#/$defs/d0"}))), combinations);
    }

    #[test]
    fn references_in_a_circle_are_counted_once() {
        let circle = json!({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}, "$ref": "#/$defs/a"});
        assert_eq!(schema(circle), Ok(()));
    }

    #[test]
    fn a_grammar_of_many_lines_is_measured_in_one_pass() {
        let begun = std::time::Instant::now();
        let lines = "start: \"a\"".to_owned() + &"\n".repeat(SOURCE_BYTES_MAX - 10);
        for _ in 0..10 {
            assert_eq!(check(&GrammarSource::Grammar(lines.clone())), Ok(()));
        }
        // A search of the whole text in every line took 12 s for each.
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    #[test]
    fn depth_size_and_counts_are_limited() {
        let mut deep = json!({});
        for _ in 0..64 {
            deep = json!({ "items": deep });
        }
        assert_eq!(limit(schema(deep)), "a nesting");
        assert_eq!(limit(schema(json!({"description": "x".repeat(300_000)}))), "a length in bytes");
        let values: Vec<u32> = (0..10_001).collect();
        assert_eq!(limit(schema(json!({"enum": values}))), "an enum with a number of values");
        let long = json!({"type": "string", "pattern": "x".repeat(17_000)});
        assert_eq!(limit(schema(long)), "a pattern with a length in bytes");
        assert_eq!(limit(check(&GrammarSource::Grammar("start: ".to_owned() + &"(".repeat(65)))), "a nesting");
        let rules: String = (0..3000).map(|number| format!("r{number}: \"a\"\n")).collect();
        assert_eq!(limit(check(&GrammarSource::Grammar(rules))), "a number of rules");
        assert_eq!(limit(check(&GrammarSource::Regex("a".repeat(17_000)))), "a length in bytes");
        assert!(matches!(check(&GrammarSource::Choice(Vec::new())), Err(GrammarError::Invalid { .. })));
    }
}
