//! What answers report about tokens: their numbers, their exact bytes, and which of several choices are shown.

use firebrick_engine::Script;
use serde_json::{Value, json};

use crate::support::{END, Server, Setup, VOCAB, chat, completion, says};

#[tokio::test]
async fn token_ids_are_reported_on_request_whole_and_streamed() {
    let server = Server::start(Setup { script: says("Hé"), ..Setup::default() }).await;
    let generated = json!([72, 195, 169, END]);
    let asked = json!({"return_token_ids": true});
    let body = server.post("/v1/chat/completions", &chat(asked.clone())).await.json();
    assert_eq!(
        (&body["prompt_token_ids"], &body["choices"][0]["token_ids"]),
        (&json!([257, 72, 105, 258]), &generated)
    );
    let body = server.post("/v1/completions", &completion(asked)).await.json();
    let choice = &body["choices"][0];
    assert_eq!((&choice["prompt_token_ids"], &choice["token_ids"]), (&json!([79, 110, 99, 101]), &generated));
    let plain = server.post("/v1/completions", &completion(json!({}))).await.json();
    assert!(plain["choices"][0].get("token_ids").is_none() && plain["choices"][0].get("prompt_token_ids").is_none());

    let asked = json!({"return_token_ids": true, "stream": true});
    let events = server.post("/v1/chat/completions", &chat(asked.clone())).await.events();
    assert_eq!(events[0]["prompt_token_ids"], json!([257, 72, 105, 258]));
    let ids = |events: &[Value]| -> Vec<Value> {
        events.iter().filter_map(|event| event["choices"][0]["token_ids"].as_array()).flatten().cloned().collect()
    };
    assert_eq!(json!(ids(&events)), generated);
    let events = server.post("/v1/completions", &completion(asked)).await.events();
    assert_eq!(json!(ids(&events)), generated);
    let prompts: Vec<_> = events.iter().filter_map(|event| event["choices"][0].get("prompt_token_ids")).collect();
    assert_eq!(prompts, [&json!([79, 110, 99, 101])]);
}

#[tokio::test]
async fn log_probabilities_show_exact_bytes_or_numbers() {
    let server = Server::start(Setup { script: says("Hé"), ..Setup::default() }).await;
    let asked = json!({"logprobs": true, "top_logprobs": 1});
    let body = server.post("/v1/chat/completions", &chat(asked)).await.json();
    let tokens = body["choices"][0]["logprobs"]["content"].as_array().expect("tokens").clone();
    let bytes: Vec<&Value> = tokens[..3].iter().map(|token| &token["bytes"]).collect();
    assert_eq!(bytes, [&json!([72]), &json!([195]), &json!([169])]);
    assert_eq!(tokens[0]["token"], "H");
    assert_eq!(tokens[2]["top_logprobs"][0]["bytes"], json!([169]));

    let asked = json!({"logprobs": true, "top_logprobs": 1, "return_tokens_as_token_ids": true});
    let body = server.post("/v1/chat/completions", &chat(asked)).await.json();
    let token = &body["choices"][0]["logprobs"]["content"][1];
    assert_eq!((&token["token"], &token["top_logprobs"][0]["token"]), (&json!("token_id:195"), &json!("token_id:195")));
    let asked = json!({"logprobs": 1, "return_tokens_as_token_ids": true});
    let body = server.post("/v1/completions", &completion(asked)).await.json();
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["token_id:72", "token_id:195", "token_id:169", format!("token_id:{END}")]));
    assert!(logprobs["top_logprobs"][0].get("token_id:72").is_some());
}

#[tokio::test]
async fn best_of_generates_more_than_it_shows() {
    let server = Server::start(Setup { script: Script::Hash { vocab_size: VOCAB }, ..Setup::default() }).await;
    let body = json!({"prompt": ["ab", "cde"], "n": 2, "best_of": 5, "max_tokens": 7, "echo": true, "seed": 1,
                      "ignore_eos": true, "return_token_ids": true});
    let body = server.post("/v1/completions", &body).await.json();
    let choices = body["choices"].as_array().expect("choices");
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64()).collect::<Vec<_>>(), [0, 1, 2, 3].map(Some));
    for (choice, prompt) in choices.iter().zip(["ab", "ab", "cde", "cde"]) {
        assert!(choice["text"].as_str().is_some_and(|text| text.starts_with(prompt)), "{body}");
        assert_eq!(choice["prompt_token_ids"].as_array().map(Vec::len), Some(prompt.len()));
        assert_eq!(choice["logprobs"], Value::Null, "log-probabilities were not asked for");
    }
    assert_eq!(body["usage"]["completion_tokens"], 2 * 5 * 7);
    assert_eq!(body["usage"]["prompt_tokens"], 5);
}
