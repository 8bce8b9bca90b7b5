//! What is written to the log, and what never is.

use std::io::Write;
use std::sync::{Arc, Mutex};

use firebrick_server::{ApiKeys, ServerConfig};
use serde_json::json;

use crate::support::{Server, Setup, chat};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn requests_are_logged_in_numbers_and_their_texts_never() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let config = ServerConfig { api_keys: ApiKeys::new(["key-to-hide"]), ..ServerConfig::default() };
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    let headers = [
        ("Content-Type", "application/json"),
        ("Authorization", "Bearer key-to-hide"),
        ("X-Request-Id", "client-chosen-name"),
    ];
    for extra in [json!({"stop": "stop-to-hide"}), json!({"stream": true}), json!({"temperature": "wrong-to-hide"})] {
        let mut body = chat(extra);
        body["messages"][0]["content"] = json!("prompt-to-hide\n[fake] log line");
        server.send("POST", "/v1/chat/completions", &headers, body.to_string().as_bytes()).await;
    }
    server.send("POST", "/v1/path%0a[fake]", &headers, b"{}").await;
    drop(guard);
    let text = String::from_utf8(log.0.lock().expect("not poisoned").clone()).expect("UTF-8");
    for secret in ["to-hide", "Hello world", "client-chosen-name", "\n[fake]"] {
        assert!(!text.contains(secret), "{secret} is in the log:\n{text}");
    }
    let ours: Vec<_> = text.lines().filter(|line| line.contains("firebrick_server")).collect();
    let has = |part: &str, times: usize| {
        let found = ours.iter().filter(|line| line.contains(part)).count();
        assert_eq!(found, times, "{part}:\n{text}");
    };
    has("] POST /v1/chat/completions", 3);
    has("Processing chat completion request: Prompt length: 32 tokens, Max tokens: 4064", 2);
    has("Generation completed: Inference time: ", 2);
    has("Generated tokens: 12, Throughput: ", 2);
    has(" - Status: 200", 2);
    has(" - Status: 400", 1);
    has(" - Status: 404", 1);
}
