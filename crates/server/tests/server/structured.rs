//! Structured output over the wire: a model that draws at random writes only what matches.

use std::time::Duration;

use firebrick_engine::{SchedulingPolicy, Script};
use firebrick_server::{Limits, ServerConfig};
use serde_json::{Value, json};

use crate::support::{END, Server, Setup, VOCAB, chat, completion, says};

/// A model that knows nothing, on a machine that may be slow.
fn random() -> Setup {
    let limits = Limits { grammar_timeout: Duration::from_secs(30), ..Limits::default() };
    let config = ServerConfig { limits, log_requests: false, ..ServerConfig::default() };
    Setup { script: Script::Hash { vocab_size: VOCAB }, config, ..Setup::default() }
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "kind": {"enum": ["cat", "dog", null]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        },
        "required": ["name", "age", "kind", "tags"], "additionalProperties": false,
    })
}

fn check_person(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let fields = value.as_object().expect("an object");
    assert_eq!(fields.keys().collect::<Vec<_>>(), ["name", "age", "kind", "tags"], "{text}");
    assert!(value["name"].as_str().is_some_and(|name| (1..=8).contains(&name.chars().count())), "{text}");
    assert!(value["age"].as_u64().is_some_and(|age| age <= 120), "{text}");
    assert!([json!("cat"), json!("dog"), Value::Null].contains(&value["kind"]), "{text}");
    let tags = value["tags"].as_array().expect("a list");
    assert!(
        tags.len() <= 2 && tags.iter().all(|tag| tag.as_str().is_some_and(|tag| tag.chars().count() <= 3)),
        "{text}"
    );
}

fn texts(body: &Value) -> Vec<String> {
    let choices = body["choices"].as_array().unwrap_or_else(|| panic!("{body}"));
    let text = |choice: &Value| {
        assert_eq!(choice["finish_reason"], "stop", "{body}");
        choice["message"]["content"].as_str().or(choice["text"].as_str()).expect("a text").to_owned()
    };
    choices.iter().map(text).collect()
}

#[tokio::test]
async fn a_hundred_answers_of_a_schema_parse_and_validate_at_both_endpoints() {
    // So few blocks that sequences are preempted.
    let server = Server::start(Setup { blocks: 60, max_num_seqs: 32, ..random() }).await;
    let format = json!({"type": "json_schema", "json_schema": {"name": "person", "schema": person(), "strict": true}});
    let common = json!({"response_format": format, "temperature": 1.5, "n": 25, "max_tokens": 700});
    let with_seed = |seed: u32| {
        let mut body = common.clone();
        body["seed"] = json!(seed);
        body
    };
    let (chats, completions) = (chat(with_seed(1)), completion(with_seed(2)));
    let (more_chats, more_completions) = (chat(with_seed(3)), completion(with_seed(4)));
    let replies = tokio::join!(
        server.post("/v1/chat/completions", &chats),
        server.post("/v1/completions", &completions),
        server.post("/v1/chat/completions", &more_chats),
        server.post("/v1/completions", &more_completions),
    );
    let replies = [replies.0, replies.1, replies.2, replies.3];
    let texts: Vec<String> = replies.iter().flat_map(|reply| texts(&reply.json())).collect();
    assert_eq!(texts.len(), 100);
    texts.iter().for_each(|text| check_person(text));
    assert!(server.metric("vllm:num_preemptions_total").await > 0.0, "the pool was to be too small");
    let distinct: std::collections::HashSet<&String> = texts.iter().collect();
    assert!(distinct.len() > 95, "the draws differ");
}

#[tokio::test]
async fn streamed_answers_match_too() {
    let server = Server::start(random()).await;
    let extra = json!({"structured_outputs": {"json": person()}, "stream": true, "seed": 5, "temperature": 1.0});
    let streamed = server.post("/v1/chat/completions", &chat(extra.clone())).await;
    check_person(&streamed.streamed_text());
    let mut whole = extra.clone();
    whole["stream"] = json!(false);
    let whole = server.post("/v1/chat/completions", &chat(whole)).await.json();
    assert_eq!(texts(&whole), [streamed.streamed_text()]);
    let mut extra = extra;
    extra["max_tokens"] = json!(500);
    let events = server.post("/v1/completions", &completion(extra)).await.events();
    let text: String = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    check_person(&text);
}

