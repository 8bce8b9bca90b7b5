//! Many clients, clients that leave and clients that do not read.

use std::time::{Duration, Instant};

use firebrick_server::{Ended, EngineThreadOptions, Limits, ServerConfig};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Server, Setup, chat, completion, repeats, says};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_finish_unmixed() {
    let script = firebrick_engine::Script::Hash { vocab_size: 128 };
    let server = Server::start(Setup { script, step_ms: 1, ..Setup::default() }).await;
    let body = |number: usize| json!({"prompt": format!("prompt {number}"), "seed": number, "max_tokens": 20, "ignore_eos": true});
    let mut alone = Vec::new();
    for number in 0..20 {
        alone.push(server.post("/v1/completions", &body(number)).await.json()["choices"][0]["text"].clone());
    }
    let requests = (0..200).map(|number| {
        let mut body = body(number % 20);
        body["stream"] = json!(true);
        let server = &server;
        async move {
            let events = server.post("/v1/completions", &body).await.events();
            assert_eq!(events.last(), Some(&json!("[DONE]")));
            let texts = events.iter().filter_map(|event| event["choices"][0]["text"].as_str().map(str::to_owned));
            (number % 20, texts.collect::<String>())
        }
    });
    for (number, text) in futures::future::join_all(requests).await {
        assert_eq!(alone[number], text, "request {number}");
    }
    server.wait_all_free(Duration::from_secs(5)).await;
}

