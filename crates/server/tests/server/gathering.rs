//! Tokens that wait for the next ones of their stream.

use std::time::Duration;

use firebrick_server::EngineThreadOptions;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::support::{Server, Setup, completion, repeats, says};

/// A server on which tokens of one request alone would wait for a minute.
async fn patient_server(setup: Setup) -> Server {
    let options = EngineThreadOptions {
        requests_gathered: 1,
        gathering: Duration::from_secs(60),
        ..EngineThreadOptions::default()
    };
    Server::start(Setup { options, ..setup }).await
}

/// What comes next; nothing once the stream has ended.
async fn read(stream: &mut TcpStream) -> String {
    let mut bytes = vec![0; 1 << 16];
    let count = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut bytes)).await;
    let count = count.expect("something within ten seconds").expect("the stream can be read");
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

#[tokio::test]
async fn the_first_token_comes_at_once_and_all_others_with_the_end() {
    let server = patient_server(Setup { script: says("abcdefgh"), step_ms: 200, ..Setup::default() }).await;
    let mut stream = server.open_post("/v1/completions", &completion(json!({"stream": true, "max_tokens": 40}))).await;
    let mut pieces = Vec::new();
    loop {
        let piece = read(&mut stream).await;
        if piece.is_empty() {
            break;
        }
        pieces.push(piece);
    }
    let all = pieces.concat();
    let at = |text: &str| all.find(text).unwrap_or_else(|| panic!("no {text} in {all}"));
    // An event for each token, in order.
    let places: Vec<usize> = "abcdefgh".chars().map(|letter| at(&format!(r#""text":"{letter}""#))).collect();
    assert!(places.is_sorted() && places[7] < at("[DONE]"), "{all}");
    // By steps of 200 ms they would come in eight pieces; the head and the end may come in pieces of their own.
    let with_tokens: Vec<&String> = pieces.iter().filter(|piece| piece.contains(r#""text":""#)).collect();
    assert!(with_tokens.len() <= 3, "{with_tokens:?}");
    assert!(with_tokens[0].contains(r#""text":"a""#) && !with_tokens[0].contains(r#""text":"b""#), "{with_tokens:?}");
}

#[tokio::test]
async fn tokens_wait_while_others_wait_for_a_place() {
    let server =
        patient_server(Setup { script: says("abcdefgh"), step_ms: 20, max_num_seqs: 1, ..Setup::default() }).await;
    let body = completion(json!({"stream": true, "max_tokens": 40}));
    let mut stream = server.open_post("/v1/completions", &body).await;
    let _second = server.open_post("/v1/completions", &body).await;
    let mut pieces: Vec<String> = Vec::new();
    while !pieces.concat().contains("[DONE]") {
        pieces.push(read(&mut stream).await);
    }
    let with_tokens = pieces.iter().filter(|piece| piece.contains(r#""text":""#)).count();
    assert!(with_tokens <= 4, "{pieces:?}");
}

#[tokio::test]
async fn nothing_waits_while_a_prompt_is_computed() {
    let server = patient_server(Setup { script: repeats(b'x'), step_ms: 20, ..Setup::default() }).await;
    let body = completion(json!({"stream": true, "max_tokens": 4000, "ignore_eos": true}));
    let mut stream = server.open_post("/v1/completions", &body).await;
    while !read(&mut stream).await.contains(r#""text":"x""#) {}
    server.wait_running(1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let reply = server.post("/v1/completions", &completion(json!({"max_tokens": 1}))).await;
    assert_eq!(reply.status, 200);
    let piece = read(&mut stream).await;
    assert!(piece.matches(r#""text":"x""#).count() > 1, "{piece}");
}
