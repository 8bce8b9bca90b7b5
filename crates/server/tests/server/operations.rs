//! What an operator sets: quotas, times, admin routes, paths.

use std::time::{Duration, Instant};

use firebrick_server::{ApiKeys, Limits, Quota, ServerConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Reply, Server, Setup, chat, completion, repeats};

fn with_limits(limits: Limits) -> ServerConfig {
    ServerConfig { limits, log_requests: false, ..ServerConfig::default() }
}

fn with_quota(quota: Quota) -> ServerConfig {
    let api_keys = ApiKeys::new(["one", "two"]);
    ServerConfig { quota, api_keys, log_requests: false, ..ServerConfig::default() }
}

async fn complete_as(server: &Server, key: &str, body: &Value) -> Reply {
    let bearer = format!("Bearer {key}");
    let headers = [("Content-Type", "application/json"), ("Authorization", bearer.as_str())];
    server.send("POST", "/v1/completions", &headers, body.to_string().as_bytes()).await
}

#[tokio::test]
async fn a_key_beyond_its_requests_per_minute_is_told_when_to_come_back() {
    let config = with_quota(Quota { requests_per_minute: Some(2), ..Quota::default() });
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    let body = completion(json!({}));
    for status in [200, 200, 429] {
        assert_eq!(complete_as(&server, "one", &body).await.status, status);
    }
    let refused = complete_as(&server, "one", &body).await;
    assert!(refused.error().0.contains("2 requests per minute"), "{}", refused.text());
    assert_eq!(refused.json()["error"]["type"], "RateLimitError");
    let seconds: u32 = refused.header("retry-after").and_then(|value| value.parse().ok()).expect("a number");
    assert!((1..=30).contains(&seconds), "{seconds}");
    assert_eq!(complete_as(&server, "two", &body).await.status, 200);
}

#[tokio::test]
async fn tokens_of_prompts_and_answers_are_charged_to_their_key() {
    let config = with_quota(Quota { tokens_per_minute: Some(20), ..Quota::default() });
    let server = Server::start(Setup { config, script: repeats(b'x'), ..Setup::default() }).await;
    let body = completion(json!({"prompt": "12345678", "max_tokens": 4}));
    for status in [200, 200, 429] {
        assert_eq!(complete_as(&server, "one", &body).await.status, status);
    }
    assert_eq!(complete_as(&server, "two", &body).await.status, 200);
}

