//! The Responses API, as its clients see it.

use std::time::Duration;

use firebrick_server::{ApiKeys, ServerConfig};
use firebrick_text::Dialect;
use serde_json::{Value, json};

use crate::support::{Reply, Server, Setup, repeats, says};

const CALL: &str =
    "<think>Hm.</think>I look.\n<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}</tool_call>";

async fn server(script: &str) -> Server {
    let dialect = Dialect::plain().with_reasoning_parser("qwen3").expect("a known name");
    Server::start(Setup { script: says(script), dialect, ..Setup::default() }).await
}

async fn ask(server: &Server, extra: Value) -> Reply {
    let mut body = json!({"model": "tiny", "input": "Hi", "temperature": 0});
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    server.post("/v1/responses", &body).await
}

fn weather() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    json!([{"type": "function", "name": "weather", "description": "Now.", "parameters": parameters}])
}

fn id_of(response: &Value) -> String {
    response["id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn a_response_has_the_shape_of_the_api() {
    let server = server("Hello").await;
    let body = ask(&server, json!({"instructions": "Be brief.", "metadata": {"a": "b"}})).await.json();
    assert!(id_of(&body).starts_with("resp_"), "{body}");
    let text = json!([{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]);
    let item = &body["output"][0];
    assert_eq!((&item["type"], &item["role"], &item["content"]), (&json!("message"), &json!("assistant"), &text));
    for (name, value) in [
        ("object", json!("response")),
        ("status", json!("completed")),
        ("model", json!("tiny")),
        ("error", Value::Null),
        ("instructions", json!("Be brief.")),
        ("metadata", json!({"a": "b"})),
        ("tools", json!([])),
        ("tool_choice", json!("auto")),
        ("parallel_tool_calls", json!(true)),
        ("store", json!(true)),
        ("incomplete_details", Value::Null),
        ("previous_response_id", Value::Null),
    ] {
        assert_eq!(body.get(name), Some(&value), "{name}");
    }
    let usage = &body["usage"];
    assert_eq!(
        (&usage["output_tokens"], &usage["output_tokens_details"]),
        (&json!(6), &json!({"reasoning_tokens": 0}))
    );
    assert_eq!(usage["total_tokens"].as_u64(), usage["input_tokens"].as_u64().map(|input| input + 6));
}

#[tokio::test]
async fn reasoning_text_and_calls_are_items_in_order() {
    let server = server(CALL).await;
    let body = ask(&server, json!({"tools": weather()})).await.json();
    let output = body["output"].as_array().expect("output");
    let types: Vec<_> = output.iter().map(|item| item["type"].as_str().expect("a type")).collect();
    assert_eq!(types, ["reasoning", "message", "function_call"]);
    assert_eq!(output[0]["content"][0], json!({"type": "reasoning_text", "text": "Hm."}));
    assert_eq!((&output[2]["name"], &output[2]["arguments"]), (&json!("weather"), &json!("{\"city\": \"Rome\"}")));
    assert!(output[2]["call_id"].as_str().is_some_and(|id| id.starts_with("call_")));
    assert!(body["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64().is_some_and(|count| count > 0));
}

#[tokio::test]
async fn reasoning_is_left_out_of_a_response_on_request() {
    let server = server(CALL).await;
    let body = ask(&server, json!({"tools": weather(), "include_reasoning": false})).await.json();
    let types: Vec<_> = body["output"].as_array().expect("output").iter().map(|item| &item["type"]).collect();
    assert_eq!(types, ["message", "function_call"], "{body}");
}

#[tokio::test]
async fn a_stream_tells_every_step() {
    let server = server(CALL).await;
    let events = ask(&server, json!({"tools": weather(), "stream": true})).await.named_events();
    let numbers: Vec<_> = events.iter().map(|event| event["sequence_number"].as_u64().expect("a number")).collect();
    assert!(numbers.iter().copied().eq(0..events.len() as u64), "{numbers:?}");
    let mut types: Vec<_> = events.iter().map(|event| event["type"].as_str().expect("a type")).collect();
    types.dedup();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(types, expected);
    let joined = |kind: &str| -> String {
        events.iter().filter(|event| event["type"] == kind).filter_map(|event| event["delta"].as_str()).collect()
    };
    assert_eq!(joined("response.output_text.delta"), "I look.");
    assert_eq!(joined("response.function_call_arguments.delta"), "{\"city\": \"Rome\"}");
    // What the last event holds is what the others built, and what is kept.
    let done: Vec<_> = events.iter().filter(|event| event["type"] == "response.output_item.done").collect();
    let response = &events.last().expect("events")["response"];
    let output = response["output"].as_array().expect("output");
    assert!(done.iter().map(|event| &event["item"]).eq(output), "{done:?}");
    for event in &events {
        if let (Some(id), Some(index)) = (event["item_id"].as_str(), event["output_index"].as_u64()) {
            assert_eq!(output[index as usize]["id"], id);
        }
    }
    assert_eq!(&server.get(&format!("/v1/responses/{}", id_of(response))).await.json(), response);
}

#[tokio::test]
async fn a_response_that_is_too_long_is_incomplete() {
    let server = server("one two three").await;
    let body = ask(&server, json!({"max_output_tokens": 3})).await.json();
    assert_eq!(
        (&body["status"], &body["incomplete_details"]),
        (&json!("incomplete"), &json!({"reason": "max_output_tokens"}))
    );
    assert_eq!(body["output"][0]["status"], "incomplete");
    let events = ask(&server, json!({"max_output_tokens": 3, "stream": true})).await.named_events();
    assert_eq!(events.last().expect("events")["type"], "response.incomplete");
}

#[tokio::test]
async fn a_forced_call_that_is_cut_off_is_an_incomplete_item() {
    let script = firebrick_engine::Script::Hash { vocab_size: 259 };
    let server = Server::start(Setup { script, ..Setup::default() }).await;
    let tools = json!([{"type": "function", "name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Reykjavik"]}}, "required": ["city"]}}]);
    let named = json!({"type": "function", "name": "weather"});
    let extra = json!({"tools": tools, "tool_choice": named, "max_output_tokens": 12, "seed": 5});
    let body = ask(&server, extra.clone()).await.json();
    let item = &body["output"][0];
    assert_eq!(
        (&body["status"], &item["type"], &item["status"]),
        (&json!("incomplete"), &json!("function_call"), &json!("incomplete"))
    );
    let arguments = item["arguments"].as_str().expect("text");
    assert!(arguments.starts_with('{') && !arguments.contains('}'), "{arguments}");
    let mut stream = extra;
    stream["stream"] = json!(true);
    let events = ask(&server, stream).await.named_events();
    let last = &events.last().expect("events");
    assert_eq!(
        (&last["type"], &last["response"]["output"][0]["arguments"]),
        (&json!("response.incomplete"), &json!(arguments))
    );
    assert_eq!(last["response"]["output"][0]["status"], "incomplete");
    let continued = json!({"input": "Go on.", "previous_response_id": id_of(&body), "max_output_tokens": 5});
    assert_eq!(ask(&server, continued).await.status, 200);
}

