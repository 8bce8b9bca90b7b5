//! The schemas within a JSON schema.

use serde_json::{Map, Value};

/// Shows a schema and all schemas within it, the outer ones first. What is no schema, such as the value of a `const` or
/// the name of a property, is left alone. JSON is not nested deeper than its parser allows.
pub fn for_each_schema(schema: &mut Value, see: &mut impl FnMut(&mut Map<String, Value>)) {
    let fields = match schema {
        Value::Array(schemas) => return schemas.iter_mut().for_each(|schema| for_each_schema(schema, see)),
        Value::Object(fields) => fields,
        _ => return,
    };
    see(fields);
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("const" | "enum" | "default" | "examples", _) => {}
            // The names there are the client's: a property may be called `$ref` or `pattern`.
            (
                "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas",
                Value::Object(named),
            ) => named.values_mut().for_each(|schema| for_each_schema(schema, see)),
            (_, value) => for_each_schema(value, see),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn schemas_are_seen_and_data_is_not() {
        let mut schema = json!({
            "n": 1, "properties": {"properties": {"n": 2, "items": [{"n": 3}]}, "const": {"n": 4}},
            "anyOf": [{"n": 5}, true], "const": {"n": 0}, "enum": [{"n": 0}], "default": {"n": 0},
        });
        let mut seen = Vec::new();
        for_each_schema(&mut schema, &mut |fields| seen.push(fields["n"].as_u64().expect("a number")));
        assert_eq!(seen, [1, 2, 3, 4, 5]);
    }
}
