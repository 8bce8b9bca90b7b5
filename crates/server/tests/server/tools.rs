//! Tool calls and reasoning on chat completions, as clients see them.

use firebrick_text::Dialect;
use serde_json::{Value, json};

use crate::support::{Reply, Server, Setup, chat, says};

fn weather() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    json!([{"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": parameters}}])
}

const CALL: &str = "I look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";

async fn server(script: &str) -> Server {
    Server::start(Setup { script: says(script), ..Setup::default() }).await
}

/// A server whose model reasons between `<think>` tags.
async fn thinking(script: &str) -> Server {
    let dialect = Dialect::plain().with_reasoning_parser("qwen3").expect("a known name");
    Server::start(Setup { script: says(script), dialect, ..Setup::default() }).await
}

async fn ask(server: &Server, extra: Value) -> Reply {
    server.post("/v1/chat/completions", &chat(extra)).await
}

/// What the deltas of a choice add up to: reasoning, text, and calls as (id, name, arguments).
#[derive(Debug, Default, PartialEq)]
struct Streamed {
    reasoning: String,
    text: String,
    calls: Vec<[String; 3]>,
    finish: String,
}

fn streamed(reply: &Reply) -> Streamed {
    let mut streamed = Streamed::default();
    for event in reply.events() {
        let choice = &event["choices"][0];
        let delta = &choice["delta"];
        assert_eq!(delta["reasoning"], delta["reasoning_content"]);
        streamed.reasoning += delta["reasoning"].as_str().unwrap_or_default();
        streamed.text += delta["content"].as_str().unwrap_or_default();
        streamed.finish += choice["finish_reason"].as_str().unwrap_or_default();
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().expect("an index") as usize;
            if index == streamed.calls.len() {
                assert_eq!(call["type"], "function");
                let text = |value: &Value| value.as_str().expect("text").to_owned();
                streamed.calls.push([text(&call["id"]), text(&call["function"]["name"]), String::new()]);
            }
            streamed.calls[index][2] += call["function"]["arguments"].as_str().expect("a fragment");
        }
    }
    streamed
}

#[tokio::test]
async fn a_tool_call_is_parsed() {
    let server = server(CALL).await;
    let body = ask(&server, json!({"tools": weather()})).await.json();
    let choice = &body["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &json!("I look.")));
    let call = &choice["message"]["tool_calls"][0];
    assert!(call["id"].as_str().is_some_and(|id| id.starts_with("call_")), "{call}");
    assert_eq!(call["type"], "function");
    assert_eq!(call["function"], json!({"name": "weather", "arguments": "{\"city\": \"Rome\"}"}));
}

#[tokio::test]
async fn a_tool_call_is_streamed_in_fragments() {
    let server = server(CALL).await;
    let reply = ask(&server, json!({"tools": weather(), "tool_choice": "auto", "stream": true})).await;
    let result = streamed(&reply);
    assert_eq!((result.text.as_str(), result.finish.as_str()), ("I look.", "tool_calls"));
    let [[id, name, arguments]] = &result.calls[..] else { panic!("{result:?}") };
    assert!(id.starts_with("call_"));
    assert_eq!((name.as_str(), arguments.as_str()), ("weather", "{\"city\": \"Rome\"}"));
    let fragments = reply.events().iter().filter(|event| event["choices"][0]["delta"]["tool_calls"].is_array()).count();
    assert!(fragments > 10, "{fragments} fragments");
}

#[tokio::test]
async fn without_text_the_content_is_null() {
    let server = server("<tool_call>{\"name\": \"weather\", \"arguments\": {}}</tool_call>").await;
    let body = ask(&server, json!({"tools": weather()})).await.json();
    assert_eq!(body["choices"][0]["message"]["content"], Value::Null);
}

#[tokio::test]
async fn a_broken_call_is_text() {
    let text = "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": Rome}}</tool_call>";
    let server = server(text).await;
    let body = ask(&server, json!({"tools": weather()})).await.json();
    let choice = &body["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(text), &json!("stop")));
    assert_eq!(choice["message"].get("tool_calls"), None);
}

