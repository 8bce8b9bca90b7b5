//! What is refused, and how: always at once, in OpenAI's shape, with the server well afterwards.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Server, Setup, chat, completion};

/// `path | status | parameter or - | body`; the body may be `@name` of a body that is made here.
const HOSTILE: &str = include_str!("hostile_bodies.txt");

/// Bodies that are too long or not text, so that they cannot stand in the table.
fn made(name: &str) -> Vec<u8> {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let text = match name {
        "bad_utf8" => return b"{\"prompt\":\"\xff\xfe\"}".to_vec(),
        "bad_utf8_key" => return b"{\"\xc3\x28\":1}".to_vec(),
        "zero_bytes" => return vec![0; 64],
        "deep_list" => nested(100_000),
        "deep_prompt" => format!("{{\"prompt\":{}}}", nested(5000)),
        "deep_object" => "{\"a\":".repeat(100_000),
        "deep_tools" => format!("{{\"messages\":[],\"tools\":{}}}", nested(500)),
        "deep_kwargs" => format!("{{\"messages\":[],\"chat_template_kwargs\":{{\"a\":{}}}}}", nested(500)),
        "many_stops" => json!({"prompt": "a", "stop": vec!["x"; 17]}).to_string(),
        "long_stop" => json!({"prompt": "a", "stop": "x".repeat(257)}).to_string(),
        "many_biases" => {
            let bias: serde_json::Map<_, _> = (0..2000).map(|id| (id.to_string(), json!(1))).collect();
            json!({"prompt": "a", "logit_bias": bias}).to_string()
        }
        "many_stop_tokens" => json!({"prompt": "a", "stop_token_ids": vec![1; 200]}).to_string(),
        "many_prompts" => json!({"prompt": vec!["a"; 1025]}).to_string(),
        "many_choices" => json!({"prompt": vec!["a"; 100], "n": 100}).to_string(),
        "many_messages" => json!({"messages": vec![json!({"role": "user", "content": "a"}); 5000]}).to_string(),
        "long_prompt" => json!({"prompt": "x".repeat(20_000)}).to_string(),
        "many_tokens" => json!({"prompt": vec![1; 100_000]}).to_string(),
        "many_tokens_echo" => json!({"prompt": vec![1; 100_000], "echo": true}).to_string(),
        "long_salt" => json!({"prompt": "a", "cache_salt": "x".repeat(257)}).to_string(),
        "long_role" => json!({"messages": [{"role": "x".repeat(1000), "content": "a"}]}).to_string(),
        "long_field" => format!("{{\"{}\":1}}", "x".repeat(100_000)),
        "long_number" => format!("{{\"prompt\":\"a\",\"max_tokens\":{}}}", "9".repeat(100_000)),
        "long_model" => json!({"prompt": "a", "model": "x".repeat(100_000)}).to_string(),
        "detokenize_many" => json!({"tokens": vec![1; 100_000]}).to_string(),
        "too_large" => format!("{{\"prompt\":\"{}\"}}", "x".repeat(9 << 20)),
        other => panic!("no body {other}"),
    };
    text.into_bytes()
}

