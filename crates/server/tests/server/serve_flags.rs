//! What an operator decides for all requests: how streams are cut, usage, template variables, and the queue in tokens.

use std::time::Duration;

use firebrick_server::{Limits, ServerConfig};
use firebrick_text::{ChatTemplate, SpecialTokens};
use serde_json::{Map, Value, json};

use crate::support::{Server, Setup, chat, completion, repeats, says};

fn texts(events: &[Value]) -> Vec<&str> {
    let choices = events.iter().filter_map(|event| event["choices"].get(0));
    choices.map(|choice| choice["text"].as_str().expect("a text")).collect()
}

#[tokio::test]
async fn chunks_hold_as_many_tokens_as_the_larger_interval_says() {
    for (of_server, of_request, expected) in [
        (1, json!({}), vec!["a", "b", "c", "d", "e", "f", "g", "h", "", ""]),
        (3, json!({}), vec!["a", "bcd", "efg", "h"]),
        (3, json!({"stream_interval": 2}), vec!["a", "bcd", "efg", "h"]),
        (3, json!({"stream_interval": 5}), vec!["a", "bcdef", "gh"]),
        (1, json!({"stream_interval": 100}), vec!["a", "bcdefgh"]),
    ] {
        let config = ServerConfig { stream_interval: of_server, log_requests: false, ..ServerConfig::default() };
        let server = Server::start(Setup { script: says("abcdefgh"), config, ..Setup::default() }).await;
        let mut body = completion(json!({"stream": true, "return_token_ids": true, "logprobs": 1, "max_tokens": 40}));
        body.as_object_mut().expect("an object").extend(of_request.as_object().expect("an object").clone());
        let events = server.post("/v1/completions", &body).await.events();
        let events = &events[..events.len() - 1];
        assert_eq!(texts(events), expected, "{of_server} {of_request}");
        for choice in events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["token_ids"].is_array()) {
            assert_eq!(
                choice["token_ids"].as_array().map(Vec::len),
                choice["logprobs"]["tokens"].as_array().map(Vec::len)
            );
        }
        assert_eq!(events.last().expect("events")["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn an_interval_below_one_is_refused() {
    let server = Server::start(Setup::default()).await;
    for interval in [0, -1] {
        let reply = server.post("/v1/completions", &completion(json!({"stream_interval": interval}))).await;
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("stream_interval")));
    }
}

#[tokio::test]
async fn forced_usage_is_in_every_chunk_of_a_stream_that_did_not_ask() {
    let config = ServerConfig { force_usage: true, log_requests: false, ..ServerConfig::default() };
    let server = Server::start(Setup { script: says("ab"), step_ms: 5, config, ..Setup::default() }).await;
    for (path, body) in [
        ("/v1/chat/completions", chat(json!({"stream": true}))),
        ("/v1/completions", completion(json!({"stream": true}))),
    ] {
        let events = server.post(path, &body).await.events();
        let (last, others) = events[..events.len() - 1].split_last().expect("chunks");
        assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(3)), "{path}");
        assert!(others.iter().all(|event| event["usage"]["prompt_tokens"] == 4), "{path}: {others:?}");
    }
}

#[tokio::test]
async fn template_variables_of_the_server_yield_to_those_of_the_request() {
    const TEMPLATE: &str = "{{ mood }} {{ pace }}{% for message in messages %}{{ message.content }}{% endfor %}";
    let template_defaults = Map::from_iter([("mood".to_owned(), json!("calm")), ("pace".to_owned(), json!("slow"))]);
    let setup = Setup { template_defaults, ..Setup::default() };
    let server = Server::start_loading(&setup).await;
    let mut model = setup.model(&["tiny"], server.engine.clone());
    model.chat_template = Some(ChatTemplate::new(TEMPLATE, SpecialTokens::default()).expect("a valid template"));
    server.state.set_model(model);
    for (kwargs, expected) in [(json!({}), "calm slowHi"), (json!({"mood": "wild"}), "wild slowHi")] {
        let body = json!({"messages": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": kwargs});
        let tokens = server.post("/tokenize", &body).await.json()["tokens"].clone();
        let prompt = server.post("/detokenize", &json!({"tokens": tokens})).await.json()["prompt"].clone();
        assert_eq!(prompt, expected);
        let length = server.post("/v1/chat/completions", &body).await.json()["usage"]["prompt_tokens"].clone();
        assert_eq!(length, expected.len(), "chats have the same prompt");
    }
}

#[tokio::test]
async fn requests_are_refused_while_the_queued_prompts_have_too_many_tokens() {
    let limits = Limits { queued_tokens_max: Some(6), ..Limits::default() };
    let config = ServerConfig { limits, log_requests: false, ..ServerConfig::default() };
    let setup = Setup { script: repeats(b'x'), max_num_seqs: 1, step_ms: 2, config, ..Setup::default() };
    let server = Server::start(setup).await;
    let until = async |what: &str, holds: &dyn Fn() -> bool| {
        for _ in 0..5000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("in vain: {what}");
    };
    let running = server.open_post("/v1/completions", &completion(json!({"max_tokens": 4000}))).await;
    let begun = || server.engine.snapshot().num_running == 1 && server.engine.queued_tokens() == 0;
    until("the first request's answer begins", &begun).await;
    // Four tokens each: the second one finds fewer than six, the third one more.
    let short = completion(json!({"max_tokens": 1}));
    let queued = futures::future::join_all((0..2).map(|_| server.post("/v1/completions", &short)));
    let refused = async {
        until("two prompts wait", &|| server.engine.queued_tokens() == 8).await;
        let refused = server.post("/v1/completions", &short).await;
        drop(running);
        refused
    };
    let (answers, refused) = futures::join!(queued, refused);
    let message = refused.json()["error"]["message"].to_string();
    assert!(refused.status == 503 && message.contains("have 8 tokens"), "{} {message}", refused.status);
    assert!(answers.iter().all(|answer| answer.status == 200), "those before it are answered");
    assert_eq!(server.engine.queued_tokens(), 0);
    assert_eq!(server.post("/v1/completions", &short).await.status, 200, "and then there is room again");
}
