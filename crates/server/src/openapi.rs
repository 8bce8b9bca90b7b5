//! The OpenAPI description, made from the table of routes and from the types that requests are parsed into, so that it
//! cannot say anything else than the server does.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// What a route does with one method.
#[derive(Clone, Copy)]
pub struct Operation {
    method: &'static str,
    summary: &'static str,
    body: Option<fn(&mut SchemaGenerator) -> Schema>,
    contents: &'static [&'static str],
}

/// A GET that answers JSON.
pub fn shows(summary: &'static str) -> Operation {
    Operation { method: "get", summary, body: None, contents: &["application/json"] }
}

/// A DELETE that answers JSON.
pub fn removes(summary: &'static str) -> Operation {
    Operation { method: "delete", ..shows(summary) }
}

/// A POST without a body that answers JSON.
pub fn acts(summary: &'static str) -> Operation {
    Operation { method: "post", ..shows(summary) }
}

/// A POST that reads a body of this type and answers JSON.
pub fn takes<T: JsonSchema>(summary: &'static str) -> Operation {
    Operation { body: Some(|generator| generator.subschema_for::<T>()), ..acts(summary) }
}

impl Operation {
    /// It answers in one of these content types.
    pub fn answers(self, contents: &'static [&'static str]) -> Self {
        Self { contents, ..self }
    }
}

/// One path of the description.
pub struct Described {
    /// As the router writes it.
    pub path: &'static str,
    /// The security scheme that it asks for.
    pub security: Option<&'static str>,
    /// What it does with which methods.
    pub operations: Vec<Operation>,
}

/// The whole description, as OpenAPI 3.1. `root` is where the paths begin.
pub fn document(paths: impl IntoIterator<Item = Described>, version: &str, root: &str) -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let mut items = Map::new();
    for described in paths {
        let (path, parameter) = without_wildcard(described.path);
        let mut item = Map::new();
        if let Some(name) = parameter {
            let parameter = json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}});
            item.insert("parameters".to_owned(), json!([parameter]));
        }
        for operation in &described.operations {
            item.insert(operation.method.to_owned(), one(operation, &path, described.security, &mut generator));
        }
        items.insert(path, Value::Object(item));
    }
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Firebrick", "version": version, "description": DESCRIPTION},
        "servers": [{"url": root}],
        "paths": items,
        "components": {"schemas": schemas, "securitySchemes": {
            "apiKey": {"type": "http", "scheme": "bearer", "description": "A key of --api-key, where there is one."},
            "adminKey": {"type": "http", "scheme": "bearer", "description": "A key of --admin-key."},
        }},
    })
}

const DESCRIPTION: &str = "The OpenAI API, as vLLM extends it. Unknown fields are refused by name.";

/// `/v1/models/{*model}` is `/v1/models/{model}` with the parameter `model`.
fn without_wildcard(path: &str) -> (String, Option<&str>) {
    let parameter = path.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(name, _)| name);
    (path.replace("{*", "{"), parameter.map(|name| name.trim_start_matches('*')))
}

fn one(operation: &Operation, path: &str, security: Option<&str>, generator: &mut SchemaGenerator) -> Value {
    let name: String = path.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let contents: Map<String, Value> =
        operation.contents.iter().map(|content| ((*content).to_owned(), json!({}))).collect();
    let error = |description: &str| json!({"description": description, "content": {"application/json": {}}});
    let mut item = json!({
        "operationId": format!("{}{name}", operation.method),
        "summary": operation.summary,
        "responses": {
            "200": {"description": "The answer.", "content": contents},
            "4XX": error("The request is at fault; the message says how."),
            "5XX": error("The server is loading, busy, shutting down, or has failed."),
        },
        "security": security.map_or(json!([]), |scheme| json!([{scheme: []}])),
    });
    if let Some(body) = operation.body {
        let schema = body(generator);
        item["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    item
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its schema is looked at")]
    struct Body {
        /// How many.
        count: Option<i64>,
    }

    #[test]
    fn operations_become_paths_with_schemas_and_keys() {
        let operations = vec![takes::<Body>("Count.")];
        let described = Described { path: "/count/{*what}", security: Some("apiKey"), operations };
        let document = document([described], "1", "/");
        let post = &document["paths"]["/count/{what}"]["post"];
        assert_eq!(post["security"], json!([{"apiKey": []}]));
        assert_eq!(document["paths"]["/count/{what}"]["parameters"][0]["name"], "what");
        let schema = &post["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(schema["$ref"], "#/components/schemas/Body");
        let body = &document["components"]["schemas"]["Body"];
        assert_eq!(
            (&body["additionalProperties"], &body["properties"]["count"]["description"]),
            (&json!(false), &json!("How many."))
        );
    }
}