#[tokio::test]
async fn without_tools_or_with_the_choice_none_calls_are_text() {
    let server = server(CALL).await;
    for extra in
        [json!({}), json!({"tools": weather(), "tool_choice": "none"}), json!({"tools": [], "tool_choice": "auto"})]
    {
        let body = ask(&server, extra).await.json();
        assert_eq!(body["choices"][0]["message"]["content"], CALL);
        assert_eq!(body["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn parallel_calls_can_be_switched_off() {
    let one = "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}</tool_call>";
    let server = server(&format!("{one}\n{one}")).await;
    for (parallel, num_calls) in [(true, 2), (false, 1)] {
        let extra = json!({"tools": weather(), "parallel_tool_calls": parallel});
        let body = ask(&server, extra.clone()).await.json();
        let calls = body["choices"][0]["message"]["tool_calls"].as_array().cloned().expect("calls");
        assert_eq!(calls.len(), num_calls);
        assert!(calls.len() < 2 || calls[0]["id"] != calls[1]["id"]);
        assert_eq!(body["choices"][0]["finish_reason"], "tool_calls");
        let mut stream = extra;
        stream["stream"] = json!(true);
        assert_eq!(streamed(&ask(&server, stream).await).calls.len(), num_calls);
    }
    server.wait_all_free(std::time::Duration::from_secs(5)).await;
}

#[tokio::test]
async fn tools_calls_and_results_reach_the_prompt() {
    let server = server("Fine.").await;
    let tokens = |extra: Value| {
        let server = &server;
        async move {
            let reply = server.post("/tokenize", &extra).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            let tokens = reply.json()["tokens"].clone();
            server.post("/detokenize", &json!({"tokens": tokens})).await.json()["prompt"].to_string()
        }
    };
    let call = json!({"id": "call_1", "type": "function",
                      "function": {"name": "weather", "arguments": "{\"city\": \"Rome\"}"}});
    let messages = json!([
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]);
    let prompt = tokens(json!({"messages": messages, "tools": weather()})).await;
    for part in ["# Tools", "weather", "Rome?", "<tool_call>", "sunny"] {
        assert!(prompt.contains(part), "{part} is missing in {prompt}");
    }
    let body = json!({"messages": messages, "tools": weather()});
    let answer = server.post("/v1/chat/completions", &body).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "Fine.");
}

/// A model that says anything at all is held to a call by its grammar.
async fn babbling() -> Server {
    let script = firebrick_engine::Script::Hash { vocab_size: 259 };
    let dialect = Dialect::plain().with_reasoning_parser("deepseek_r1").expect("a known name");
    Server::start(Setup { script, dialect, ..Setup::default() }).await
}

fn choose() -> Value {
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "boolean"}},
                        "required": ["city", "days"], "additionalProperties": false});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": schema}});
    json!([tool("weather"), tool("news")])
}

fn assert_chosen(name: &str, arguments: &str) {
    assert!(["weather", "news"].contains(&name), "{name}");
    let arguments: Value = serde_json::from_str(arguments).expect("JSON");
    assert!(arguments["city"] == "Rome" || arguments["city"] == "Oslo", "{arguments}");
    assert!(
        arguments["days"].is_boolean() && arguments.as_object().map(serde_json::Map::len) == Some(2),
        "{arguments}"
    );
}

#[tokio::test]
async fn required_calls_follow_their_schemas_whatever_the_model_says() {
    let server = babbling().await;
    for seed in 0..20 {
        let extra = json!({"tools": choose(), "tool_choice": "required", "parallel_tool_calls": false, "seed": seed,
                           "temperature": 1.5, "max_tokens": 2000});
        let choice = ask(&server, extra.clone()).await.json()["choices"][0].clone();
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["content"]),
            (&json!("tool_calls"), &Value::Null),
            "{choice}"
        );
        let calls = choice["message"]["tool_calls"].as_array().expect("calls");
        assert_eq!(calls.len(), 1, "{calls:?}");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        assert_chosen(&text(&calls[0]["function"]["name"]), &text(&calls[0]["function"]["arguments"]));
        let mut stream = extra;
        stream["stream"] = json!(true);
        let streamed = streamed(&ask(&server, stream).await);
        assert_eq!(streamed.finish, "tool_calls");
        let [[_, name, arguments]] = &streamed.calls[..] else { panic!("{streamed:?}") };
        assert_eq!(
            (name, arguments),
            (&text(&calls[0]["function"]["name"]), &text(&calls[0]["function"]["arguments"]))
        );
    }
}

