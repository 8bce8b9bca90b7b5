//! Log-probabilities of prompts: `prompt_logprobs`, and `logprobs` of an echoed prompt.
//!
//! The scripted model says that every token had the log-probability -0.5 and rank 1, and that the next ids came after it.

use serde_json::{Value, json};

use crate::support::{Server, Setup, chat, completion, repeats, says};

/// One position as the scripted model sees it, with `count` likeliest tokens.
fn position(letter: u8, count: u8) -> Value {
    let entries = (0..count.max(1)).map(|rank| {
        let entry = json!({"logprob": -0.5 - f64::from(rank), "rank": rank + 1,
                           "decoded_token": char::from(letter + rank).to_string()});
        ((letter + rank).to_string(), entry)
    });
    Value::Object(entries.collect())
}

#[tokio::test]
async fn prompt_logprobs_have_one_entry_per_token_and_none_for_the_first() {
    let server = Server::start(Setup::default()).await;
    let expected = |count| json!([null, position(b'n', count), position(b'c', count), position(b'e', count)]);
    for count in [0, 1, 3] {
        let body = completion(json!({"prompt_logprobs": count, "max_tokens": 2}));
        let body = server.post("/v1/completions", &body).await.json();
        assert_eq!(body["choices"][0]["prompt_logprobs"], expected(count), "{count}");
        assert_eq!(body["choices"][0]["text"], "He");
        assert_eq!(body["choices"][0]["logprobs"], Value::Null, "those of the text were not asked for");
    }
    let body = server.post("/v1/chat/completions", &chat(json!({"prompt_logprobs": 1}))).await.json();
    let entries = body["prompt_logprobs"].as_array().expect("of the answer, not of a choice");
    // <|user|> H i <|assistant|>
    assert_eq!(entries.len(), 4);
    assert_eq!(entries[0], Value::Null);
    assert_eq!(entries[1], position(b'H', 1));
    assert_eq!(entries[3]["258"]["decoded_token"], "<|assistant|>");
}

#[tokio::test]
async fn an_echoed_prompt_has_logprobs_like_its_text() {
    let server = Server::start(Setup { script: says("!?"), ..Setup::default() }).await;
    let body = completion(json!({"echo": true, "logprobs": 2, "max_tokens": 1}));
    let choice = server.post("/v1/completions", &body).await.json()["choices"][0].clone();
    assert_eq!(choice["text"], "Once!");
    let top = |letter: u8| json!({char::from(letter).to_string(): -0.5, char::from(letter + 1).to_string(): -1.5});
    let expected = json!({
        "text_offset": [0, 1, 2, 3, 4],
        "token_logprobs": [null, -0.5, -0.5, -0.5, -0.5],
        "tokens": ["O", "n", "c", "e", "!"],
        "top_logprobs": [null, top(b'n'), top(b'c'), top(b'e'), top(b'!')],
    });
    assert_eq!(choice["logprobs"], expected);
    assert!(choice.get("prompt_logprobs").is_none(), "it was not asked for by that name");
}

#[tokio::test]
async fn without_tokens_to_generate_the_prompt_is_scored_alone() {
    let server = Server::start(Setup::default()).await;
    let body = json!({"prompt": ["ab", "c"], "echo": true, "logprobs": 1, "max_tokens": 0});
    let body = server.post("/v1/completions", &body).await.json();
    let choices = body["choices"].as_array().expect("choices");
    assert_eq!(choices[0]["text"], "ab");
    assert_eq!(choices[0]["logprobs"]["tokens"], json!(["a", "b"]));
    assert_eq!(choices[1]["logprobs"]["token_logprobs"], json!([null]), "a prompt of one token predicts nothing");
    assert_eq!((&choices[0]["finish_reason"], &body["usage"]["completion_tokens"]), (&json!("length"), &json!(0)));
    let filled = json!({"prompt": vec![65; 4096], "prompt_logprobs": 0, "max_tokens": 0});
    let body = server.post("/v1/completions", &filled).await.json();
    assert_eq!(body["choices"][0]["prompt_logprobs"].as_array().map(Vec::len), Some(4096), "as long as the model");
}

#[tokio::test]
async fn every_choice_shows_its_prompt_also_the_best_of_several() {
    let server = Server::start(Setup { script: repeats(b'x'), ..Setup::default() }).await;
    let body = json!({"prompt": ["ab", "cd"], "n": 2, "best_of": 4, "prompt_logprobs": 0, "max_tokens": 3});
    let body = server.post("/v1/completions", &body).await.json();
    let reports: Vec<_> = (0..4).map(|index| body["choices"][index]["prompt_logprobs"].clone()).collect();
    let expected = |letter| json!([null, position(letter, 0)]);
    assert_eq!(reports, [expected(b'b'), expected(b'b'), expected(b'd'), expected(b'd')]);
}

#[tokio::test]
async fn a_streamed_echo_begins_with_the_prompts_logprobs() {
    let server = Server::start(Setup { script: says("!"), ..Setup::default() }).await;
    let body = json!({"prompt": ["ab", "cde"], "n": 2, "echo": true, "logprobs": 0, "stream": true, "max_tokens": 1});
    let events = server.post("/v1/completions", &body).await.events();
    for (index, text) in ["ab", "ab", "cde", "cde"].into_iter().enumerate() {
        let of_choice: Vec<&Value> =
            events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == index).collect();
        assert_eq!(of_choice[0]["text"], text);
        assert_eq!(of_choice[0]["logprobs"]["tokens"].as_array().map(Vec::len), Some(text.len()));
        assert_eq!(of_choice[0]["logprobs"]["token_logprobs"][0], Value::Null);
        assert_eq!(of_choice[1]["logprobs"]["text_offset"], json!([text.len()]));
    }
    assert_eq!(events.last(), Some(&json!("[DONE]")));
}

#[tokio::test]
async fn a_cached_prompt_is_reported_whole() {
    let server = Server::start(Setup { prefix_caching: true, ..Setup::default() }).await;
    let body = json!({"prompt": "p".repeat(100), "prompt_logprobs": 1, "max_tokens": 1});
    for _ in 0..2 {
        let body = server.post("/v1/completions", &body).await.json();
        assert_eq!(body["choices"][0]["prompt_logprobs"].as_array().map(Vec::len), Some(100));
        assert_eq!(body["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    }
}

#[tokio::test]
async fn the_number_of_log_probabilities_is_limited() {
    let server = Server::start(Setup::default()).await;
    let prompts = vec![vec![65; 4000]; 4];
    let body = json!({"prompt": prompts, "prompt_logprobs": 20, "max_tokens": 1});
    let (message, param) = server.post("/v1/completions", &body).await.error();
    assert_eq!(param.as_deref(), Some("prompt_logprobs"));
    assert!(message.contains("336000") && message.contains("262144"), "{message}");
}
