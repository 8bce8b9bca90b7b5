//! The description of the API agrees with the server.

use firebrick_server::{ApiKeys, ServerConfig};
use serde_json::{Value, json};

use crate::support::{Server, Setup};

fn operations(document: &Value) -> Vec<(String, String)> {
    let paths = document["paths"].as_object().expect("paths");
    let of_path = |(path, item): (&String, &Value)| {
        let methods = item.as_object().expect("methods").keys().filter(|key| *key != "parameters");
        methods.map(|method| (method.to_uppercase(), path.clone())).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of_path).collect()
}

#[tokio::test]
async fn every_described_operation_exists_and_asks_for_the_key_it_says() {
    let config = ServerConfig {
        api_keys: ApiKeys::new(["user"]),
        admin_keys: ApiKeys::new(["root"]),
        log_requests: false,
        ..ServerConfig::default()
    };
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    assert_eq!(server.get("/openapi.json").await.status, 401);
    let document = server.send("GET", "/openapi.json", &[("Authorization", "Bearer user")], b"").await.json();
    assert_eq!((&document["openapi"], &document["servers"]), (&json!("3.1.0"), &json!([{"url": "/"}])));
    let operations = operations(&document);
    assert!(operations.len() >= 20, "{operations:?}");
    for (method, path) in operations {
        let operation = &document["paths"][&path][method.to_lowercase()];
        let public = operation["security"] == json!([]);
        assert!(operation["summary"].as_str().is_some_and(|summary| summary.ends_with('.')), "{path}");
        let path = path.replace("{model}", "tiny");
        let reply = server.send(&method, &path, &[], b"").await;
        assert_eq!(reply.status, if public { 200 } else { 401 }, "{method} {path}");
        let is_admin = operation["security"] == json!([{"adminKey": []}]);
        assert!(is_admin || !path.starts_with("/admin/"), "{path}");
        let key = if is_admin { "Bearer root" } else { "Bearer user" };
        let reply = server.send(&method, &path, &[("Authorization", key)], b"").await;
        // Nothing is sent where a body is asked for, and no response is kept yet.
        let expected = match operation["requestBody"].is_object() {
            true => 400,
            false if path.contains("{response_id}") => 404,
            false => 200,
        };
        assert_eq!(reply.status, expected, "{method} {path}: {}", reply.text());
    }
}

#[tokio::test]
async fn request_schemas_are_those_of_the_parser() {
    let server = Server::start(Setup::default()).await;
    let document = server.get("/openapi.json").await.json();
    let chat = &document["components"]["schemas"]["ChatRequest"];
    for name in ["ChatRequest", "FlatTool", "AnthropicTool"] {
        assert_eq!(document["components"]["schemas"][name]["additionalProperties"], false, "{name}");
    }
    assert_eq!(chat["properties"]["temperature"]["type"], json!(["number", "null"]));
    for (name, schema) in document["components"]["schemas"].as_object().expect("schemas") {
        assert!(schema.is_object(), "{name}");
    }
    let text = document.to_string();
    for (at, _) in text.match_indices("\"$ref\":\"") {
        let target = text[at + 8..].split('"').next().expect("a closed string");
        let pointer = target.strip_prefix('#').expect("a local reference");
        assert!(document.pointer(pointer).is_some(), "{target} is nowhere");
    }
}

#[tokio::test]
async fn the_page_needs_no_key_and_nothing_from_elsewhere() {
    let config = ServerConfig { api_keys: ApiKeys::new(["user"]), log_requests: false, ..ServerConfig::default() };
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    let page = server.get("/docs").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.header("content-security-policy").is_some_and(|policy| policy.starts_with("default-src 'none'")));
    assert!(!page.text().contains("://"), "the page names another host");
}

#[tokio::test]
async fn the_description_can_be_switched_off_and_names_its_root() {
    let config = ServerConfig { docs: false, log_requests: false, ..ServerConfig::default() };
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    assert_eq!((server.get("/docs").await.status, server.get("/openapi.json").await.status), (404, 404));
    let root_path = Some("/llm".to_owned());
    let config = ServerConfig { root_path, log_requests: false, ..ServerConfig::default() };
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    let document = server.get("/llm/openapi.json").await.json();
    assert_eq!(document["servers"][0]["url"], "/llm");
    assert!(document["paths"].get("/admin/requests").is_none(), "routes that do not exist are not described");
}