#[tokio::test]
async fn an_answer_is_of_its_format_or_calls_where_the_model_may_choose() {
    let server = babbling().await;
    let schema = json!({"type": "object", "properties": {"sunny": {"type": "boolean"}}, "required": ["sunny"],
                        "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
    let (mut answers, mut calls) = (0, 0);
    for seed in 0..40 {
        let extra = json!({"tools": choose(), "response_format": format, "seed": seed, "temperature": 1.5,
                           "parallel_tool_calls": seed % 2 == 0, "max_tokens": 2000});
        let mut stream = extra.clone();
        stream["stream"] = json!(true);
        let choice = ask(&server, extra).await.json()["choices"][0].clone();
        let streamed = streamed(&ask(&server, stream).await);
        if streamed.calls.is_empty() {
            let content = choice["message"]["content"].as_str().expect("an answer");
            let answer: Value = serde_json::from_str(content).expect("JSON");
            assert!(
                answer["sunny"].is_boolean() && answer.as_object().map(serde_json::Map::len) == Some(1),
                "{answer}"
            );
            assert_eq!((streamed.text.as_str(), streamed.finish.as_str()), (content, "stop"));
            answers += 1;
        } else {
            assert_eq!((streamed.text.trim(), streamed.finish.as_str()), ("", "tool_calls"));
            assert!(seed % 2 == 0 || streamed.calls.len() == 1, "{streamed:?}");
            assert_eq!(choice["message"]["tool_calls"].as_array().map(Vec::len), Some(streamed.calls.len()));
            streamed.calls.iter().for_each(|[_, name, arguments]| assert_chosen(name, arguments));
            calls += 1;
        }
    }
    assert!(answers > 0 && calls > 0, "{answers} answers, {calls} with calls");
}

#[tokio::test]
async fn a_format_that_leaves_no_room_for_calls_is_refused_beside_tools() {
    let dialect = Dialect::plain().with_tool_parser("mistral").expect("a known name");
    let servers = [server("Fine.").await, Server::start(Setup { dialect, ..Setup::default() }).await];
    for (server, asked) in
        servers.iter().zip([json!({"guided_regex": "[0-9]+"}), json!({"response_format": {"type": "json_object"}})])
    {
        let mut extra = json!({"tools": weather()});
        extra.as_object_mut().expect("an object").extend(asked.as_object().cloned().expect("an object"));
        let reply = ask(server, extra).await;
        let body = reply.json();
        assert_eq!((reply.status, &body["error"]["param"]), (400, &json!("tools")), "{body}");
        assert!(
            body["error"]["message"].as_str().is_some_and(|text| text.contains("leaves no room for calls")),
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_named_tool_is_called() {
    let server = babbling().await;
    let named = json!({"type": "function", "function": {"name": "news"}});
    let extra = json!({"tools": choose(), "tool_choice": named, "temperature": 1, "max_tokens": 2000,
                       "response_format": {"type": "json_object"}});
    let choice = ask(&server, extra).await.json()["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "stop");
    let function = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(function["name"], "news");
    assert_chosen("news", function["arguments"].as_str().expect("text"));
}

#[tokio::test]
async fn a_forced_call_that_is_cut_off_has_a_part_of_its_arguments() {
    let server = babbling().await;
    let named = json!({"type": "function", "function": {"name": "news"}});
    for (choice, max_tokens) in [(named.clone(), 9), (named, 1), (json!("required"), 60), (json!("required"), 8)] {
        let extra = json!({"tools": choose(), "tool_choice": choice, "max_tokens": max_tokens, "seed": 5});
        let whole = ask(&server, extra.clone()).await.json()["choices"][0].clone();
        assert_eq!(whole["finish_reason"], "length", "{whole}");
        let calls: Vec<[String; 2]> = whole["message"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|call| ["name", "arguments"].map(|key| call["function"][key].as_str().expect("text").to_owned()))
            .collect();
        // Eight tokens are too few for the list to reach a name.
        assert_eq!(calls.is_empty(), max_tokens == 8, "{whole}");
        assert_eq!(whole["message"]["content"].as_str().unwrap_or_default(), "", "{whole}");
        assert!(calls.is_empty() || whole["message"]["content"].is_null(), "{whole}");
        let mut stream = extra;
        stream["stream"] = json!(true);
        let streamed = streamed(&ask(&server, stream).await);
        assert_eq!((streamed.text.as_str(), streamed.finish.as_str()), ("", "length"));
        let parts: Vec<[String; 2]> =
            streamed.calls.into_iter().map(|[_, name, arguments]| [name, arguments]).collect();
        assert_eq!(parts, calls);
    }
}

#[tokio::test]
async fn an_answer_that_follows_a_schema_holds_no_reasoning() {
    let server = babbling().await;
    let extra =
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes"]}}}});
    let message = ask(&server, extra).await.json()["choices"][0]["message"].clone();
    assert_eq!(message, json!({"role": "assistant", "content": "\"yes\""}));
}

#[tokio::test]
async fn wrong_tools_are_refused_by_name() {
    let server = server("Fine.").await;
    let tool = |function: Value| json!([{"type": "function", "function": function}]);
    let call = json!([{"id": "1", "type": "function", "function": {"arguments": "{}"}}]);
    for (extra, param) in [
        (json!({"tools": tool(json!({}))}), "tools[0].function.name"),
        (json!({"tools": tool(json!({"name": "a b"}))}), "tools[0].function.name"),
        (json!({"tools": tool(json!({"name": "a", "parameters": 5}))}), "tools[0].function.parameters"),
        (json!({"tools": [{"type": "code_interpreter"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0]"),
        (json!({"tools": tool(json!({"name": "a"})), "tool_choice": "always"}), "tool_choice"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": weather(), "tool_choice": "required", "guided_regex": "a"}), "guided_regex"),
        (json!({"messages": [{"role": "user", "content": "", "tool_calls": call}]}), "messages[0].tool_calls"),
        (json!({"messages": [{"role": "assistant", "tool_calls": call}]}), "messages[0].tool_calls"),
        (json!({"messages": [{"role": "user", "content": "", "tool_call_id": "1"}]}), "messages[0].tool_call_id"),
        (json!({"reasoning_effort": "immense"}), "reasoning_effort"),
    ] {
        let reply = ask(&server, extra.clone()).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some(param)), "{extra}: {}", reply.text());
    }
}

#[tokio::test]
async fn a_server_without_a_parser_refuses_tools() {
    let dialect = Dialect::plain().with_tool_parser("none").expect("a known name");
    let server = Server::start(Setup { dialect, ..Setup::default() }).await;
    let (message, param) = ask(&server, json!({"tools": weather()})).await.error();
    assert!(message.contains("--tool-call-parser"), "{message}");
    assert_eq!(param.as_deref(), Some("tools"));
}

#[tokio::test]
async fn reasoning_is_told_apart_and_counted() {
    let server = thinking("<think>\nHm.\n</think>\n\nYes.").await;
    let body = ask(&server, json!({})).await.json();
    let message = &body["choices"][0]["message"];
    let expected = json!({"role": "assistant", "content": "Yes.", "reasoning": "Hm.", "reasoning_content": "Hm."});
    assert_eq!(message, &expected);
    let reasoning = body["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().expect("a count");
    assert!((12..=20).contains(&reasoning), "{reasoning}");
    let streamed = streamed(&ask(&server, json!({"stream": true})).await);
    assert_eq!((streamed.reasoning.as_str(), streamed.text.as_str()), ("Hm.", "Yes."));
}

#[tokio::test]
async fn reasoning_can_be_left_out() {
    let server = thinking("<think>Hm.</think>Yes.").await;
    let body = ask(&server, json!({"include_reasoning": false})).await.json();
    assert_eq!(body["choices"][0]["message"], json!({"role": "assistant", "content": "Yes."}));
    let streamed = streamed(&ask(&server, json!({"include_reasoning": false, "stream": true})).await);
    assert_eq!((streamed.reasoning.as_str(), streamed.text.as_str()), ("", "Yes."));
}

#[tokio::test]
async fn an_answer_cut_off_while_reasoning_has_only_reasoning() {
    let server = thinking("<think>Hm, let me think about it.").await;
    let choice = ask(&server, json!({"max_tokens": 16})).await.json()["choices"][0].clone();
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(""), &json!("length")));
    assert_eq!(choice["message"]["reasoning"], "Hm, let m");
}

#[tokio::test]
async fn reasoning_and_calls_come_in_one_answer() {
    let server = thinking(&format!("<think>Hm.</think>{CALL}")).await;
    let message = ask(&server, json!({"tools": weather()})).await.json()["choices"][0]["message"].clone();
    assert_eq!((&message["reasoning"], &message["content"]), (&json!("Hm."), &json!("I look.")));
    assert_eq!(message["tool_calls"][0]["function"]["name"], "weather");
}

#[tokio::test]
async fn log_probabilities_and_usage_go_with_calls() {
    let server = server(CALL).await;
    let extra =
        json!({"tools": weather(), "logprobs": true, "stream": true, "stream_options": {"include_usage": true}});
    let reply = ask(&server, extra).await;
    let events = reply.events();
    let tokens = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    let num_tokens = tokens.map(Vec::len).sum::<usize>() as u64;
    let usage = &events[events.len() - 2]["usage"];
    assert_eq!(usage["completion_tokens"].as_u64(), Some(num_tokens));
    assert_eq!(streamed(&reply).calls.len(), 1);
}
