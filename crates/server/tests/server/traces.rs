//! Traces of requests, sent to a collector that may be gone.

use std::time::{Duration, Instant};

use firebrick_server::{ServerConfig, TraceConfig, drain};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::support::{Server, Setup, chat, completion, repeats};

fn traced(endpoint: String) -> ServerConfig {
    let headers = vec![("x-collector-key".to_owned(), "abc".to_owned())];
    let traces = TraceConfig { endpoint, headers, service_name: "test".to_owned() };
    ServerConfig { traces: Some(traces), log_requests: false, ..ServerConfig::default() }
}

/// A collector that hands on the head and the body of what it is sent.
async fn collector() -> (String, mpsc::UnboundedReceiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                let (head, length) = loop {
                    if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                        return;
                    }
                    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
                    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                    break (head, end + 4 + length.unwrap_or(0_usize));
                };
                while bytes.len() < length && stream.read_buf(&mut bytes).await.unwrap_or(0) > 0 {}
                let start = head.len() + 4;
                let body = serde_json::from_slice(&bytes[start..]).expect("JSON");
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}").await;
                let _ = sender.send((head, body));
            });
        }
    });
    (url, receiver)
}

fn spans(body: &Value) -> Vec<Value> {
    body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("spans").clone()
}

fn attribute(span: &Value, key: &str) -> Value {
    let attributes = span["attributes"].as_array().expect("attributes");
    let found = attributes.iter().find(|attribute| attribute["key"] == key);
    let value = &found.unwrap_or_else(|| panic!("no {key} in {span}"))["value"];
    value.as_object().expect("one value").values().next().expect("one value").clone()
}

fn nanoseconds(span: &Value, key: &str) -> u128 {
    span[key].as_str().and_then(|text| text.parse().ok()).expect("nanoseconds in a string")
}

#[tokio::test]
async fn a_request_becomes_spans_of_the_engines_phases() {
    let (url, mut received) = collector().await;
    let server = Server::start(Setup { config: traced(url), step_ms: 5, ..Setup::default() }).await;
    let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let parent = format!("00-{trace}-{span}-01");
    let headers = [("Content-Type", "application/json"), ("traceparent", parent.as_str())];
    let body = chat(json!({"n": 2, "temperature": 0.5})).to_string();
    let reply = server.send("POST", "/v1/chat/completions", &headers, body.as_bytes()).await;
    assert_eq!(reply.status, 200);
    let (head, body) = received.recv().await.expect("a message");
    assert!(head.starts_with("post /v1/traces ") && head.contains("x-collector-key: abc"), "{head}");
    let service = &body["resourceSpans"][0]["resource"]["attributes"][0];
    assert_eq!(service, &json!({"key": "service.name", "value": {"stringValue": "test"}}));
    let spans = spans(&body);
    let names: Vec<&str> = spans.iter().filter_map(|span| span["name"].as_str()).collect();
    assert_eq!(names, ["llm_request", "queue", "prefill", "decode"]);
    let root = &spans[0];
    assert_eq!((&root["traceId"], &root["parentSpanId"]), (&json!(trace), &json!(span)));
    assert_eq!((&root["kind"], &root["status"]["code"]), (&json!(2), &json!(1)));
    let id = reply.json()["id"].as_str().and_then(|id| id.strip_prefix("chatcmpl-")).map(str::to_owned);
    assert_eq!(attribute(root, "gen_ai.request.id").as_str().map(str::to_owned), id);
    for (key, value) in [
        ("gen_ai.request.n", json!("2")),
        ("gen_ai.usage.num_sequences", json!("2")),
        ("gen_ai.usage.completion_tokens", json!("24")),
        ("gen_ai.request.temperature", json!(0.5)),
        ("gen_ai.response.model", json!("tiny")),
    ] {
        assert_eq!(attribute(root, key), value, "{key}");
    }
    let mut at = nanoseconds(root, "startTimeUnixNano");
    for span in &spans[1..] {
        assert_eq!((&span["parentSpanId"], &span["traceId"]), (&root["spanId"], &json!(trace)));
        assert_eq!(nanoseconds(span, "startTimeUnixNano"), at, "phases follow each other");
        at = nanoseconds(span, "endTimeUnixNano");
    }
    assert_eq!(nanoseconds(root, "endTimeUnixNano"), at);
    let decode = attribute(root, "gen_ai.latency.time_in_model_decode").as_f64().expect("seconds");
    assert!((0.05..10.0).contains(&decode), "{decode}: eleven steps of 5 ms");
}

#[tokio::test]
async fn who_is_not_sampled_is_not_sent_and_a_drain_sends_the_rest() {
    let (url, mut received) = collector().await;
    let server = Server::start(Setup { config: traced(url), ..Setup::default() }).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let headers = [("Content-Type", "application/json"), ("traceparent", parent)];
    server.send("POST", "/v1/completions", &headers, completion(json!({})).to_string().as_bytes()).await;
    server.post("/v1/completions", &completion(json!({}))).await;
    assert!(drain(&server.state, Duration::from_secs(5)).await);
    let (_, body) = received.recv().await.expect("a message");
    let roots = spans(&body).into_iter().filter(|span| span["name"] == "llm_request");
    assert_eq!(roots.filter(|root| root["parentSpanId"].is_null()).count(), 1);
    assert!(received.try_recv().is_err(), "one message is all");
}

#[tokio::test]
async fn a_collector_that_hangs_slows_no_request_and_is_counted() {
    // Accepts connections and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let server = Server::start(Setup { config: traced(url), script: repeats(b'x'), ..Setup::default() }).await;
    let begun = Instant::now();
    for _ in 0..50 {
        let reply = server.post("/v1/completions", &completion(json!({"max_tokens": 2}))).await;
        assert_eq!(reply.status, 200);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let gone = Server::start(Setup { config: traced("http://127.0.0.1:9".to_owned()), ..Setup::default() }).await;
    gone.post("/v1/completions", &completion(json!({}))).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while gone.metric("firebrick:traces_dropped_total").await < 1.0 {
        assert!(Instant::now() < deadline, "never counted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
