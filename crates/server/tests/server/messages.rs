//! Anthropic's Messages API, as its clients see it.

use firebrick_server::{ApiKeys, ServerConfig};
use firebrick_text::Dialect;
use serde_json::{Value, json};

use crate::support::{Reply, Server, Setup, says};

const CALL: &str =
    "<think>Hm.</think>I look.\n<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}</tool_call>";

async fn server(script: &str) -> Server {
    let dialect = Dialect::plain().with_reasoning_parser("qwen3").expect("a known name");
    Server::start(Setup { script: says(script), dialect, ..Setup::default() }).await
}

async fn ask(server: &Server, extra: Value) -> Reply {
    let mut body = json!({"model": "tiny", "max_tokens": 200, "temperature": 0,
                          "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    server.post("/v1/messages", &body).await
}

fn weather() -> Value {
    json!([{"name": "weather", "description": "Now.", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}])
}

/// The message that a stream adds up to.
fn streamed(reply: &Reply) -> Value {
    let mut message = Value::Null;
    let mut partial = String::new();
    for event in reply.named_events() {
        let index = event["index"].as_u64().unwrap_or_default() as usize;
        match event["type"].as_str().expect("a type") {
            "message_start" => message = event["message"].clone(),
            "content_block_start" => {
                let content = message["content"].as_array_mut().expect("content");
                assert_eq!(content.len(), index, "blocks come in order");
                content.push(event["content_block"].clone());
                partial.clear();
            }
            "content_block_delta" => {
                let (delta, block) = (&event["delta"], &mut message["content"][index]);
                let more = |name: &str| delta[name].as_str().expect("text").to_owned();
                match delta["type"].as_str().expect("a type") {
                    "text_delta" => {
                        block["text"] = json!(block["text"].as_str().expect("text").to_owned() + &more("text"))
                    }
                    "thinking_delta" => {
                        block["thinking"] =
                            json!(block["thinking"].as_str().expect("text").to_owned() + &more("thinking"));
                    }
                    "input_json_delta" => partial += &more("partial_json"),
                    other => panic!("{other}"),
                }
            }
            "content_block_stop" if message["content"][index]["type"] == "tool_use" => {
                message["content"][index]["input"] = serde_json::from_str(&partial).expect("JSON");
            }
            "content_block_stop" | "message_stop" => {}
            "message_delta" => {
                message["stop_reason"] = event["delta"]["stop_reason"].clone();
                message["stop_sequence"] = event["delta"]["stop_sequence"].clone();
                message["usage"] = event["usage"].clone();
            }
            other => panic!("{other}"),
        }
    }
    message
}

/// Without what differs from run to run.
fn normalized(mut message: Value) -> Value {
    message["id"] = json!("ID");
    for block in message["content"].as_array_mut().expect("content") {
        if let Some(id) = block.get_mut("id") {
            assert!(id.as_str().is_some_and(|id| id.starts_with("toolu_")), "{id}");
            *id = json!("ID");
        }
    }
    message
}

#[tokio::test]
async fn a_message_is_answered_whole_and_streamed() {
    let server = server("Hello").await;
    let expected = json!({
        "id": "ID", "type": "message", "role": "assistant", "model": "tiny",
        "content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn", "stop_sequence": null,
        "usage": {"input_tokens": 4, "output_tokens": 6, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0},
    });
    let whole = ask(&server, json!({})).await.json();
    assert!(whole["id"].as_str().is_some_and(|id| id.starts_with("msg_")), "{whole}");
    assert_eq!(normalized(whole), expected);
    assert_eq!(normalized(streamed(&ask(&server, json!({"stream": true})).await)), expected);
}

#[tokio::test]
async fn thinking_and_tools_are_blocks_in_order() {
    let server = server(CALL).await;
    let extra = json!({"tools": weather(), "thinking": {"type": "enabled", "budget_tokens": 1024}});
    let content = json!([
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "ID", "name": "weather", "input": {"city": "Rome"}},
    ]);
    let whole = normalized(ask(&server, extra.clone()).await.json());
    assert_eq!((&whole["content"], &whole["stop_reason"]), (&content, &json!("tool_use")));
    let mut stream = extra;
    stream["stream"] = json!(true);
    let streamed = normalized(streamed(&ask(&server, stream).await));
    assert_eq!((&streamed["content"], &streamed["stop_reason"]), (&content, &json!("tool_use")));
}

#[tokio::test]
async fn thinking_is_left_out_unless_asked_for() {
    let server = server(CALL).await;
    let whole = ask(&server, json!({"tools": weather()})).await.json();
    assert_eq!(whole["content"][0], json!({"type": "text", "text": "I look."}));
}

#[tokio::test]
async fn stops_say_why() {
    let server = server("one two three").await;
    let whole = ask(&server, json!({"stop_sequences": [" t"]})).await.json();
    assert_eq!((&whole["stop_reason"], &whole["stop_sequence"]), (&json!("stop_sequence"), &json!(" t")));
    assert_eq!(whole["content"][0]["text"], "one");
    let whole = ask(&server, json!({"max_tokens": 3})).await.json();
    assert_eq!((&whole["stop_reason"], &whole["content"][0]["text"]), (&json!("max_tokens"), &json!("one")));
}

#[tokio::test]
async fn forced_tools_follow_their_schema() {
    let script = firebrick_engine::Script::Hash { vocab_size: 259 };
    let server = Server::start(Setup { script, ..Setup::default() }).await;
    let schema = json!({"type": "object", "properties": {"days": {"enum": [1, 2]}}, "required": ["days"], "additionalProperties": false});
    let tools = json!([{"name": "weather", "input_schema": schema}]);
    for choice in
        [json!({"type": "any", "disable_parallel_tool_use": true}), json!({"type": "tool", "name": "weather"})]
    {
        let extra = json!({"tools": tools, "tool_choice": choice, "temperature": 1, "max_tokens": 2000});
        let whole = ask(&server, extra).await.json();
        let [block] = &whole["content"].as_array().expect("content")[..] else { panic!("{whole}") };
        assert_eq!((&block["type"], &whole["stop_reason"]), (&json!("tool_use"), &json!("tool_use")));
        assert!(block["input"] == json!({"days": 1}) || block["input"] == json!({"days": 2}), "{block}");
    }
}

#[tokio::test]
async fn a_forced_use_that_is_cut_off_stays_one() {
    let script = firebrick_engine::Script::Hash { vocab_size: 259 };
    let server = Server::start(Setup { script, ..Setup::default() }).await;
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["Reykjavik"]}}, "required": ["city"]});
    let extra = json!({"tools": [{"name": "weather", "input_schema": schema}], "max_tokens": 12,
                       "tool_choice": {"type": "tool", "name": "weather"}});
    let body = ask(&server, extra.clone()).await.json();
    assert_eq!((&body["stop_reason"], &body["content"][0]["type"]), (&json!("max_tokens"), &json!("tool_use")));
    // An input is an object; a part of one cannot be shown whole.
    assert_eq!((&body["content"][0]["input"], body["content"].as_array().map(Vec::len)), (&json!({}), Some(1)));
    let mut stream = extra;
    stream["stream"] = json!(true);
    let events = ask(&server, stream).await.named_events();
    let partial: String = events.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert!(partial.starts_with('{') && !partial.contains('}'), "{partial}");
    assert!(events.iter().all(|event| event["delta"]["type"] != "text_delta"), "{events:?}");
}