#[tokio::test]
async fn responses_are_kept_continued_and_deleted() {
    let server = server("Hello").await;
    let first = ask(&server, json!({"instructions": "Be brief."})).await.json();
    let path = format!("/v1/responses/{}", id_of(&first));
    assert_eq!(server.get(&path).await.json(), first);
    let second = ask(&server, json!({"input": "And?", "previous_response_id": id_of(&first)})).await.json();
    // <|user|> Hi <|assistant|> Hello <|user|> And? <|assistant|>; the instructions are not carried over.
    assert_eq!(second["usage"]["input_tokens"], 1 + 2 + 1 + 5 + 1 + 4 + 1);
    assert_eq!(second["previous_response_id"], json!(id_of(&first)));
    let deleted = server.send("DELETE", &path, &[], b"").await.json();
    assert_eq!(deleted, json!({"id": id_of(&first), "object": "response", "deleted": true}));
    assert_eq!(server.get(&path).await.status, 404);
    let gone = ask(&server, json!({"previous_response_id": id_of(&first)})).await;
    assert_eq!((gone.status, gone.error().1.as_deref()), (404, Some("previous_response_id")));
    let unkept = ask(&server, json!({"store": false})).await.json();
    assert_eq!(server.get(&format!("/v1/responses/{}", id_of(&unkept))).await.status, 404);
}

#[tokio::test]
async fn calls_and_their_results_are_continued() {
    let server = server(CALL).await;
    let first = ask(&server, json!({"tools": weather()})).await.json();
    let call_id = first["output"][2]["call_id"].clone();
    let input = json!([{"type": "function_call_output", "call_id": call_id, "output": "sunny"}]);
    let body = json!({"tools": weather(), "previous_response_id": id_of(&first), "input": input});
    let second = ask(&server, body).await;
    assert_eq!(second.status, 200, "{}", second.text());
    // A client may also send everything back by itself.
    let mut items = vec![json!({"role": "user", "content": "Hi"})];
    items.extend(first["output"].as_array().expect("output").iter().cloned());
    items.push(json!({"type": "function_call_output", "call_id": call_id, "output": "sunny"}));
    let third = ask(&server, json!({"tools": weather(), "input": items})).await;
    assert_eq!(third.json()["usage"]["input_tokens"], second.json()["usage"]["input_tokens"]);
}

