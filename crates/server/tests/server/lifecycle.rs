//! Loading, failing, draining and stopping.

use std::time::{Duration, Instant};

use firebrick_engine::Script;
use firebrick_server::{ApiKeys, CorsConfig, EngineState, ServerConfig, drain};
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::support::{Server, Setup, chat, completion, repeats};

#[tokio::test]
async fn the_port_is_open_before_the_model_is_there() {
    let setup = Setup::default();
    let server = Server::start_loading(&setup).await;
    let health = server.get("/health").await;
    assert_eq!((health.status, &health.json()["status"]), (503, &json!("loading")));
    assert_eq!(health.json()["model_loaded"], false);
    assert_eq!(server.get("/ready").await.status, 503);
    let reply = server.post("/v1/chat/completions", &chat(json!({}))).await;
    assert_eq!(reply.status, 503);
    assert!(reply.header("retry-after").is_some());
    assert_eq!(server.get("/v1/models").await.status, 503);
    assert_eq!(server.get("/metrics").await.status, 200);
    server.load(&setup);
    assert_eq!(server.get("/ready").await.json(), json!({"ready": true}));
    assert_eq!(server.post("/v1/chat/completions", &chat(json!({}))).await.status, 200);
}

#[tokio::test]
async fn health_is_the_superset_of_the_documents() {
    let server = Server::start(Setup::default()).await;
    let expected = json!({"status": "healthy", "model": "tiny", "model_loaded": true, "gpu_available": false,
                          "active_requests": 0, "tensor_parallel_size": 1});
    for path in ["/health", "/ping"] {
        let reply = server.get(path).await;
        assert_eq!((reply.status, reply.json()), (200, expected.clone()));
    }
    assert_eq!(server.get("/version").await.json(), json!({"version": env!("CARGO_PKG_VERSION")}));
}

#[tokio::test]
async fn a_failed_load_is_unhealthy() {
    let server = Server::start_loading(&Setup::default()).await;
    server.state.set_failed("no such file");
    let health = server.get("/health").await;
    assert_eq!((health.status, &health.json()["status"]), (503, &json!("failed")));
}

#[tokio::test]
async fn a_device_failure_ends_requests_and_health() {
    let server = Server::start(Setup { script: repeats(b'x'), fail_at: Some(4), ..Setup::default() }).await;
    let dead = tokio::spawn({
        let engine = server.engine.clone();
        async move { engine.dead().await }
    });
    let events = server.post("/v1/chat/completions", &chat(json!({"stream": true}))).await.events();
    assert_eq!(events.last(), Some(&json!("[DONE]")));
    let error = &events[events.len() - 2]["error"];
    assert_eq!((&error["type"], &error["code"]), (&json!("InternalServerError"), &json!(500)));
    assert!(dead.await.expect("no panic").contains("scripted failure"));
    let health = server.get("/health").await;
    assert_eq!((health.status, &health.json()["status"]), (503, &json!("unhealthy")));
    assert_eq!(server.get("/ready").await.status, 503);
    assert_eq!(server.post("/v1/chat/completions", &chat(json!({}))).await.status, 503);
}

#[tokio::test]
async fn a_device_failure_is_a_500_without_streaming() {
    let server = Server::start(Setup { script: repeats(b'x'), fail_at: Some(4), ..Setup::default() }).await;
    let reply = server.post("/v1/chat/completions", &chat(json!({}))).await;
    assert_eq!(reply.status, 500);
    assert!(reply.error().0.contains("scripted failure"));
}

#[tokio::test]
async fn a_panic_in_the_engine_is_never_a_zombie() {
    let server = Server::start(Setup { script: repeats(b'x'), panic_at: Some(3), ..Setup::default() }).await;
    let reply = server.post("/v1/chat/completions", &chat(json!({}))).await;
    assert_eq!(reply.status, 500);
    let reason = tokio::time::timeout(Duration::from_secs(1), server.engine.dead()).await.expect("within a second");
    assert!(reason.contains("panicked"), "{reason}");
    assert_eq!(server.get("/health").await.status, 503);
}