/// `cargo nextest run -p firebrick-server --run-ignored only --no-capture`: needs 10,000 open files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "opens 5,000 connections, both ends in this process"]
async fn five_thousand_open_streams_all_finish() {
    let options = EngineThreadOptions { inbox_max: 8192, ..EngineThreadOptions::default() };
    let script = firebrick_engine::Script::Hash { vocab_size: 128 };
    let setup = Setup { script, blocks: 65_536, max_waiting: 8192, max_num_seqs: 1024, options, ..Setup::default() };
    let server = Server::start(setup).await;
    let body = completion(json!({"stream": true, "max_tokens": 50, "ignore_eos": true}));
    let begun = Instant::now();
    let replies = futures::future::join_all((0..5000).map(|_| server.post("/v1/completions", &body))).await;
    let seconds = begun.elapsed().as_secs_f64();
    assert!(replies.iter().all(|reply| reply.status == 200 && reply.text().ends_with("data: [DONE]\n\n")));
    println!("5,000 streams of 50 tokens in {seconds:.2} s, {:.0} tokens/s", 250_000.0 / seconds);
    server.wait_all_free(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_blocks() {
    let server = Server::start(Setup { script: repeats(b'x'), step_ms: 2, ..Setup::default() }).await;
    for stream in [true, false] {
        let body = completion(json!({"stream": stream, "max_tokens": 4000, "n": 3}));
        let connection = server.open_post("/v1/completions", &body).await;
        let deadline = Instant::now() + Duration::from_secs(5);
        while server.engine.snapshot().num_running < 3 {
            assert!(Instant::now() < deadline, "the request never ran");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        drop(connection);
        let left = Instant::now();
        server.wait_all_free(Duration::from_secs(2)).await;
        assert!(left.elapsed() < Duration::from_millis(500), "freed after {:?}", left.elapsed());
    }
    assert_eq!(server.engine.metrics().num_ended(Ended::Abort), 6);
    assert_eq!(server.metric("vllm_requests_total{model=\"tiny\",status=\"aborted\"}").await, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_abrupt_disconnects_leak_nothing() {
    let server = Server::start(Setup { script: repeats(b'x'), step_ms: 1, ..Setup::default() }).await;
    let visits = (0..300_u64).map(|number| {
        let server = &server;
        async move {
            let body = completion(json!({"stream": number % 3 != 0, "max_tokens": 4000, "n": 1 + number % 2}));
            let stream = server.open_post("/v1/completions", &body).await;
            tokio::time::sleep(Duration::from_millis(number % 37)).await;
            drop(stream);
        }
    });
    futures::future::join_all(visits).await;
    server.wait_all_free(Duration::from_secs(10)).await;
    assert_eq!(server.post("/v1/chat/completions", &chat(json!({"max_tokens": 2}))).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_is_aborted_and_stops_nobody() {
    let options = EngineThreadOptions {
        events_slow: 64,
        slow_reader_grace: Duration::from_millis(200),
        ..EngineThreadOptions::default()
    };
    let setup = Setup { script: repeats(b'x'), max_model_len: 400_000, blocks: 30_000, options, ..Setup::default() };
    let server = Server::start(setup).await;
    // Nothing reads this stream; the kernel's buffers fill up and then the events do.
    let stalled =
        server.open_post("/v1/completions", &completion(json!({"stream": true, "max_tokens": 390_000}))).await;
    let body = chat(json!({"max_tokens": 20}));
    let others = (0..20).map(|_| server.post("/v1/chat/completions", &body));
    assert!(futures::future::join_all(others).await.iter().all(|reply| reply.status == 200));
    let deadline = Instant::now() + Duration::from_secs(60);
    while server.engine.metrics().num_slow_readers() == 0 {
        assert!(Instant::now() < deadline, "never aborted: {:?}", server.engine.snapshot());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(server.engine.metrics().num_ended(Ended::Abort), 1);
    assert_eq!(server.engine.snapshot().blocks_used, 0);
    drop(stalled);
    server.wait_all_free(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_takes_nothing_is_closed() {
    let options = EngineThreadOptions {
        events_slow: 64,
        slow_reader_grace: Duration::from_millis(100),
        ..EngineThreadOptions::default()
    };
    let limits = Limits { write_timeout: Duration::from_millis(500), ..Limits::default() };
    let config = ServerConfig { limits, ..ServerConfig::default() };
    let setup =
        Setup { script: repeats(b'x'), max_model_len: 400_000, blocks: 30_000, options, config, ..Setup::default() };
    let server = Server::start(setup).await;
    let stalled =
        server.open_post("/v1/completions", &completion(json!({"stream": true, "max_tokens": 390_000}))).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.wait_all_free(Duration::from_secs(60)).await;
    drop(stalled);
}

#[tokio::test]
async fn a_full_queue_is_a_503_at_once() {
    let setup = Setup { script: repeats(b'x'), step_ms: 5, max_waiting: 2, max_num_seqs: 1, ..Setup::default() };
    let server = Server::start(setup).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(server.open_post("/v1/completions", &completion(json!({"stream": true, "max_tokens": 4000}))).await);
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    let begun = Instant::now();
    let reply = server.post("/v1/completions", &completion(json!({}))).await;
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(begun.elapsed() < Duration::from_millis(500));
    assert!(reply.header("retry-after").is_some());
    assert!(reply.error().0.contains("waiting"));
    assert!(
        server.metric("vllm:admission_rejections_total{model_name=\"tiny\",engine=\"0\",reason=\"queue_full\"}").await
            >= 1.0
    );
    drop(open);
    server.wait_all_free(Duration::from_secs(5)).await;
    assert_eq!(server.post("/v1/completions", &completion(json!({}))).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_inbox_is_a_503_at_once() {
    let options = EngineThreadOptions { inbox_max: 2, ..EngineThreadOptions::default() };
    let server = Server::start(Setup { script: says("ab"), step_ms: 300, options, ..Setup::default() }).await;
    let body = completion(json!({}));
    let requests = (0..30).map(|_| server.post("/v1/completions", &body));
    let statuses: Vec<_> = futures::future::join_all(requests).await.iter().map(|reply| reply.status).collect();
    assert!(statuses.contains(&200) && statuses.contains(&503), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    server.wait_all_free(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_prompts_of_a_request_take_one_place_on_their_way_to_the_engine() {
    let options = EngineThreadOptions { inbox_max: 4, ..EngineThreadOptions::default() };
    let setup = Setup { script: says("ab"), step_ms: 100, max_waiting: 2000, options, ..Setup::default() };
    let server = Server::start(setup).await;
    // The engine is in a step when the others come.
    let mut busy = server.open_post("/v1/completions", &completion(json!({}))).await;
    server.wait_running(1).await;
    let body = json!({"prompt": vec!["x"; 600], "max_tokens": 1});
    let replies = futures::future::join_all((0..3).map(|_| server.post("/v1/completions", &body))).await;
    for reply in replies {
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.json()["choices"].as_array().map(Vec::len), Some(600));
    }
    // More than may wait are refused as a whole, and nothing of them stays.
    let body = json!({"prompt": vec!["x"; 1000], "max_tokens": 1});
    let replies = futures::future::join_all((0..5).map(|_| server.post("/v1/completions", &body))).await;
    assert!(replies.iter().any(|reply| reply.status == 503), "more than 2,000 cannot wait");
    busy.read_to_end(&mut Vec::new()).await.expect("an answer");
    server.wait_all_free(Duration::from_secs(20)).await;
}

#[tokio::test]
async fn preemption_changes_no_answer() {
    let script = firebrick_engine::Script::Hash { vocab_size: 128 };
    let body = |number: usize| json!({"prompt": format!("prompt {number}"), "seed": number, "max_tokens": 40, "ignore_eos": true});
    let mut texts = Vec::new();
    for blocks in [4096, 12] {
        let setup = Setup { script: script.clone(), blocks, max_model_len: 128, ..Setup::default() };
        let server = Server::start(setup).await;
        let bodies: Vec<_> = (0..16).map(body).collect();
        let replies = futures::future::join_all(bodies.iter().map(|body| server.post("/v1/completions", body))).await;
        texts.push(replies.iter().map(|reply| reply.json()["choices"][0]["text"].clone()).collect::<Vec<_>>());
        server.wait_all_free(Duration::from_secs(5)).await;
    }
    assert_eq!(texts[0], texts[1]);
}

#[tokio::test]
async fn half_a_request_is_not_waited_for_long() {
    let limits = Limits {
        header_timeout: Duration::from_millis(200),
        body_idle_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let config = ServerConfig { limits, ..ServerConfig::default() };
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    let body_missing =
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{";
    for (head, status) in [("GET /health HTTP/1.1\r\nHos", ""), (body_missing, " 408 ")] {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).await.expect("the server listens");
        stream.write_all(head.as_bytes()).await.expect("written");
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut bytes)).await;
        assert!(read.is_ok(), "the connection stays open");
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert!(String::from_utf8_lossy(&bytes).contains(status));
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let limits = Limits { connections_max: 2, header_timeout: Duration::from_millis(400), ..Limits::default() };
    let config = ServerConfig { limits, ..ServerConfig::default() };
    let server = Server::start(Setup { config, ..Setup::default() }).await;
    let idle = [
        TcpStream::connect(("127.0.0.1", server.port)).await.expect("the server listens"),
        TcpStream::connect(("127.0.0.1", server.port)).await.expect("the server listens"),
    ];
    tokio::time::sleep(Duration::from_millis(50)).await;
    let begun = Instant::now();
    assert_eq!(server.get("/health").await.status, 200);
    assert!(begun.elapsed() > Duration::from_millis(100), "a third connection was served beside two");
    drop(idle);
}

#[tokio::test]
async fn an_idle_server_uses_no_processor() {
    let server = Server::start(Setup::default()).await;
    server.post("/v1/chat/completions", &chat(json!({}))).await;
    let before = processor_ticks();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Other tests of this process do not exist under a runner with one process per test.
    if std::env::var_os("NEXTEST").is_some() {
        assert!(processor_ticks() - before <= 2, "idle, yet {} ticks", processor_ticks() - before);
    }
}

fn processor_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect::<Vec<_>>();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    number(11) + number(12)
}