#[tokio::test]
async fn background_responses_are_polled_and_cancelled() {
    let server = server("Hello").await;
    let queued = ask(&server, json!({"background": true})).await.json();
    assert_eq!((&queued["status"], &queued["output"]), (&json!("queued"), &json!([])));
    let path = format!("/v1/responses/{}", id_of(&queued));
    let mut body = queued;
    for _ in 0..500 {
        body = server.get(&path).await.json();
        if body["status"] == "completed" {
            break;
        }
        assert_eq!(body["status"], "in_progress");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(body["output"][0]["content"][0]["text"], "Hello");

    let endless = Server::start(Setup { script: repeats(b'x'), step_ms: 5, ..Setup::default() }).await;
    let queued = ask(&endless, json!({"background": true})).await.json();
    let path = format!("/v1/responses/{}", id_of(&queued));
    assert_eq!(endless.post(&format!("{path}/cancel"), &json!({})).await.json()["status"], "cancelled");
    endless.wait_all_free(Duration::from_secs(5)).await;
    assert_eq!(endless.get(&path).await.json()["status"], "cancelled");
    let whole = ask(&server, json!({})).await.json();
    assert_eq!(server.post(&format!("/v1/responses/{}/cancel", id_of(&whole)), &json!({})).await.status, 400);
}

#[tokio::test]
async fn a_schema_or_a_forced_call_is_followed() {
    let script = firebrick_engine::Script::Hash { vocab_size: 259 };
    let server = Server::start(Setup { script, ..Setup::default() }).await;
    let format = json!({"type": "json_schema", "name": "x", "schema": {"enum": ["yes"]}, "strict": true});
    let body = ask(&server, json!({"text": {"format": format}, "temperature": 1})).await.json();
    assert_eq!(body["output"][0]["content"][0]["text"], "\"yes\"");
    assert_eq!(body["text"]["format"]["name"], "x");
    let schema = json!({"type": "object", "properties": {"days": {"enum": [1, 2]}}, "required": ["days"], "additionalProperties": false});
    let tools = json!([{"type": "function", "name": "weather", "parameters": schema}]);
    for choice in [json!("required"), json!({"type": "function", "name": "weather"})] {
        let extra = json!({"tools": tools, "tool_choice": choice, "temperature": 1, "max_output_tokens": 2000, "parallel_tool_calls": false});
        let body = ask(&server, extra).await.json();
        let arguments = body["output"][0]["arguments"].as_str().unwrap_or_else(|| panic!("{body}"));
        let arguments: Value = serde_json::from_str(arguments).expect("JSON");
        assert!(arguments == json!({"days": 1}) || arguments == json!({"days": 2}));
    }
}

#[tokio::test]
async fn a_forced_call_follows_the_references_of_its_tool() {
    let script = firebrick_engine::Script::Hash { vocab_size: 259 };
    let server = Server::start(Setup { script, ..Setup::default() }).await;
    let tool = |definitions: &str| {
        let day = json!({"type": "object", "properties": {"day": {"enum": [1, 2]}}, "required": ["day"], "additionalProperties": false});
        let schema = json!({
            "type": "object", "properties": {"from": {"$ref": format!("#/{definitions}/day")}, "to": {"$ref": "#/properties/from"}},
            "required": ["from", "to"], "additionalProperties": false, definitions: {"day": day},
        });
        json!({"type": "function", "name": definitions, "parameters": schema})
    };
    let tools = json!([tool("definitions"), tool("$defs")].map(|mut tool| {
        tool["name"] = json!(tool["name"].as_str().expect("a name").replace('$', "_"));
        tool
    }));
    let extra = json!({"tools": tools, "tool_choice": "required", "temperature": 1, "max_output_tokens": 2000, "parallel_tool_calls": false});
    let body = ask(&server, extra).await.json();
    let arguments = body["output"][0]["arguments"].as_str().unwrap_or_else(|| panic!("{body}"));
    let arguments: Value = serde_json::from_str(arguments).expect("JSON");
    let is_day = |value: &Value| *value == json!({"day": 1}) || *value == json!({"day": 2});
    assert!(is_day(&arguments["from"]) && is_day(&arguments["to"]), "{arguments}");
    // A tool whose arguments hold its arguments again, and not the list of calls.
    let schema = json!({"type": "object", "properties": {"deeper": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}, "required": ["deeper"], "additionalProperties": false});
    let tools = json!([{"type": "function", "name": "nest", "parameters": schema}]);
    for seed in 0..4 {
        let extra = json!({"tools": tools, "tool_choice": "required", "temperature": 1, "seed": seed, "max_output_tokens": 2000, "parallel_tool_calls": false});
        let body = ask(&server, extra).await.json();
        let arguments = body["output"][0]["arguments"].as_str().unwrap_or_else(|| panic!("{body}"));
        let mut inner: Value = serde_json::from_str(arguments).expect("JSON");
        while !inner.is_null() {
            inner = inner.get("deeper").unwrap_or_else(|| panic!("{arguments}")).clone();
        }
    }
}

#[tokio::test]
async fn unsupported_parameters_are_refused_by_name() {
    let server = server("Hello").await;
    for (extra, param) in [
        (json!({"input": null}), "input"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "input[0].type"),
        (json!({"tools": [{"type": "web_search", "search_context_size": "low"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function", "name": "f", "filters": {}}]}), "tools[0].filters"),
        (json!({"truncation": "always"}), "truncation"),
        (json!({"include": ["message.output_text.logprobs"]}), "include"),
        (json!({"include": ["file_search_call.results"]}), "include"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"max_tool_calls": 2}), "max_tool_calls"),
        (json!({"background": true, "stream": true}), "background"),
        (json!({"background": true, "store": false}), "background"),
        (json!({"text": {"verbosity": "endless"}}), "text"),
        (json!({"text": {"format": {"type": "json_schema"}}}), "text"),
        (json!({"reasoning": {"effort": "immense"}}), "reasoning_effort"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "pmpt_1"}}), "prompt"),
        (json!({"max_output_tokens": 0}), "max_tokens"),
    ] {
        let reply = ask(&server, extra.clone()).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some(param)), "{extra}: {}", reply.text());
    }
}

