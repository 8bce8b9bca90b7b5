//! Who watches the engine over a real socket sees what it does, and never holds it up.

use std::collections::BTreeMap;
use std::time::Duration;

use firebrick_engine::Script;
use firebrick_server::{ApiKeys, CorsConfig, ServerConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::support::{END, Server, Setup, repeats};

fn watched(trace: bool) -> ServerConfig {
    ServerConfig {
        api_keys: ApiKeys::new(["user"]),
        admin_keys: ApiKeys::new(["root"]),
        trace,
        log_requests: false,
        ..ServerConfig::default()
    }
}

/// A reader of an event stream.
struct Watcher(BufReader<TcpStream>);

impl Watcher {
    /// Asks as HTTP/1.0, so that the events come as they are, without chunks around them.
    async fn start(server: &Server, path: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).await.expect("the server listens");
        let head = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer root\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("the head is taken");
        let mut watcher = Self(BufReader::new(stream));
        assert!(watcher.line().await.contains(" 200 "));
        while !watcher.line().await.is_empty() {}
        watcher
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = tokio::time::timeout(Duration::from_secs(20), self.0.read_line(&mut line)).await;
        read.expect("a line within 20 s").expect("the connection holds");
        line.trim_end().to_owned()
    }

    /// Name and content of the next event; steps have no name.
    async fn event(&mut self) -> (String, Value) {
        let mut name = String::new();
        loop {
            let line = self.line().await;
            if let Some(found) = line.strip_prefix("event: ") {
                name = found.to_owned();
            } else {
                let content = line.strip_prefix("data: ").unwrap_or_else(|| panic!("{line}"));
                let content = serde_json::from_str(content).expect("JSON");
                assert_eq!(self.line().await, "");
                return (name, content);
            }
        }
    }

    async fn step(&mut self) -> Value {
        let (name, step) = self.event().await;
        assert_eq!(name, "", "{step}");
        step
    }
}

fn steps_of(step: &Value) -> u64 {
    step["engine"]["stats"]["steps"].as_u64().expect("a counter")
}

async fn complete(server: &Server, body: Value) -> u16 {
    let headers = [("Content-Type", "application/json"), ("Authorization", "Bearer user")];
    server.send("POST", "/v1/completions", &headers, body.to_string().as_bytes()).await.status
}

#[tokio::test]
async fn the_engine_is_shown_only_where_it_was_asked_for_and_to_admins() {
    let root = [("Authorization", "Bearer root")];
    for config in [watched(false), ServerConfig { admin_keys: ApiKeys::new([""]), ..watched(true) }] {
        let server = Server::start(Setup { config, ..Setup::default() }).await;
        for path in ["/v1/trace", "/v1/trace/blocks/0"] {
            assert_eq!(server.send("GET", path, &root, b"").await.status, 404, "{path}");
        }
    }
    let server = Server::start(Setup { config: watched(true), blocks: 8, max_model_len: 64, ..Setup::default() }).await;
    for path in ["/v1/trace", "/v1/trace/blocks/0"] {
        assert_eq!(server.get(path).await.status, 401, "{path}");
        assert_eq!(server.send("GET", path, &[("Authorization", "Bearer user")], b"").await.status, 401, "{path}");
    }
    for (path, status, part) in [
        ("/v1/trace?steps_per_second=0", 400, "1 to 1000"),
        ("/v1/trace?steps=1", 400, "unknown field"),
        ("/v1/trace?model=other", 404, "does not exist"),
        ("/v1/trace/blocks/8", 404, "0 to 7"),
        ("/v1/trace/blocks/x", 404, "0 to 7"),
    ] {
        let reply = server.send("GET", path, &root, b"").await;
        assert!(reply.status == status && reply.text().contains(part), "{path}: {}", reply.text());
    }
    let mut watcher = Watcher::start(&server, "/v1/trace").await;
    let (name, facts) = watcher.event().await;
    assert_eq!((&*name, &facts["model"], &facts["kv_bytes_per_token"]), ("server", &json!("tiny"), &json!(64)));
}

