//! Batch files: each line is answered, whatever is wrong with it, and no line hurts another.

use firebrick_server::BatchFile;
use serde_json::{Value, json};

use crate::support::{Server, Setup, says};

fn line(custom_id: &str, url: &str, body: Value) -> String {
    json!({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).to_string()
}

async fn answer(batch: &BatchFile, number: u64, line: &str) -> Value {
    let answer = batch.answer(number, line.as_bytes()).await;
    assert!(!answer.line.contains('\n'));
    let value: Value = serde_json::from_str(&answer.line).expect("a line of JSON");
    assert_eq!(answer.succeeded, value["error"].is_null(), "{value}");
    value
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_is_answered_as_its_request_over_a_connection_is() {
    let server = Server::start(Setup { script: says("Hello world"), ..Setup::default() }).await;
    let batch = BatchFile::new(&server.state);
    let chat = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]});
    let got = answer(&batch, 1, &line("first", "/v1/chat/completions", chat.clone())).await;
    let over_http = server.post("/v1/chat/completions", &chat).await.json();
    assert_eq!((&got["custom_id"], &got["response"]["status_code"]), (&json!("first"), &json!(200)));
    assert_eq!(got["response"]["body"]["choices"], over_http["choices"]);
    assert_eq!(got["response"]["body"]["usage"], over_http["usage"]);
    assert_eq!(got["response"]["request_id"].as_str().map(str::len), Some(32));
    assert!(got["id"].as_str().is_some_and(|id| id.starts_with("batch_req_")));
    let text = answer(&batch, 2, &line("second", "/v1/completions", json!({"model": "tiny", "prompt": "a"}))).await;
    assert_eq!(text["response"]["body"]["choices"][0]["text"], "Hello world");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_is_answered_with_its_number_or_with_the_servers_error() {
    let server = Server::start(Setup::default()).await;
    let batch = BatchFile::new(&server.state);
    let prompt = json!({"model": "tiny", "prompt": "a"});
    let with = |name: &str, value: Value| {
        let mut body = prompt.clone();
        body[name] = value;
        line("x", "/v1/completions", body)
    };
    for (bad, id, part) in [
        ("{".to_owned(), Value::Null, "line 7: the body is not valid JSON"),
        ("[]".to_owned(), Value::Null, "line 7: "),
        (r#"{"custom_id": "x", "method": "POST", "url": "/v1/completions"}"#.to_owned(), json!("x"), "`body`"),
        (line("x", "/v1/completions", prompt.clone()).replace("POST", "GET"), json!("x"), "line 7: method"),
        (line("x", "http://169.254.169.254/", prompt.clone()), json!("x"), "line 7: url"),
        (line("x", "v1/completions", prompt.clone()), json!("x"), "line 7: url"),
        (with("stream", json!(true)), json!("x"), "body.stream"),
        (with("background", json!(true)), json!("x"), "body.background"),
    ] {
        let got = answer(&batch, 7, &bad).await;
        assert_eq!((&got["custom_id"], &got["response"]), (&id, &Value::Null), "{bad}");
        assert!(got["error"]["message"].as_str().is_some_and(|message| message.contains(part)), "{got}");
    }
    for (bad, status, part) in [
        (with("temperature", json!(-1)), 400, "temperature"),
        (with("model", json!("other")), 404, "does not exist"),
        (line("x", "/v1/nothing", prompt.clone()), 404, "no such path"),
        (line("x", "/v1/models", prompt.clone()), 405, "method"),
        (line("x", "/admin/pause", prompt.clone()), 404, "no such path"),
    ] {
        let got = answer(&batch, 7, &bad).await;
        assert_eq!((&got["custom_id"], &got["response"]["status_code"]), (&json!("x"), &json!(status)), "{bad}");
        assert_eq!(got["response"]["body"]["error"]["message"], got["error"]["message"]);
        assert!(got["error"]["message"].as_str().is_some_and(|message| message.contains(part)), "{got}");
    }
    let good = answer(&batch, 8, &line("good", "/v1/completions", prompt)).await;
    assert_eq!(good["response"]["status_code"], 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_waited_for() {
    let server = Server::start(Setup { max_num_seqs: 1, max_waiting: 1, step_ms: 1, ..Setup::default() }).await;
    let batch = BatchFile::new(&server.state);
    let asked = line("x", "/v1/completions", json!({"model": "tiny", "prompt": "a"}));
    let answers = futures::future::join_all((0..16).map(|number| answer(&batch, number, &asked))).await;
    assert!(answers.iter().all(|answer| answer["response"]["status_code"] == 200));
    assert!(
        server.metric("vllm:admission_rejections_total{model_name=\"tiny\",engine=\"0\",reason=\"queue_full\"}").await
            > 0.0,
        "the queue was never full"
    );
}
