//! Schemas whose objects have no properties but those that they name.

use firebrick_text::for_each_schema;
use serde_json::{Map, Value};

/// What describes the same value as the schema it belongs to.
const PARTS: [&str; 9] = ["allOf", "anyOf", "oneOf", "if", "then", "else", "not", "dependentSchemas", "$ref"];

/// Closes every object that does not say itself what further properties it may have.
///
/// Where several schemas describe one object together, as the parts of an `allOf` do, each of them would forbid what the
/// others name: they stay open.
pub fn close_objects(schema: &mut Value) {
    for_each_schema(schema, &mut |fields| {
        let parts = PARTS.iter().filter(|name| fields.contains_key(**name)).count();
        let num_together = fields.get("allOf").and_then(Value::as_array).map_or(0, Vec::len);
        if num_together > 1 || parts > usize::from(!describes_object(fields)) {
            for (name, part) in fields.iter_mut().filter(|(name, _)| PARTS.contains(&name.as_str())) {
                open_parts(name, part);
            }
        } else if describes_object(fields) {
            fields.entry("additionalProperties").or_insert(Value::Bool(false));
        }
    });
}

fn describes_object(fields: &Map<String, Value>) -> bool {
    match fields.get("type") {
        Some(Value::Array(types)) => types.iter().any(|name| name == "object"),
        Some(name) => name == "object",
        None => fields.contains_key("properties") || fields.contains_key("patternProperties"),
    }
}

/// Says of the schemas in a part that they are open, which they are as long as nobody closes them.
fn open_parts(name: &str, part: &mut Value) {
    match part {
        Value::Array(parts) => parts.iter_mut().for_each(|part| open_parts(name, part)),
        Value::Object(named) if name == "dependentSchemas" => {
            named.values_mut().for_each(|part| open_parts("", part));
        }
        Value::Object(fields) if describes_object(fields) => {
            fields.entry("additionalProperties").or_insert(Value::Bool(true));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn closed(mut schema: Value) -> Value {
        close_objects(&mut schema);
        schema
    }

    #[test]
    fn objects_are_closed_at_every_depth_unless_they_say_otherwise() {
        let schema = json!({
            "type": "object",
            "properties": {
                "properties": {"type": ["object", "null"]},
                "list": {"items": {"properties": {}}},
                "free": {"type": "object", "additionalProperties": {"type": "object"}},
                "either": {"anyOf": [{"type": "object"}, {"type": "string"}]},
                "data": {"const": {"type": "object"}},
            },
            "$defs": {"x": {"type": "object"}},
        });
        let expected = json!({
            "type": "object", "additionalProperties": false,
            "properties": {
                "properties": {"type": ["object", "null"], "additionalProperties": false},
                "list": {"items": {"properties": {}, "additionalProperties": false}},
                "free": {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": false}},
                "either": {"anyOf": [{"type": "object", "additionalProperties": false}, {"type": "string"}]},
                "data": {"const": {"type": "object"}},
            },
            "$defs": {"x": {"type": "object", "additionalProperties": false}},
        });
        assert_eq!(closed(schema), expected);
        assert_eq!(closed(json!({})), json!({}));
    }

    #[test]
    fn schemas_that_describe_one_object_together_stay_open() {
        let (a, b) = (json!({"properties": {"a": {}}}), json!({"properties": {"b": {"type": "object"}}}));
        let both = closed(json!({"allOf": [a, b]}));
        assert_eq!(both["allOf"][0]["additionalProperties"], true);
        assert_eq!(both["allOf"][1]["properties"]["b"]["additionalProperties"], false);
        let with_own = closed(json!({"type": "object", "properties": {"a": {}}, "anyOf": [b]}));
        assert_eq!(
            (with_own.get("additionalProperties"), &with_own["anyOf"][0]["additionalProperties"]),
            (None, &json!(true))
        );
        let alone = closed(json!({"allOf": [a]}));
        assert_eq!(alone["allOf"][0]["additionalProperties"], false);
    }
}