#[tokio::test]
async fn hostile_bodies_are_refused_at_once_in_openai_shape() {
    let server = Server::start(Setup::default()).await;
    let lines: Vec<_> = HOSTILE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(lines.len() >= 120, "{} hostile bodies", lines.len());
    for line in lines {
        let [path, status, parameter, body] = line.splitn(4, " | ").collect::<Vec<_>>()[..] else {
            panic!("not a row: {line}");
        };
        let bytes = body.strip_prefix('@').map_or_else(|| body.as_bytes().to_vec(), made);
        let begun = Instant::now();
        let reply = server.send("POST", path, &[("Content-Type", "application/json")], &bytes).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{line}: {:?}", begun.elapsed());
        assert_eq!(reply.status.to_string(), status, "{line}: {}", reply.text());
        let (message, named) = reply.error();
        assert!(!message.is_empty() && message.len() < 1000, "{line}: {message}");
        if parameter != "-" {
            assert_eq!(named.as_deref(), Some(parameter), "{line}: {message}");
        }
    }
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.post("/v1/chat/completions", &chat(json!({}))).await.status, 200);
    server.wait_all_free(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn bad_json_says_where() {
    let server = Server::start(Setup::default()).await;
    let reply =
        server.send("POST", "/v1/completions", &[("Content-Type", "application/json")], b"{\"prompt\": }").await;
    assert!(reply.error().0.contains("line 1 column 12"), "{}", reply.text());
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused_by_its_type() {
    let server = Server::start(Setup::default()).await;
    let body = completion(json!({})).to_string();
    for headers in
        [&[("Content-Type", "text/plain")][..], &[("Content-Type", "application/x-www-form-urlencoded")], &[]]
    {
        let reply = server.send("POST", "/v1/completions", headers, body.as_bytes()).await;
        assert_eq!(reply.status, 400);
        assert!(reply.error().0.contains("application/json"));
    }
}

#[tokio::test]
async fn a_list_where_an_object_is_expected_is_refused() {
    let server = Server::start(Setup::default()).await;
    for (path, body) in [
        ("/v1/chat/completions", json!([[{"role": "user", "content": "hi"}]])),
        ("/v1/chat/completions", json!({"messages": [["user", "hi"]]})),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": [["text", "hi"]]}]})),
        ("/v1/chat/completions", chat(json!({"stream": true, "stream_options": [true]}))),
        ("/v1/chat/completions", chat(json!({"tools": [["function"]]}))),
        ("/v1/completions", json!(["Once"])),
        ("/v1/completions", completion(json!({"response_format": ["json_object"]}))),
        ("/v1/completions", completion(json!({"structured_outputs": {"structural_tag": ["structural_tag"]}}))),
        ("/v1/responses", json!({"input": [["message", "user", "hi"]]})),
        ("/v1/messages", json!({"max_tokens": 5, "messages": [["user", "hi"]]})),
        ("/v1/embeddings", json!(["tiny", "hi"])),
        ("/tokenize", json!(["tiny", "hi"])),
        ("/generate", json!(["hi"])),
    ] {
        let reply = server.post(path, &body).await;
        assert_eq!(reply.status, 400, "{path} {body}: {}", reply.text());
        assert!(reply.text().contains("expected an object"), "{path} {body}: {}", reply.text());
    }
}

#[tokio::test]
async fn null_is_absent_for_known_and_unknown_fields() {
    let server = Server::start(Setup::default()).await;
    let nothing = json!({"vllm_xargs": null, "kv_transfer_params": null, "mm_processor_kwargs": null, "stop": null,
                         "guided_json": null, "stream_options": null, "logit_bias": null, "temperature": null});
    let mut message = chat(nothing.clone());
    message["messages"][0]["unheard_of"] = Value::Null;
    for (path, body) in [("/v1/chat/completions", message), ("/v1/completions", completion(nothing))] {
        let reply = server.post(path, &body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        let mut body = body;
        body["vllm_xargs"] = json!({});
        assert_eq!(server.post(path, &body).await.error().1.as_deref(), Some("vllm_xargs"));
    }
    let body = json!({"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}], "unheard_of": null});
    assert_eq!(server.post("/v1/messages", &body).await.status, 200);
}

#[tokio::test]
async fn errors_show_numbers_as_people_write_them() {
    let server = Server::start(Setup::default()).await;
    for (field, value, expected) in [
        ("top_p", "1.1", "top_p is 1.1, it must be between 1.1754943508222875e-38 and 1"),
        ("top_p", "0", "top_p is 0, it must be between 1.1754943508222875e-38 and 1"),
        ("min_p", "1.899999976158142", "min_p is 1.899999976158142, it must be between 0 and 1"),
        ("min_p", "-1e-7", "min_p is -1e-7, it must be between 0 and 1"),
        ("temperature", "1e300", "temperature is 1e300, it must be between 0 and 100"),
        ("repetition_penalty", "0.009", "repetition_penalty is 0.009, it must be between 0.01 and 100"),
    ] {
        let body = format!("{{\"prompt\":\"a\",\"{field}\":{value}}}");
        let reply = server.send("POST", "/v1/completions", &[("Content-Type", "application/json")], body.as_bytes());
        assert_eq!(reply.await.error(), (expected.to_owned(), Some(field.to_owned())));
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_have_openai_shape() {
    let server = Server::start(Setup::default()).await;
    for path in ["/", "/v1", "/v1/nothing", "/v1/chat/completions/", "/../etc/passwd", "/v1/models/..%2f..%2fetc"] {
        let reply = server.get(path).await;
        assert_eq!(reply.status, 404, "{path}");
        reply.error();
    }
    for (method, path, allow) in
        [("GET", "/v1/chat/completions", "POST"), ("DELETE", "/v1/models", "GET,HEAD"), ("FOO", "/health", "GET,HEAD")]
    {
        let reply = server.send(method, path, &[], b"").await;
        assert_eq!(reply.status, 405, "{method} {path}");
        assert_eq!(reply.header("allow"), Some(allow));
        reply.error();
    }
}

#[tokio::test]
async fn an_unknown_model_is_a_404() {
    let server = Server::start(Setup::default()).await;
    for name in ["gpt-4", "", "../../etc/passwd", "tiny\nx"] {
        let reply = server.post("/v1/completions", &completion(json!({"model": name}))).await;
        assert_eq!(reply.status, 404);
        let (message, parameter) = reply.error();
        assert_eq!(parameter.as_deref(), Some("model"));
        assert!(message.starts_with("The model `") && !message.contains('\n'), "{message}");
    }
    let reply = server.post("/v1/completions", &completion(json!({"model": "gpt-4"}))).await;
    let expected = json!({"error": {"message": "The model `gpt-4` does not exist.", "type": "NotFoundError",
                                    "param": "model", "code": 404}});
    assert_eq!(reply.json(), expected);
}

#[tokio::test]
async fn chat_without_a_template_is_a_clear_400() {
    let server = Server::start(Setup { template: false, ..Setup::default() }).await;
    let reply = server.post("/v1/chat/completions", &chat(json!({}))).await;
    assert_eq!(reply.status, 400);
    assert!(reply.error().0.contains("no chat template"));
    assert_eq!(server.post("/v1/completions", &completion(json!({}))).await.status, 200);
}

#[tokio::test]
async fn an_overlong_prompt_is_recognisable() {
    let server = Server::start(Setup { max_model_len: 32, ..Setup::default() }).await;
    for body in [json!({"prompt": "x".repeat(40)}), json!({"prompt": "x".repeat(20), "max_tokens": 20})] {
        let reply = server.post("/v1/completions", &body).await;
        assert_eq!(reply.status, 400);
        assert!(reply.error().0.contains("maximum context length is 32 tokens"));
    }
    let reply = server.post("/v1/completions", &json!({"prompt": "x".repeat(31)})).await;
    assert_eq!(reply.json()["usage"]["completion_tokens"], 1);
}

#[tokio::test]
async fn a_hopelessly_long_text_is_refused_before_it_is_tokenized() {
    let server = Server::start(Setup { max_model_len: 32, ..Setup::default() }).await;
    let begun = Instant::now();
    let reply = server.post("/v1/completions", &json!({"prompt": "x".repeat(7 << 20)})).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let (message, parameter) = reply.error();
    assert_eq!((reply.status, parameter.as_deref()), (400, Some("prompt")));
    assert!(message.contains("maximum context length is 32 tokens") && message.contains("bytes"), "{message}");
}

#[tokio::test]
async fn a_request_larger_than_the_pool_is_refused() {
    let server = Server::start(Setup { blocks: 4, ..Setup::default() }).await;
    let reply = server.post("/v1/completions", &completion(json!({"max_tokens": 1000}))).await;
    assert_eq!(reply.status, 400);
    assert!(reply.error().0.contains("blocks"));
}

#[tokio::test]
async fn paths_and_headers_that_are_too_long_are_refused() {
    let server = Server::start(Setup::default()).await;
    for bytes in [5_000, 20_000, 40_000] {
        let reply = server.get(&format!("/v1/models/{}", "x".repeat(bytes))).await;
        assert_eq!(reply.status, 414, "a path of {bytes} bytes: {}", reply.text());
        let (name, value) = ("X-Long", "x".repeat(bytes + 4_000));
        let reply = server.send("GET", "/health", &[(name, &value)], b"").await;
        assert_eq!(reply.status, 431, "a header of {bytes} bytes: {}", reply.text());
    }
    let value = "x".repeat(6_000);
    let headers = [("X-One", value.as_str()), ("X-Two", &value), ("X-Three", &value)];
    assert_eq!(server.send("GET", "/health", &headers[..2], b"").await.status, 200);
    let reply = server.send("GET", "/health", &headers, b"").await;
    assert_eq!((reply.status, reply.json()["error"]["type"].clone()), (431, json!("RequestHeadTooLargeError")));
}

#[tokio::test]
async fn header_floods_are_refused() {
    let server = Server::start(Setup::default()).await;
    let many = (0..100).map(|number| format!("X-{number}: a\r\n")).collect::<String>();
    let long = format!("X-Long: {}\r\n", "a".repeat(100_000));
    for headers in [many, long] {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).await.expect("the server listens");
        let request = format!("GET /health HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        // The server may close before it has read everything.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(bytes.is_empty() || text.contains(" 431 "), "{text}");
    }
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn defaults_of_the_model_apply_and_requests_override_them() {
    let defaults = firebrick_server::SamplingDefaults { max_tokens: Some(3), ..Default::default() };
    let server = Server::start(Setup { defaults, ..Setup::default() }).await;
    let text = |body: Value| body["choices"][0]["message"]["content"].clone();
    assert_eq!(text(server.post("/v1/chat/completions", &chat(json!({}))).await.json()), "Hel");
    assert_eq!(text(server.post("/v1/chat/completions", &chat(json!({"max_tokens": 5}))).await.json()), "Hello");
}