#[tokio::test]
async fn tokens_are_counted() {
    let server = server("Hello").await;
    let body = json!({"model": "tiny", "system": "Be brief.", "messages": [{"role": "user", "content": "Hi"}]});
    let counted = server.post("/v1/messages/count_tokens", &body).await.json();
    let mut ask = body;
    ask["max_tokens"] = json!(5);
    let used = server.post("/v1/messages", &ask).await.json()["usage"]["input_tokens"].clone();
    assert_eq!(counted, json!({"input_tokens": used}));
}

#[tokio::test]
async fn errors_have_anthropics_shape() {
    let server = server("Hello").await;
    for (extra, status, kind) in [
        (json!({"max_tokens": null}), 400, "invalid_request_error"),
        (json!({"model": "other"}), 404, "not_found_error"),
        (json!({"messages": [{"role": "robot", "content": "a"}]}), 400, "invalid_request_error"),
        (json!({"no_such_field": 1}), 400, "invalid_request_error"),
        (json!({"max_tokens": 100_000}), 400, "invalid_request_error"),
    ] {
        let reply = ask(&server, extra.clone()).await;
        let body = reply.json();
        assert_eq!(
            (reply.status, &body["type"], &body["error"]["type"]),
            (status, &json!("error"), &json!(kind)),
            "{extra}"
        );
        assert!(body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
    }
}

#[tokio::test]
async fn a_stream_that_fails_ends_with_an_error_event() {
    let server = Server::start(Setup { script: says("Hello"), fail_at: Some(3), ..Setup::default() }).await;
    let events = ask(&server, json!({"stream": true})).await.named_events();
    let last = events.last().expect("events");
    assert_eq!((&last["type"], &last["error"]["type"]), (&json!("error"), &json!("api_error")));
}

#[tokio::test]
async fn the_key_may_come_in_the_header_of_this_api() {
    let config = ServerConfig { api_keys: ApiKeys::new(["alpha"]), log_requests: false, ..ServerConfig::default() };
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    let body = json!({"max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}).to_string();
    let send = |key| {
        let headers = [("Content-Type", "application/json"), ("x-api-key", key), ("anthropic-version", "2023-06-01")];
        let (server, body) = (&server, body.clone());
        async move { server.send("POST", "/v1/messages", &headers, body.as_bytes()).await }
    };
    assert_eq!(send("alpha").await.status, 200);
    let refused = send("beta").await;
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (401, &json!("authentication_error")));
}

#[tokio::test]
async fn requests_of_coding_agents_are_taken_as_they_come() {
    let server = server("Hello").await;
    let cached = json!({"type": "ephemeral", "ttl": "1h"});
    let text = |text: &str| json!({"type": "text", "text": text, "cache_control": cached});
    let tools = json!([
        {"name": "run", "type": "custom", "description": "Run.", "input_schema": {"type": "object"},
         "eager_input_streaming": true, "defer_loading": false, "cache_control": cached},
        {"name": "read", "input_schema": {"type": "object"}},
    ]);
    let messages = json!([
        {"role": "user", "content": [text("List files.")]},
        {"role": "assistant", "content": [
            {"type": "redacted_thinking", "data": "gAAA"}, {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            text("I look."), {"type": "tool_use", "id": "toolu_1", "name": "run", "input": {}, "cache_control": cached}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": true, "content": [text("no shell")]},
            text("Try again.")]},
    ]);
    let common = json!({
        "system": [text("You help."), text("Be brief.")], "messages": messages, "tools": tools,
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": false}, "mcp_servers": [],
        "thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "medium"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    });
    let mut body = common.clone();
    let answered = json!({"model": "tiny", "max_tokens": 200, "temperature": 1, "stop_sequences": ["STOP"],
                          "metadata": {"user_id": "u"}, "service_tier": "auto", "speed": "standard", "stream": true});
    body.as_object_mut().expect("an object").extend(answered.as_object().expect("an object").clone());
    let headers = [
        ("Content-Type", "application/json"),
        ("anthropic-version", "2023-06-01"),
        ("anthropic-beta", "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27"),
    ];
    let send = async |path: &str, body: &Value| server.send("POST", path, &headers, body.to_string().as_bytes()).await;
    let reply = send("/v1/messages?beta=true", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let message = streamed(&reply);
    assert_eq!((&message["content"][0]["text"], &message["stop_reason"]), (&json!("Hello"), &json!("end_turn")));
    let counted = send("/v1/messages/count_tokens?beta=true", &common).await;
    assert_eq!(counted.json()["input_tokens"], message["usage"]["input_tokens"], "{}", counted.text());
    let mut effortless = common;
    effortless["output_config"]["effort"] = json!("immense");
    assert_eq!(send("/v1/messages/count_tokens", &effortless).await.status, 400);
}