#[tokio::test]
async fn answers_are_charged_while_they_grow() {
    let config = with_quota(Quota { tokens_per_minute: Some(100), ..Quota::default() });
    let server = Server::start(Setup { config, script: repeats(b'x'), step_ms: 1, ..Setup::default() }).await;
    let long = completion(json!({"max_tokens": 4000, "stream": true})).to_string();
    let headers = [("Content-Type", "application/json"), ("Authorization", "Bearer one")];
    let mut open = server.open("POST", "/v1/completions", &headers, long.as_bytes()).await;
    let mut received = 0;
    while received < 60_000 {
        received += open.read(&mut vec![0; 1 << 14]).await.expect("the stream goes on");
    }
    assert_eq!(complete_as(&server, "one", &completion(json!({"max_tokens": 1}))).await.status, 429);
    assert_eq!(complete_as(&server, "two", &completion(json!({"max_tokens": 1}))).await.status, 200);
    drop(open);
    server.wait_all_free(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_search_whose_client_leaves_is_paid_for() {
    let quota = Quota { tokens_per_minute: Some(30), ..Quota::default() };
    let config = ServerConfig { quota, log_requests: false, ..ServerConfig::default() };
    let setup = Setup { config, script: repeats(b'x'), step_ms: 2, prefix_caching: true, ..Setup::default() };
    let server = Server::start(setup).await;
    let search = completion(json!({"max_tokens": 2000, "use_beam_search": true, "n": 4}));
    let open = server.open_post("/v1/completions", &search).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.metric("vllm:generation_tokens_total").await < 60.0 {
        assert!(Instant::now() < deadline, "the search goes on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(open);
    server.wait_all_free(Duration::from_secs(5)).await;
    assert_eq!(server.post("/v1/completions", &completion(json!({"max_tokens": 1}))).await.status, 429);
}

#[tokio::test]
async fn a_client_s_longest_salt_fits_beside_its_key_s() {
    let server = Server::start(Setup { config: with_quota(Quota::default()), ..Setup::default() }).await;
    let salted = |bytes| completion(json!({"cache_salt": "s".repeat(bytes)}));
    assert_eq!(complete_as(&server, "two", &salted(256)).await.status, 200);
    assert_eq!(complete_as(&server, "two", &salted(257)).await.status, 400);
}

#[tokio::test]
async fn a_key_and_the_server_have_a_limit_of_open_requests() {
    let quota = Quota { open_requests: Some(1), ..Quota::default() };
    let limits = Limits { requests_max: 2, ..Limits::default() };
    let config = ServerConfig { limits, ..with_quota(quota) };
    let setup = Setup { config, script: repeats(b'x'), step_ms: 5, ..Setup::default() };
    let server = Server::start(setup).await;
    let long = completion(json!({"max_tokens": 4000, "stream": true})).to_string();
    let mut open = Vec::new();
    for key in ["Bearer one", "Bearer two"] {
        let headers = [("Content-Type", "application/json"), ("Authorization", key)];
        let mut stream = server.open("POST", "/v1/completions", &headers, long.as_bytes()).await;
        stream.read_exact(&mut [0; 64]).await.expect("the stream has begun");
        if open.is_empty() {
            let refused = complete_as(&server, "one", &completion(json!({}))).await;
            assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
        }
        open.push(stream);
    }
    let refused = complete_as(&server, "one", &completion(json!({}))).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert!(refused.error().0.contains("2 requests open"), "{}", refused.text());
    drop(open);
    server.wait_all_free(Duration::from_secs(5)).await;
    assert_eq!(complete_as(&server, "one", &completion(json!({"max_tokens": 1}))).await.status, 200);
}

#[tokio::test]
async fn a_request_ends_when_its_time_is_over() {
    let limits = Limits { request_timeout: Some(Duration::from_millis(300)), ..Limits::default() };
    let setup = Setup { config: with_limits(limits), script: repeats(b'x'), step_ms: 5, ..Setup::default() };
    let server = Server::start(setup).await;
    let begun = Instant::now();
    let whole = server.post("/v1/completions", &completion(json!({"max_tokens": 4000}))).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!((whole.status, &whole.json()["error"]["type"]), (504, &json!("DeadlineExceededError")));
    let events = server.post("/v1/chat/completions", &chat(json!({"stream": true, "max_tokens": 4000}))).await.events();
    assert_eq!(events.last(), Some(&json!("[DONE]")));
    assert_eq!(events[events.len() - 2]["error"]["code"], 504);
    server.wait_all_free(Duration::from_secs(5)).await;
    assert_eq!(server.post("/v1/completions", &completion(json!({"max_tokens": 2}))).await.status, 200);
}

#[tokio::test]
async fn time_in_the_queue_counts_too() {
    let limits = Limits { request_timeout: Some(Duration::from_millis(400)), ..Limits::default() };
    let config = with_limits(limits);
    let setup = Setup { config, script: repeats(b'x'), step_ms: 5, max_num_seqs: 1, ..Setup::default() };
    let server = Server::start(setup).await;
    let running = server.open_post("/v1/completions", &completion(json!({"max_tokens": 4000, "stream": true}))).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    let again = server.open_post("/v1/completions", &completion(json!({"max_tokens": 4000, "stream": true}))).await;
    let waiting = server.post("/v1/completions", &completion(json!({"max_tokens": 4000}))).await;
    assert_eq!(waiting.status, 504);
    assert!(begun.elapsed() >= Duration::from_millis(390), "{:?}", begun.elapsed());
    drop((running, again));
}

#[tokio::test]
async fn a_body_that_drips_is_not_waited_for() {
    let limits = Limits { body_timeout: Duration::from_millis(300), ..Limits::default() };
    let server = Server::start(Setup { config: with_limits(limits), ..Setup::default() }).await;
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.expect("the server listens");
    let head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
                Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("taken");
    let (mut reader, mut writer) = stream.split();
    let drip = async {
        while writer.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut bytes = Vec::new();
    tokio::select! {
        _ = reader.read_to_end(&mut bytes) => {}
        () = drip => {}
        () = tokio::time::sleep(Duration::from_secs(5)) => panic!("still waiting"),
    }
    assert!(bytes.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&bytes));
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive_by_comments() {
    let limits = Limits { keep_alive_interval: Some(Duration::from_millis(100)), ..Limits::default() };
    let setup = Setup { config: with_limits(limits), script: repeats(b'x'), step_ms: 350, ..Setup::default() };
    let server = Server::start(setup).await;
    let text = server.post("/v1/completions", &completion(json!({"max_tokens": 2, "stream": true}))).await.text();
    let comments = text.split("\n\n").filter(|event| *event == ": keep-alive").count();
    assert!((2..=8).contains(&comments), "{text}");
    let others = text.split("\n\n").filter(|event| !event.is_empty() && *event != ": keep-alive");
    assert!(others.clone().count() >= 3 && others.clone().all(|event| event.starts_with("data: ")), "{text}");
    let whole = server.post("/v1/completions", &completion(json!({"max_tokens": 2}))).await;
    assert!(whole.json()["choices"].is_array());
}

#[tokio::test]
async fn admin_routes_exist_only_with_an_admin_key_and_open_to_no_other() {
    let api_keys = ApiKeys::new(["user"]);
    let without = ServerConfig { api_keys: api_keys.clone(), log_requests: false, ..ServerConfig::default() };
    let server = Server::start(Setup { config: without.clone(), ..Setup::default() }).await;
    let asked = async |server: &Server, method: &str, path: &str, key: &str| {
        let bearer = format!("Bearer {key}");
        server.send(method, path, &[("Authorization", bearer.as_str())], b"").await
    };
    assert_eq!(asked(&server, "GET", "/admin/requests", "user").await.status, 404);
    let config = ServerConfig { admin_keys: ApiKeys::new(["root"]), ..without };
    let server = Server::start(Setup { config, script: repeats(b'x'), step_ms: 5, ..Setup::default() }).await;
    for (method, path) in [("GET", "/admin/requests"), ("POST", "/admin/pause"), ("POST", "/admin/resume")] {
        assert_eq!(asked(&server, method, path, "user").await.status, 401, "{path}");
        assert_eq!(server.send(method, path, &[], b"").await.status, 401, "{path}");
    }
    let headers = [("Content-Type", "application/json"), ("Authorization", "Bearer user")];
    let body = completion(json!({"max_tokens": 4000, "stream": true})).to_string();
    let mut stream = server.open("POST", "/v1/completions", &headers, body.as_bytes()).await;
    stream.read_exact(&mut [0; 64]).await.expect("the stream has begun");
    let list = asked(&server, "GET", "/admin/requests", "root").await.json();
    let only = &list["data"][0];
    let facts = (&only["kind"], &only["prompt_tokens"], &only["max_tokens"], &only["n"]);
    assert_eq!(facts, (&json!("completion"), &json!(4), &json!(4000), &json!(1)), "{list}");
    let paused = asked(&server, "POST", "/admin/pause", "root").await.json();
    assert_eq!(paused, json!({"paused": true, "active_requests": 1}));
    assert_eq!((server.get("/ready").await.status, server.get("/health").await.status), (503, 200));
    let refused = complete_as(&server, "user", &completion(json!({}))).await;
    assert!(refused.status == 503 && refused.error().0.contains("paused"), "{}", refused.text());
    drop(stream);
    server.wait_all_free(Duration::from_secs(5)).await;
    assert_eq!(asked(&server, "GET", "/admin/requests", "root").await.json()["data"], json!([]));
    assert_eq!(asked(&server, "POST", "/admin/resume", "root").await.json()["paused"], false);
    assert_eq!(complete_as(&server, "user", &completion(json!({"max_tokens": 1}))).await.status, 200);
}

#[tokio::test]
async fn load_counts_open_requests() {
    let server = Server::start(Setup { script: repeats(b'x'), step_ms: 5, ..Setup::default() }).await;
    assert_eq!(server.get("/load").await.json(), json!({"server_load": 0}));
    let mut stream =
        server.open_post("/v1/completions", &completion(json!({"max_tokens": 4000, "stream": true}))).await;
    stream.read_exact(&mut [0; 64]).await.expect("the stream has begun");
    assert_eq!(server.get("/load").await.json(), json!({"server_load": 1}));
}

#[tokio::test]
async fn a_root_path_is_found_with_and_without_its_prefix() {
    let api_keys = ApiKeys::new(["one"]);
    let root_path = Some("/llm/".to_owned());
    let config = ServerConfig { root_path, api_keys, log_requests: false, ..ServerConfig::default() };
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    for path in ["/health", "/llm/health"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    for path in ["/v1/models", "/llm/v1/models"] {
        assert_eq!(server.get(path).await.status, 401, "{path}");
        assert_eq!(server.send("GET", path, &[("Authorization", "Bearer one")], b"").await.status, 200, "{path}");
    }
    for path in ["/llmx/health", "/llm/llm/health", "/other/health"] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_balancer_that_asks_is_told_the_load() {
    let server = Server::start(Setup::default()).await;
    let asked = async |format: &str| {
        let reply = server.send("GET", "/health", &[("endpoint-load-metrics-format", format)], b"").await;
        reply.header("endpoint-load-metrics").map(str::to_owned)
    };
    let text = "TEXT named_metrics.kv_cache_usage_perc=0, named_metrics.num_requests_waiting=0";
    assert_eq!(asked("TEXT").await.as_deref(), Some(text));
    let json = asked("json").await.expect("a header");
    let load: Value = serde_json::from_str(json.strip_prefix("JSON ").expect("JSON")).expect("JSON");
    assert_eq!(load["named_metrics"]["num_requests_waiting"], 0);
    assert_eq!(asked("BIN").await, None);
    assert_eq!(server.get("/health").await.header("endpoint-load-metrics"), None);
}

#[tokio::test]
async fn preemptions_and_numbers_that_are_not_finite_are_counted_per_request() {
    let pool = Setup { script: repeats(b'x'), blocks: 8, max_model_len: 128, step_ms: 1, ..Setup::default() };
    let server = Server::start(pool).await;
    let bodies: Vec<Value> = (0..4).map(|seed| completion(json!({"max_tokens": 100, "seed": seed}))).collect();
    let replies = bodies.iter().map(|body| server.post("/v1/completions", body));
    for reply in futures::future::join_all(replies).await {
        assert_eq!(reply.status, 200);
    }
    let preempted = server.metric("vllm:num_preemptions_total").await;
    assert!(preempted >= 1.0, "four sequences of 104 tokens do not fit into 128");
    assert_eq!(server.metric("vllm:request_num_preemptions_sum").await, preempted);
    assert_eq!(server.metric("vllm:request_num_preemptions_count").await, 4.0);
    let broken = Server::start(Setup { script: repeats(b'x'), not_finite_one_in: Some(3), ..Setup::default() }).await;
    assert_eq!(broken.post("/v1/completions", &completion(json!({"max_tokens": 100}))).await.status, 500);
    assert_eq!(broken.metric("vllm:corrupted_requests_total").await, 1.0);
}

#[tokio::test]
async fn counting_tokens_is_charged_as_a_request_and_refused_while_the_server_is_paused() {
    let config = with_quota(Quota { requests_per_minute: Some(1), ..Quota::default() });
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    let bodies = [
        ("/tokenize", json!({"prompt": "ab"})),
        ("/detokenize", json!({"tokens": [97]})),
        ("/v1/messages/count_tokens", json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]})),
    ];
    let ask = |key: &'static str, number: usize| {
        let (server, (path, body)) = (&server, &bodies[number]);
        async move {
            let headers = [("Content-Type", "application/json"), ("Authorization", key)];
            server.send("POST", path, &headers, body.to_string().as_bytes()).await
        }
    };
    assert_eq!(ask("Bearer one", 0).await.status, 200);
    for number in 0..bodies.len() {
        let refused = ask("Bearer one", number).await;
        assert_eq!(refused.status, 429, "{}", refused.text());
        assert!(refused.header("retry-after").is_some());
    }
    server.state.set_paused(true);
    for number in 0..bodies.len() {
        assert_eq!(ask("Bearer two", number).await.status, 503);
    }
    server.state.set_paused(false);
    assert_eq!(ask("Bearer two", 2).await.status, 200);
    server.wait_all_free(Duration::from_secs(5)).await;
}