#[tokio::test]
async fn every_step_is_shown_as_the_engine_has_it() {
    let setup = Setup { config: watched(true), script: repeats(b'x'), step_ms: 5, blocks: 64, ..Setup::default() };
    let server = Server::start(Setup { max_model_len: 512, ..setup }).await;
    let mut watcher = Watcher::start(&server, "/v1/trace?steps_per_second=1000").await;
    assert_eq!(watcher.event().await.0, "server");
    let first = watcher.step().await;
    assert_eq!((steps_of(&first), &first["rows"], &first["missed"]), (0, &json!([]), &json!(0)));
    let both = async {
        let one = complete(&server, json!({"prompt": "abcd", "max_tokens": 40}));
        let two = complete(&server, json!({"prompt": "wxyz".repeat(10), "max_tokens": 20}));
        assert_eq!(tokio::join!(one, two), (200, 200));
    };
    let look = async {
        let (mut last, mut rows_max, mut sampled) = (0, 0, 0);
        while sampled < 60 {
            let step = watcher.step().await;
            // Steps without a batch, which only tell of ends, follow at once and may be left out.
            assert!(steps_of(&step) <= last + 1, "no batch is left out");
            last = steps_of(&step);
            let rows = step["rows"].as_array().expect("rows");
            rows_max = rows_max.max(rows.len());
            sampled += rows.iter().filter(|row| row["samples"] == true).count();
            assert!(rows.is_empty() || step["seconds"].as_f64().expect("a time") >= 0.005);
            let mut named: BTreeMap<u64, u64> = BTreeMap::new();
            for sequence in step["engine"]["sequences"].as_array().expect("sequences") {
                assert_eq!(sequence["blocks_left_out"], 0);
                for block in sequence["blocks"].as_array().expect("a table") {
                    *named.entry(block.as_u64().expect("an id")).or_default() += 1;
                }
            }
            for (id, block) in (0..).zip(step["engine"]["blocks"].as_array().expect("blocks")) {
                assert_eq!(block["references"], named.get(&id).copied().unwrap_or(0), "block {id}");
            }
        }
        assert_eq!(rows_max, 2, "both were in one batch");
    };
    tokio::join!(both, look);
}

#[tokio::test]
async fn a_watcher_that_does_not_read_holds_nobody_up_and_is_told_what_it_missed() {
    let setup = Setup { config: watched(true), script: repeats(b'x'), step_ms: 1, ..Setup::default() };
    let server = Server::start(setup).await;
    let mut watcher = Watcher::start(&server, "/v1/trace?steps_per_second=1000").await;
    // Each of these steps is a hundred kilobytes of events: more than sockets hold.
    assert_eq!(complete(&server, json!({"prompt": "abcd", "max_tokens": 2000})).await, 200);
    assert_eq!(watcher.event().await.0, "server");
    let (mut missed, mut shown) = (0, 0);
    loop {
        let step = watcher.step().await;
        missed += step["missed"].as_u64().expect("a count");
        shown += 1;
        if steps_of(&step) == 2000 && step["engine"]["stats"]["running"] == 0 {
            break;
        }
    }
    assert!(missed > 0 && shown < 1500, "{missed} missed, {shown} shown");
    let headers = [("Authorization", "Bearer user")];
    let health = server.send("GET", "/health", &headers, b"").await;
    assert_eq!(health.status, 200);
}

#[tokio::test]
async fn a_block_shows_its_tokens_as_text() {
    let script = Script::Tokens(vec![b'y'.into(), END]);
    let setup = Setup { config: watched(true), script, prefix_caching: true, ..Setup::default() };
    let server = Server::start(setup).await;
    assert_eq!(complete(&server, json!({"prompt": "sixteen letters.", "max_tokens": 4})).await, 200);
    let mut watcher = Watcher::start(&server, "/v1/trace").await;
    assert_eq!(watcher.event().await.0, "server");
    let step = watcher.step().await;
    let blocks = step["engine"]["blocks"].as_array().expect("blocks");
    let cached = blocks.iter().position(|block| block["cached"] == true).expect("the prompt's block is cached");
    let path = format!("/v1/trace/blocks/{cached}");
    let content = server.send("GET", &path, &[("Authorization", "Bearer root")], b"").await.json();
    let tokens = content["tokens"].as_array().expect("tokens");
    let text: String = tokens.iter().map(|token| token["text"].as_str().expect("a text")).collect();
    assert_eq!((&*text, &tokens[0]["token"]), ("sixteen letters.", &json!(b's')));
}

#[tokio::test]
async fn a_watcher_hears_why_the_stream_ends() {
    let setup = Setup { config: watched(true), fail_at: Some(3), script: repeats(b'x'), ..Setup::default() };
    let server = Server::start(setup).await;
    let mut watcher = Watcher::start(&server, "/v1/trace").await;
    assert_eq!(complete(&server, json!({"prompt": "abcd", "max_tokens": 20})).await, 500);
    let reason = loop {
        let (name, content) = watcher.event().await;
        if name == "end" {
            break content["reason"].as_str().expect("a reason").to_owned();
        }
    };
    assert!(!reason.is_empty() && !reason.contains("shutting down"), "{reason}");
}

#[tokio::test]
async fn a_page_from_elsewhere_may_send_its_key_where_its_origin_is_allowed() {
    let all = || vec!["*".to_owned()];
    let cors = CorsConfig { origins: vec!["https://a.example".to_owned()], methods: all(), headers: all() };
    let config = ServerConfig { cors: Some(cors), ..watched(true) };
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    let preflight = [
        ("Origin", "https://a.example"),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "authorization"),
    ];
    let reply = server.send("OPTIONS", "/v1/trace", &preflight, b"").await;
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://a.example"));
    assert_eq!(reply.header("access-control-allow-headers"), Some("authorization"));
}