#[tokio::test]
async fn every_kind_of_constraint_is_followed() {
    let server = Server::start(random()).await;
    let ask = async |field: &str, value: Value| {
        let mut extra = json!({"n": 5, "seed": 9, "max_tokens": 600, "temperature": 1.0});
        extra[field] = value;
        texts(&server.post("/v1/completions", &completion(extra)).await.json())
    };
    for (field, value) in [
        ("structured_outputs", json!({"choice": ["red", "green", "deep blue"]})),
        ("guided_choice", json!(["red", "green", "deep blue"])),
    ] {
        let texts = ask(field, value).await;
        assert!(texts.iter().all(|text| ["red", "green", "deep blue"].contains(&text.as_str())), "{texts:?}");
    }
    for (field, value) in
        [("structured_outputs", json!({"regex": "[a-f]{3}-[0-9]+x"})), ("guided_regex", json!("[a-f]{3}-[0-9]+x"))]
    {
        for text in ask(field, value).await {
            let (letters, rest) = text.split_once('-').expect("a dash");
            assert!(letters.len() == 3 && letters.bytes().all(|byte| (b'a'..=b'f').contains(&byte)), "{text}");
            assert!(rest.strip_suffix('x').is_some_and(|digits| digits.parse::<f64>().is_ok()), "{text}");
        }
    }
    let sum = "start: NUMBER (\"+\" NUMBER){2}\nNUMBER: /[0-9]{1,3}/";
    for (field, value) in [("structured_outputs", json!({"grammar": sum})), ("guided_grammar", json!(sum))] {
        for text in ask(field, value).await {
            let numbers: Vec<&str> = text.split('+').collect();
            assert!(numbers.len() == 3 && numbers.iter().all(|number| number.parse::<u16>().is_ok()), "{text}");
        }
    }
    let integers = json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 4});
    for text in ask("guided_json", integers).await {
        assert!(serde_json::from_str::<Vec<u8>>(&text).is_ok(), "{text}");
    }
}

#[tokio::test]
async fn what_cannot_be_compiled_is_refused_with_its_reason_and_others_go_on() {
    let server = Server::start(random()).await;
    let refused = async |extra: Value| {
        let reply = server.post("/v1/chat/completions", &chat(extra)).await;
        assert_eq!(reply.status, 400, "{}", reply.text());
        let (message, param) = reply.error();
        (param.unwrap_or_default(), message)
    };
    let schema = json!({"type": "array", "uniqueItems": true});
    let (param, message) = refused(json!({"guided_json": schema})).await;
    assert!(param == "guided_json" && message.contains("uniqueItems"), "{message}");
    let (param, _) = refused(json!({"structured_outputs": {"regex": "("}})).await;
    assert_eq!(param, "structured_outputs");
    let (param, message) = refused(json!({"guided_grammar": "start: missing"})).await;
    assert!(param == "guided_grammar" && message.contains("missing"), "{message}");
    let mut deep = json!({});
    for _ in 0..80 {
        deep = json!({ "items": deep });
    }
    let (_, message) = refused(json!({ "guided_json": deep })).await;
    assert!(message.contains("nesting"), "{message}");
    let both = json!({"guided_choice": ["a"], "allowed_token_ids": [97]});
    assert_eq!(refused(both).await.0, "allowed_token_ids");
    let reply = server.post("/v1/completions", &completion(json!({"guided_choice": ["fine"]}))).await;
    assert_eq!(texts(&reply.json()), ["fine"]);
}

#[tokio::test]
async fn a_grammar_that_takes_too_long_is_refused_in_time() {
    let mut setup = random();
    setup.config.limits.grammar_timeout = Duration::ZERO;
    let server = Server::start(setup).await;
    // So large that it is not done before anybody looks at the clock.
    let choices: Vec<String> = (0..1000).map(|n| format!("{n:0>200}")).collect();
    let (message, param) = server.post("/v1/completions", &completion(json!({"guided_choice": choices}))).await.error();
    assert!(param.as_deref() == Some("guided_choice") && message.contains("takes longer than"), "{message}");
}

