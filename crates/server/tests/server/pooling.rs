//! Vectors of texts, and what is made of them.
//!
//! The scripted model's hidden state of a token `t` is `[1, t / 100, (t / 100)^2, (t / 100)^3]`.

use firebrick_server::Pooling;
use serde_json::{Value, json};

use crate::support::{Server, Setup, chat, completion};

fn state(token: f64) -> Vec<f64> {
    (0..4).map(|power| (token / 100.0).powi(power)).collect()
}

fn unit(vector: &[f64]) -> Vec<f64> {
    let norm = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    vector.iter().map(|value| value / norm).collect()
}

fn numbers(embedding: &Value) -> Vec<f64> {
    embedding.as_array().expect("floats").iter().map(|value| value.as_f64().expect("a number")).collect()
}

fn assert_near(got: &[f64], right: &[f64]) {
    assert_eq!(got.len(), right.len());
    assert!(got.iter().zip(right).all(|(got, right)| (got - right).abs() < 1e-6), "{got:?}, right is {right:?}");
}

#[tokio::test]
async fn texts_and_tokens_become_vectors_in_openai_shape() {
    let server = Server::start(Setup::default()).await;
    let body =
        server.post("/v1/embeddings", &json!({"model": "tiny", "input": ["ab", "c"], "user": "me"})).await.json();
    assert!(body["id"].as_str().is_some_and(|id| id.starts_with("embd-")));
    assert_eq!((&body["object"], &body["model"]), (&json!("list"), &json!("tiny")));
    assert_eq!(body["usage"], json!({"prompt_tokens": 3, "total_tokens": 3}));
    for (index, last) in [(0, 98.0), (1, 99.0)] {
        let data = &body["data"][index];
        assert_eq!((&data["object"], &data["index"]), (&json!("embedding"), &json!(index)));
        assert_near(&numbers(&data["embedding"]), &unit(&state(last)));
    }
    for input in [json!([97, 98]), json!([[97, 98]]), json!("ab")] {
        let again = server.post("/v1/embeddings", &json!({"input": input})).await.json();
        assert_eq!(again["data"][0]["embedding"], body["data"][0]["embedding"]);
    }
    server.wait_all_free(std::time::Duration::from_secs(5)).await;
}

#[tokio::test]
async fn the_pooling_is_the_one_asked_for() {
    let server = Server::start(Setup::default()).await;
    let ask = async |extra: Value| {
        let mut body = json!({"input": "abc", "normalize": false});
        body.as_object_mut().expect("an object").extend(extra.as_object().cloned().expect("an object"));
        numbers(&server.post("/v1/embeddings", &body).await.json()["data"][0]["embedding"])
    };
    assert_near(&ask(json!({})).await, &state(99.0));
    assert_near(&ask(json!({"pooling": "LAST"})).await, &state(99.0));
    assert_near(&ask(json!({"pooling": "cls"})).await, &state(97.0));
    let mean: Vec<f64> =
        (0..4).map(|place| [97.0, 98.0, 99.0].map(|token| state(token)[place]).iter().sum::<f64>() / 3.0).collect();
    assert_near(&ask(json!({"pooling": "mean"})).await, &mean);
    assert_near(&ask(json!({"dimensions": 2})).await, &state(99.0)[..2]);
    assert_near(&ask(json!({"dimensions": 2, "normalize": true})).await, &unit(&state(99.0)[..2]));
    assert_near(&ask(json!({"truncate_prompt_tokens": 2, "pooling": "cls"})).await, &state(98.0));
}

#[tokio::test]
async fn a_model_made_for_vectors_says_how_they_are_pooled() {
    let server = Server::start(Setup { pooling: Pooling::Cls, ..Setup::default() }).await;
    let ask = async |extra: Value| {
        let mut body = json!({"input": "abc", "normalize": false});
        body.as_object_mut().expect("an object").extend(extra.as_object().cloned().expect("an object"));
        numbers(&server.post("/v1/embeddings", &body).await.json()["data"][0]["embedding"])
    };
    assert_near(&ask(json!({})).await, &state(97.0));
    assert_near(&ask(json!({"pooling": "last"})).await, &state(99.0));
    let scores = server.post("/score", &json!({"text_1": "ab", "text_2": "ac"})).await.json();
    assert!(scores["data"][0]["score"].as_f64().is_some_and(|score| score > 0.999_999), "both begin alike: {scores}");
}

#[tokio::test]
async fn base64_holds_the_same_floats() {
    let server = Server::start(Setup::default()).await;
    let body = json!({"input": "d", "encoding_format": "base64", "normalize": false});
    let body = server.post("/v1/embeddings", &body).await.json();
    // [1, 1, 1, 1]: the letter d is token 100.
    assert_eq!(body["data"][0]["embedding"], "AACAPwAAgD8AAIA/AACAPw==");
}

