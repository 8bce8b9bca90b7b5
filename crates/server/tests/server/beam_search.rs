//! Beam search over the scripted model, whose likeliest tokens are always `a`, `b`, `c` with -0.5, -1.5, -2.5.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Server, Setup, chat, completion, repeats};

fn setup() -> Setup {
    Setup { script: repeats(b'a'), prefix_caching: true, ..Setup::default() }
}

#[tokio::test]
async fn the_likeliest_texts_are_shown_best_first() {
    let server = Server::start(setup()).await;
    let body = completion(json!({"use_beam_search": true, "n": 3, "max_tokens": 2}));
    let body = server.post("/v1/completions", &body).await.json();
    let choices = body["choices"].as_array().expect("choices");
    let texts: Vec<_> = choices.iter().map(|choice| choice["text"].as_str().expect("a text")).collect();
    assert_eq!(texts, ["aa", "ab", "ba"]);
    assert!(choices.iter().all(|choice| choice["finish_reason"] == "length"));
    assert_eq!((&body["usage"]["prompt_tokens"], &body["usage"]["completion_tokens"]), (&json!(4), &json!(6)));
    let body = completion(json!({"use_beam_search": true, "best_of": 4, "max_tokens": 3}));
    let body = server.post("/v1/completions", &body).await.json();
    assert_eq!((body["choices"].as_array().map(Vec::len), &body["choices"][0]["text"]), (Some(1), &json!("aaa")));
    let chatted = chat(json!({"use_beam_search": true, "n": 2, "max_tokens": 2, "length_penalty": 0.5}));
    let body = server.post("/v1/chat/completions", &chatted).await.json();
    assert_eq!(body["choices"][1]["message"]["content"], "ab");
    server.wait_all_free(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn the_limit_of_log_probabilities_is_none_of_beams() {
    let mut setup = setup();
    setup.config.limits.logprobs_max = 1;
    let server = Server::start(setup).await;
    let body = completion(json!({"use_beam_search": true, "n": 10, "max_tokens": 2}));
    let reply = server.post("/v1/completions", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(server.post("/v1/completions", &completion(json!({"logprobs": 2}))).await.status, 400);
}

#[tokio::test]
async fn several_prompts_are_searched_with_their_choices_in_order() {
    let server = Server::start(setup()).await;
    let body = json!({"prompt": ["x", "y"], "use_beam_search": true, "n": 2, "max_tokens": 1, "echo": true});
    let body = server.post("/v1/completions", &body).await.json();
    let texts: Vec<_> = (0..4).map(|index| body["choices"][index]["text"].clone()).collect();
    assert_eq!(texts, ["xa", "xb", "ya", "yb"].map(Value::from));
}

#[tokio::test]
async fn what_beams_cannot_honour_is_refused_by_name() {
    let server = Server::start(setup()).await;
    for (extra, name) in [
        (json!({"stream": true}), "stream"),
        (json!({"logprobs": 1}), "logprobs"),
        (json!({"stop": "x"}), "stop"),
        (json!({"n": 11}), "n"),
        (json!({"best_of": 11}), "best_of"),
        (json!({"n": 3, "best_of": 2}), "best_of"),
        (json!({"length_penalty": 11}), "length_penalty"),
        (json!({"guided_choice": ["a"]}), "guided_choice"),
        (json!({"top_p": 0.5}), "top_p"),
        (json!({"logit_bias": {"5": 1}}), "logit_bias"),
    ] {
        let mut body = completion(json!({"use_beam_search": true, "max_tokens": 2}));
        body.as_object_mut().expect("an object").extend(extra.as_object().cloned().expect("an object"));
        let reply = server.post("/v1/completions", &body).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some(name)), "{extra}");
    }
    let cold = Server::start(Setup { prefix_caching: false, ..setup() }).await;
    let (message, param) = cold.post("/v1/completions", &completion(json!({"use_beam_search": true}))).await.error();
    assert!(param.as_deref() == Some("use_beam_search") && message.contains("prefix cache"), "{message}");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_search() {
    let server = Server::start(Setup { step_ms: 5, ..setup() }).await;
    let body = completion(json!({"use_beam_search": true, "n": 4, "max_tokens": 4000}));
    let stream = server.open_post("/v1/completions", &body).await;
    // Each round's requests end with their step, so that none is seen running; their tokens are counted.
    let tokens = async || server.metric("vllm:generation_tokens_total").await;
    while tokens().await < 20.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(stream);
    server.wait_all_free(Duration::from_secs(5)).await;
    let after = tokens().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(tokens().await, after);
}