#[tokio::test]
async fn a_grammar_that_becomes_too_complex_on_the_way_is_a_400() {
    let server = Server::start(random()).await;
    // The first token is cheap; after it every rule is open twice.
    let rules: String = (0..1500).map(|n| format!("a{n}: a{} | \"x\" a{n}\n", n + 1)).collect();
    let body =
        completion(json!({"guided_grammar": format!("start: a0\n{rules}a1500: \"x\" \"x\"\n"), "max_tokens": 8}));
    let reply = server.post("/v1/completions", &body).await;
    assert_eq!(reply.status, 400, "{}", reply.text());
    assert!(reply.error().0.contains("too complex"), "{}", reply.text());
    server.wait_all_free(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_model_that_leaves_its_grammar_gets_an_error_and_not_a_wrong_answer() {
    // The script does not look at what is allowed, as a broken sampler would not.
    let server = Server::start(Setup { script: says("12x"), ..random() }).await;
    let reply = server.post("/v1/completions", &completion(json!({"guided_regex": "[0-9]{5}"}))).await;
    assert_eq!(reply.status, 500);
    assert!(reply.error().0.contains("could not be followed"), "{}", reply.text());
    server.wait_all_free(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn allowed_tokens_and_bad_words_change_the_text() {
    let server = Server::start(random()).await;
    let text = async |extra: Value| {
        let mut body = completion(json!({"seed": 3, "max_tokens": 200, "temperature": 1.0}));
        body.as_object_mut().expect("an object").extend(extra.as_object().cloned().expect("an object"));
        server.post("/v1/completions", &body).await.json()["choices"][0]["text"].as_str().expect("a text").to_owned()
    };
    let allowed = json!([97, 98, 99]);
    let free = text(json!({"allowed_token_ids": allowed})).await;
    assert!(free.len() == 200 && free.bytes().all(|byte| (b'a'..=b'c').contains(&byte)), "{free}");
    assert!(free.contains("ab") && free.contains('c'), "{free}");
    let held = text(json!({"allowed_token_ids": allowed, "bad_words": ["ab", "c"]})).await;
    assert!(!held.contains("ab") && !held.contains('c') && held.contains('a') && held.contains('b'), "{held}");
    for (extra, name) in [
        (json!({"allowed_token_ids": []}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [VOCAB]}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [-1]}), "allowed_token_ids"),
        (json!({"bad_words": [" "]}), "bad_words"),
        (json!({"bad_words": ["x".repeat(300)]}), "bad_words"),
        (json!({"bad_words": vec!["x"; 129]}), "bad_words"),
        (json!({"truncate_prompt_tokens": 0}), "truncate_prompt_tokens"),
        (json!({"truncate_prompt_tokens": 1_000_000}), "truncate_prompt_tokens"),
        (json!({"length_penalty": 2.0}), "length_penalty"),
        (json!({"spaces_between_special_tokens": false}), "spaces_between_special_tokens"),
        (json!({"priority": 1}), "priority"),
    ] {
        let reply = server.post("/v1/completions", &completion(extra.clone())).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some(name)), "{extra}");
    }
}

#[tokio::test]
async fn a_truncated_prompt_keeps_its_end() {
    let server = Server::start(Setup { max_model_len: 20, blocks: 64, ..Setup::default() }).await;
    let long = "abcdefghijklmnopqrstuvwxyz";
    let ask = async |extra: Value| {
        let mut body = json!({"prompt": long, "max_tokens": 5, "echo": true});
        body.as_object_mut().expect("an object").extend(extra.as_object().cloned().expect("an object"));
        server.post("/v1/completions", &body).await
    };
    assert_eq!(ask(json!({})).await.status, 400, "the prompt is too long");
    let reply = ask(json!({"truncate_prompt_tokens": 4})).await.json();
    assert_eq!((&reply["choices"][0]["text"], &reply["usage"]["prompt_tokens"]), (&json!("wxyzHello"), &json!(4)));
    let reply = ask(json!({"truncate_prompt_tokens": -1})).await.json();
    assert_eq!(reply["usage"]["prompt_tokens"], 15, "as many as leave room for the answer");
    let tokens: Vec<u32> = long.bytes().map(u32::from).collect();
    let reply = ask(json!({"truncate_prompt_tokens": 2, "prompt": tokens})).await.json();
    assert_eq!(reply["choices"][0]["text"], "yzHello");
}

#[tokio::test]
async fn priority_orders_requests_where_the_server_was_started_so() {
    let policy = SchedulingPolicy::Priority;
    let setup = Setup { max_num_seqs: 1, step_ms: 3, policy, ..Setup::default() };
    let server = Server::start(setup).await;
    let long = server.open_post("/v1/completions", &completion(json!({"logit_bias": {END.to_string(): -100}}))).await;
    server.wait_running(1).await;
    let finished = std::sync::Mutex::new(Vec::new());
    let ask = async |name: &str, priority: i64| {
        let body = completion(json!({"priority": priority}));
        assert_eq!(server.post("/v1/completions", &body).await.status, 200);
        finished.lock().expect("no panic").push(name.to_owned());
    };
    tokio::join!(ask("late", 5), ask("later", 9), ask("first", -1));
    drop(long);
    assert_eq!(*finished.lock().expect("no panic"), ["first", "late", "later"]);
}