#[tokio::test]
async fn a_hanging_step_makes_health_fail() {
    let config = ServerConfig { heartbeat_age_max: Duration::from_millis(200), ..ServerConfig::default() };
    let server = Server::start(Setup { script: repeats(b'x'), step_ms: 3000, config, ..Setup::default() }).await;
    let stream = server.open_post("/v1/completions", &completion(json!({"max_tokens": 1}))).await;
    for status in [503, 200] {
        let deadline = Instant::now() + Duration::from_secs(10);
        while server.get("/health").await.status != status {
            assert!(Instant::now() < deadline, "never {status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    drop(stream);
}

#[tokio::test]
async fn an_idle_engine_stays_healthy_without_a_heartbeat() {
    let config = ServerConfig { heartbeat_age_max: Duration::from_millis(50), ..ServerConfig::default() };
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    server.post("/v1/chat/completions", &chat(json!({}))).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn a_drain_finishes_open_streams_and_refuses_new_ones() {
    let server = Server::start(Setup { script: repeats(b'x'), step_ms: 5, ..Setup::default() }).await;
    let body = completion(json!({"stream": true, "max_tokens": 60}));
    let mut stream = server.open_post("/v1/completions", &body).await;
    let mut first = [0; 64];
    stream.read_exact(&mut first).await.expect("the stream has begun");
    let draining = tokio::spawn({
        let state = server.state.clone();
        async move { drain(&state, Duration::from_secs(30)).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((server.get("/ready").await.status, server.get("/health").await.status), (503, 200));
    let refused = server.post("/v1/completions", &completion(json!({}))).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), Some("5"));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("the stream ends in order");
    let text = String::from_utf8_lossy(&rest).into_owned();
    assert!(text.contains("\"finish_reason\":\"length\"") && text.contains("data: [DONE]"));
    assert!(draining.await.expect("no panic"));
    assert_eq!(server.engine.state(), EngineState::Stopped);
}

#[tokio::test]
async fn what_a_drain_cannot_wait_for_gets_a_final_error() {
    let server = Server::start(Setup { script: repeats(b'x'), step_ms: 10, ..Setup::default() }).await;
    let mut stream =
        server.open_post("/v1/completions", &completion(json!({"stream": true, "max_tokens": 4000}))).await;
    let mut first = [0; 64];
    stream.read_exact(&mut first).await.expect("the stream has begun");
    let begun = Instant::now();
    assert!(!drain(&server.state, Duration::from_millis(100)).await);
    assert!(begun.elapsed() < Duration::from_secs(2));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("the stream ends in order");
    let text = String::from_utf8_lossy(&rest).into_owned();
    assert!(text.contains("shutting down") && text.contains("data: [DONE]"), "{text}");
}

#[tokio::test]
async fn keys_guard_everything_but_probes() {
    let config = ServerConfig { api_keys: ApiKeys::new(["secret", "other"]), ..ServerConfig::default() };
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    for path in ["/v1/models", "/metrics", "/metrics.json", "/version", "/model_info", "/v1/models/tiny"] {
        let reply = server.get(path).await;
        assert_eq!((reply.status, reply.json()), (401, json!({"error": "Unauthorized"})), "{path}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        for key in ["Bearer secret", "Bearer other"] {
            let reply = server.send("GET", path, &[("Authorization", key)], b"").await;
            assert_eq!(reply.status, 200, "{path}");
        }
    }
    for path in ["/v1/chat/completions", "/v1/completions", "/generate", "/batch_generate", "/tokenize", "/detokenize"]
    {
        assert_eq!(server.post(path, &json!({})).await.status, 401, "{path}");
    }
    for path in ["/health", "/ready", "/ping"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    for key in ["Bearer secre", "Bearer secrets", "Basic secret", "secret"] {
        assert_eq!(server.send("GET", "/v1/models", &[("Authorization", key)], b"").await.status, 401, "{key}");
    }
    for path in ["/health/../v1/models", "/v1//models", "//v1/models", "/%76%31/models", "/health?/v1/models"] {
        let reply = server.send("GET", path, &[("Host", "localhost/health")], b"").await;
        assert!(!reply.text().contains("\"data\""), "{path}");
    }
}

#[tokio::test]
async fn callers_with_different_keys_share_no_cached_prefix() {
    let config = ServerConfig { api_keys: ApiKeys::new(["one", "two"]), ..ServerConfig::default() };
    let server = Server::start(Setup { config, prefix_caching: true, ..Setup::default() }).await;
    let body = json!({"prompt": "p".repeat(64), "max_tokens": 2}).to_string();
    let mut cached = Vec::new();
    for key in ["Bearer one", "Bearer two", "Bearer one"] {
        let headers = [("Content-Type", "application/json"), ("Authorization", key)];
        let usage = server.send("POST", "/v1/completions", &headers, body.as_bytes()).await.json()["usage"].clone();
        cached.push(usage["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count"));
    }
    assert!(cached[0] == 0 && cached[1] == 0 && cached[2] >= 48, "{cached:?}");
}

#[tokio::test]
async fn cors_headers_appear_only_when_configured() {
    let preflight = [("Origin", "https://a.example"), ("Access-Control-Request-Method", "POST")];
    let server = Server::start(Setup::default()).await;
    let reply = server.send("OPTIONS", "/v1/models", &preflight, b"").await;
    assert!(reply.header("access-control-allow-origin").is_none());
    let cors = CorsConfig {
        origins: vec!["https://a.example".to_owned()],
        methods: vec!["*".to_owned()],
        headers: vec!["*".to_owned()],
    };
    let config = ServerConfig { cors: Some(cors), ..ServerConfig::default() };
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    let reply = server.send("OPTIONS", "/v1/models", &preflight, b"").await;
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://a.example"));
    let other = server.send("GET", "/v1/models", &[("Origin", "https://b.example")], b"").await;
    assert!(other.header("access-control-allow-origin").is_none_or(|origin| origin != "https://b.example"));
}

#[tokio::test]
async fn a_stop_string_ends_its_choice_in_the_engine_and_the_others_go_on() {
    // One choice draws the stop string within some tokens; the others cannot all do so at the same time.
    let script = Script::Hash { vocab_size: 128 };
    let server = Server::start(Setup { script, step_ms: 2, ..Setup::default() }).await;
    let body = completion(json!({"n": 8, "seed": 1, "max_tokens": 1500, "stop": ["a"], "temperature": 1.0}));
    let reply = server.post("/v1/completions", &body).await.json();
    let choices = reply["choices"].as_array().expect("choices");
    assert!(choices.iter().all(|choice| choice["finish_reason"] == "stop" && choice["stop_reason"] == "a"), "{reply}");
    let lengths: Vec<usize> =
        choices.iter().map(|choice| choice["text"].as_str().expect("a text").chars().count()).collect();
    let longest = lengths.iter().copied().max().expect("eight choices");
    server.wait_all_free(Duration::from_secs(10)).await;
    let generated = server.metric("vllm:generation_tokens_total").await as usize;
    let shown: usize = lengths.iter().sum();
    assert!(longest > 3 * lengths[..].iter().copied().min().expect("eight choices"), "{lengths:?}");
    // Without ending the choices one by one, each would run as long as the longest.
    assert!(generated < shown + 8 * 40, "{generated} tokens for {shown} characters, the longest has {longest}");
    assert_eq!(
        server.metric("vllm:request_success_total{model_name=\"tiny\",engine=\"0\",finished_reason=\"stop\"").await,
        8.0
    );
}