#[tokio::test]
async fn a_prompt_in_several_steps_and_at_the_models_length_has_one_vector() {
    let server = Server::start(Setup::default()).await;
    let body = json!({"input": vec![100; 4096], "pooling": "mean", "normalize": false});
    let body = server.post("/v1/embeddings", &body).await.json();
    assert_near(&numbers(&body["data"][0]["embedding"]), &[1.0; 4]);
    let (message, param) = server.post("/v1/embeddings", &json!({"input": vec![100; 4097]})).await.error();
    assert_eq!(param.as_deref(), Some("input"));
    assert!(message.contains("maximum context length is 4096"), "{message}");
}

#[tokio::test]
async fn scores_are_cosines_of_pairs() {
    let server = Server::start(Setup::default()).await;
    let cosine = |a: f64, b: f64| unit(&state(a)).iter().zip(unit(&state(b))).map(|(a, b)| a * b).sum::<f64>();
    let (a, d, z) = (97.0, 100.0, 122.0);
    for (left, right, scores) in [
        (json!("a"), json!(["d", "z", "a"]), vec![cosine(a, d), cosine(a, z), 1.0]),
        (json!(["a", "d"]), json!(["d", "z"]), vec![cosine(a, d), cosine(d, z)]),
        (json!("a"), json!("z"), vec![cosine(a, z)]),
    ] {
        for path in ["/score", "/v1/score"] {
            let body = server.post(path, &json!({"text_1": left, "text_2": right})).await.json();
            let data = body["data"].as_array().expect("a list");
            let got: Vec<f64> = data.iter().map(|entry| entry["score"].as_f64().expect("a number")).collect();
            assert_near(&got, &scores);
            assert_eq!((&data[0]["object"], &data[0]["index"]), (&json!("score"), &json!(0)));
        }
    }
}

#[tokio::test]
async fn documents_are_put_in_the_order_of_their_nearness() {
    let server = Server::start(Setup::default()).await;
    let body = json!({"query": "a", "documents": ["z", "b", "a"], "top_n": 2});
    let body = server.post("/v1/rerank", &body).await.json();
    let results = body["results"].as_array().expect("a list");
    let order: Vec<_> =
        results.iter().map(|result| (result["index"].as_u64(), result["document"]["text"].as_str())).collect();
    assert_eq!(order, [(Some(2), Some("a")), (Some(1), Some("b"))]);
    assert!((results[0]["relevance_score"].as_f64().expect("a number") - 1.0).abs() < 1e-6);
    assert_eq!(body["usage"]["prompt_tokens"], 4);
    let all = server.post("/rerank", &json!({"query": "a", "documents": ["z", "b"]})).await.json();
    assert_eq!(all["results"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn reranking_has_three_paths() {
    let server = Server::start(Setup::default()).await;
    let body = json!({"query": "a", "documents": ["z", "a"]});
    for path in ["/rerank", "/v1/rerank", "/v2/rerank"] {
        let reply = server.post(path, &body).await;
        assert_eq!(reply.json()["results"][0]["index"], 1, "{path}: {}", reply.text());
    }
}

#[tokio::test]
async fn an_invocation_goes_to_the_endpoint_that_its_body_is_for() {
    let server = Server::start(Setup::default()).await;
    for (body, place, expected) in [
        (chat(json!({})), "/object", json!("chat.completion")),
        (completion(json!({})), "/object", json!("text_completion")),
        (json!({"input": "a"}), "/data/0/object", json!("embedding")),
        (json!({"query": "a", "documents": ["z", "a"]}), "/results/0/index", json!(1)),
        (json!({"text_1": "a", "text_2": "a"}), "/data/0/object", json!("score")),
        (json!({"queries": "a", "documents": "a"}), "/data/0/object", json!("score")),
        (json!({"messages": null, "prompt": "a"}), "/object", json!("text_completion")),
    ] {
        let reply = server.post("/invocations", &body).await;
        assert_eq!(reply.json().pointer(place), Some(&expected), "{body}: {}", reply.text());
    }
    let streamed = server.post("/invocations", &chat(json!({"stream": true}))).await;
    assert_eq!(streamed.streamed_text(), "Hello world");
    let (message, _) = server.post("/invocations", &json!({"texts": ["a"]})).await.error();
    assert!(message.contains("none of messages, prompt"), "{message}");
    // What is wrong is said by the endpoint.
    let reply = server.post("/invocations", &chat(json!({"logprobs": 3}))).await;
    assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some("logprobs")));
    let reply = server.send("POST", "/invocations", &[("Content-Type", "text/plain")], b"{}").await;
    assert_eq!(reply.status, 400);
}