#[tokio::test]
async fn requests_of_coding_agents_are_taken_as_they_come() {
    let server = server("Hello").await;
    let tool = json!({"type": "function", "name": "shell", "description": "Run.", "strict": false,
                      "parameters": {"type": "object", "properties": {"command": {"type": "string"}}}});
    let text = |kind: &str, text: &str| json!([{"type": kind, "text": text}]);
    let input = json!([
        {"type": "message", "role": "developer", "content": text("input_text", "Ask first.")},
        {"type": "message", "role": "user", "content": text("input_text", "List files.")},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": null, "encrypted_content": "gAAA"},
        {"type": "message", "role": "assistant", "phase": "commentary", "status": "completed", "id": "msg_1",
         "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "shell", "arguments": "{}", "status": "completed"},
        {"type": "function_call_output", "call_id": "call_1", "output": "a.txt"},
        {"type": "function_call_output", "call_id": "call_1", "output": text("input_text", "b.txt")},
    ]);
    let extra = json!({
        "instructions": "Be brief.", "input": input, "tools": [tool], "tool_choice": "auto",
        "parallel_tool_calls": true, "reasoning": {"effort": "medium", "summary": "auto"}, "store": false,
        "stream": true, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "key",
        "text": {"verbosity": "low"}, "truncation": "auto", "safety_identifier": "x", "service_tier": "auto",
        "metadata": {"a": "b"}, "client_metadata": {"c": "d"}, "max_tool_calls": null, "prompt": null,
        "previous_response_id": null, "conversation": null, "background": false, "top_logprobs": 0,
    });
    let reply = ask(&server, extra).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let events = reply.named_events();
    let response = &events.last().expect("events")["response"];
    assert_eq!((&response["status"], &response["text"]["verbosity"]), (&json!("completed"), &json!("low")));
    // What is echoed is what was done.
    assert_eq!((&response["truncation"], &response["service_tier"]), (&json!("disabled"), &json!("default")));
}

#[tokio::test]
async fn a_stream_that_fails_says_so() {
    let server = Server::start(Setup { script: says("Hello"), fail_at: Some(3), ..Setup::default() }).await;
    let events = ask(&server, json!({"stream": true})).await.named_events();
    let last = events.last().expect("events");
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
    assert_eq!(last["response"]["error"]["code"], "server_error");
}

#[tokio::test]
async fn callers_do_not_see_each_others_responses() {
    let config =
        ServerConfig { api_keys: ApiKeys::new(["alpha", "beta"]), log_requests: false, ..ServerConfig::default() };
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    let send = |method, path: String, key, body: Value| {
        let authorization = format!("Bearer {key}");
        let server = &server;
        async move {
            let headers = [("Content-Type", "application/json"), ("Authorization", authorization.as_str())];
            server.send(method, &path, &headers, body.to_string().as_bytes()).await
        }
    };
    let kept = send("POST", "/v1/responses".to_owned(), "alpha", json!({"input": "secret"})).await.json();
    let path = format!("/v1/responses/{}", id_of(&kept));
    assert_eq!(send("GET", path.clone(), "beta", json!({})).await.status, 404);
    assert_eq!(send("DELETE", path.clone(), "beta", json!({})).await.status, 404);
    let continued = json!({"input": "a", "previous_response_id": id_of(&kept)});
    assert_eq!(send("POST", "/v1/responses".to_owned(), "beta", continued).await.status, 404);
    assert_eq!(send("GET", path, "alpha", json!({})).await.status, 200);
}
