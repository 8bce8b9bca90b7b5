//! Several models in one server: told apart by name, loaded and unloaded while others serve.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use firebrick_server::{ApiKeys, EngineHandle, ModelOrder, ServerConfig};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::support::{Reply, Server, Setup, repeats, says};

const ADMIN: (&str, &str) = ("Authorization", "Bearer chief");

fn setup(text: &str) -> Setup {
    let config = ServerConfig { admin_keys: ApiKeys::new(["chief"]), log_requests: false, ..ServerConfig::default() };
    Setup { script: says(text), config, ..Setup::default() }
}

/// A server with the models `tiny`, which says `first`, and `second`, which is as `other` says.
async fn two(other: Setup) -> (Server, EngineHandle) {
    let server = Server::start(setup("first")).await;
    let engine = other.engine();
    server.state.add_model(other.model(&["second"], engine.clone())).expect("the name is free");
    (server, engine)
}

async fn text(server: &Server, model: Option<&str>) -> Value {
    let body = json!({"model": model, "prompt": "a", "max_tokens": 32});
    server.post("/v1/completions", &body).await.json()["choices"][0]["text"].clone()
}

async fn operate(server: &Server, path: &str, body: Value) -> Reply {
    let headers = [("Content-Type", "application/json"), ADMIN];
    server.send("POST", path, &headers, body.to_string().as_bytes()).await
}

fn names(list: &Value) -> Vec<&str> {
    list["data"].as_array().expect("a list").iter().filter_map(|card| card["id"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_reaches_the_model_that_it_names() {
    let (server, _) = two(setup("other")).await;
    assert_eq!(text(&server, Some("tiny")).await, "first");
    assert_eq!(text(&server, Some("second")).await, "other");
    assert_eq!(text(&server, None).await, "first");
    let unknown = server.post("/v1/completions", &json!({"model": "third", "prompt": "a"})).await;
    assert_eq!((unknown.status, unknown.error().0.as_str()), (404, "The model `third` does not exist."));
    assert_eq!(names(&server.get("/v1/models").await.json()), ["tiny", "org/tiny", "second"]);
    assert_eq!(server.get("/v1/models/second").await.json()["id"], "second");
    for path in ["/model_info", "/metrics.json"] {
        assert_eq!(server.get(path).await.json()["model"], "tiny");
        assert_eq!(server.get(&format!("{path}?model=second")).await.json()["model"], "second");
        assert_eq!(server.get(&format!("{path}?model=third")).await.status, 404);
        let twice = server.get(&format!("{path}?model=tiny&model=second")).await;
        assert_eq!((twice.status, twice.error().1.as_deref()), (400, Some("model")));
    }
    let tokens = server.post("/tokenize", &json!({"model": "second", "prompt": "ab"})).await.json();
    assert_eq!(tokens["count"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_told_apart_and_a_family_stands_once() {
    let (server, _) = two(setup("other")).await;
    text(&server, Some("second")).await;
    text(&server, Some("second")).await;
    server.post("/v1/completions", &json!({"model": "third", "prompt": "a"})).await;
    let count = async |series: &str| server.metric(series).await;
    assert_eq!(count("vllm:generation_tokens_total{model_name=\"tiny\"").await, 0.0);
    assert_eq!(count("vllm:generation_tokens_total{model_name=\"second\"").await, 12.0);
    assert_eq!(count("vllm_requests_total{model=\"second\",status=\"success\"}").await, 2.0);
    assert_eq!(count("vllm_requests_total{model=\"tiny\",status=\"error\"}").await, 1.0);
    let text = server.get("/metrics").await.text();
    let mut families: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let all = families.len();
    families.sort_unstable();
    families.dedup();
    assert_eq!(families.len(), all, "a family stands twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_belongs_to_one_model() {
    let (server, engine) = two(setup("other")).await;
    for name in ["second", "org/tiny"] {
        let refused = server.state.add_model(setup("third").model(&["third", name], engine.clone()));
        assert!(refused.is_err_and(|reason| reason.contains(name)));
    }
    assert_eq!(names(&server.get("/v1/models").await.json()).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_several_that_dies_is_seen() {
    let dying = Setup { script: repeats(b'x'), fail_at: Some(2), ..setup("") };
    let (server, engine) = two(dying).await;
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.post("/v1/completions", &json!({"model": "second", "prompt": "a"})).await.status, 500);
    // The requests are told before the thread has ended.
    engine.dead().await;
    assert_eq!(server.get("/health").await.status, 503);
    assert_eq!(text(&server, Some("tiny")).await, "first", "the other one is well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_several_models_is_ready_when_all_are_there() {
    let server = Server::start_loading(&setup("first")).await;
    server.state.add_model(setup("first").model(&["tiny"], server.engine.clone())).expect("the first");
    assert_eq!(server.get("/ready").await.status, 503);
    let loading = server.post("/v1/completions", &json!({"model": "second", "prompt": "a"})).await;
    assert_eq!((loading.status, loading.error().0.as_str()), (503, "the model is still loading"));
    server.state.set_started();
    assert_eq!(server.get("/ready").await.status, 200);
    assert_eq!(server.post("/v1/completions", &json!({"model": "second", "prompt": "a"})).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_loaded_at_run_time() {
    let server = Server::start(setup("first")).await;
    let order = json!({"model": "org/third", "served_model_name": ["third"]});
    assert_eq!(operate(&server, "/v1/models/load", order.clone()).await.status, 501, "nobody can load");
    let (begun, released) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (loader_begun, loader_released) = (begun.clone(), released.clone());
    server.state.set_loader(Arc::new(move |order: ModelOrder| {
        assert_eq!((order.num_models, order.allocated_bytes), (1, 2 << 30));
        let setup = setup("third");
        match order.model.as_str() {
            "org/third" => {
                loader_begun.store(true, Ordering::Release);
                while !loader_released.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(setup.model(&["third"], setup.engine()))
            }
            "panics" => panic!("a planned panic"),
            _ => Err("there is no such file".to_owned()),
        }
    }));
    assert_eq!(server.post("/v1/models/load", &order).await.status, 401, "without the key");
    let failed = operate(&server, "/v1/models/load", json!({"model": "missing"})).await;
    assert_eq!((failed.status, failed.error().0.contains("no such file")), (400, true));
    assert_eq!(operate(&server, "/v1/models/load", json!({"model": "panics"})).await.status, 500);
    let taken = operate(&server, "/v1/models/load", json!({"model": "x", "served_model_name": "tiny"})).await;
    assert_eq!((taken.status, taken.error().0.contains("already")), (400, true));
    let first = operate(&server, "/v1/models/load", order);
    let meanwhile = async {
        while !begun.load(Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let second = operate(&server, "/v1/models/load", json!({"model": "org/fourth"})).await;
        assert_eq!((second.status, second.error().0.contains("another model")), (503, true), "one after the other");
        let unloading = operate(&server, "/v1/models/unload", json!({"model": "tiny"})).await;
        assert_eq!(unloading.status, 503, "also to unload one");
        assert_eq!(text(&server, None).await, "first", "requests are answered all the while");
        released.store(true, Ordering::Release);
    };
    let (first, ()) = tokio::join!(first, meanwhile);
    assert_eq!((first.status, names(&first.json())), (200, vec!["third"]));
    assert_eq!(text(&server, Some("third")).await, "third");
    assert_eq!(names(&server.get("/v1/models").await.json()), ["tiny", "org/tiny", "third"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_unloaded_finishes_its_requests() {
    let (server, engine) = two(Setup { script: repeats(b'x'), step_ms: 5, ..setup("") }).await;
    let body = json!({"model": "second", "prompt": "a", "max_tokens": 200, "stream": true});
    let mut stream = server.open_post("/v1/completions", &body).await;
    while engine.snapshot().num_running == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let unloading = operate(&server, "/v1/models/unload", json!({"model": "second"}));
    let meanwhile = async {
        while names(&server.get("/v1/models").await.json()).len() > 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let refused = server.post("/v1/completions", &json!({"model": "second", "prompt": "a"})).await;
        assert_eq!((refused.status, refused.error().0.contains("being unloaded")), (503, true));
        assert_eq!(names(&server.get("/v1/models").await.json()), ["tiny", "org/tiny"]);
        assert_eq!(server.get("/health").await.status, 200);
    };
    let (unloaded, ()) = tokio::join!(unloading, meanwhile);
    let expected = json!({"model": "second", "unloaded": true, "all_requests_finished": true});
    assert_eq!((unloaded.status, unloaded.json()), (200, expected));
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("a whole stream");
    let events = Reply::parse(&bytes).events();
    assert_eq!(events.last(), Some(&json!("[DONE]")));
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "length");
    assert_eq!(server.post("/v1/completions", &json!({"model": "second", "prompt": "a"})).await.status, 404);
    assert!(!server.get("/metrics").await.text().contains("\"second\""));
    assert_eq!(text(&server, Some("tiny")).await, "first");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_take_too_long_are_told_that_their_model_leaves() {
    let (server, engine) = two(Setup { script: repeats(b'x'), step_ms: 5, ..setup("") }).await;
    let body = json!({"model": "second", "prompt": "a", "max_tokens": 4000, "stream": true});
    let streaming = server.post("/v1/completions", &body);
    let unloading = async {
        while engine.snapshot().num_running == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        operate(&server, "/v1/models/unload", json!({"model": "second", "timeout": 0.1})).await
    };
    let (streamed, unloaded) = tokio::join!(streaming, unloading);
    assert_eq!((unloaded.status, &unloaded.json()["all_requests_finished"]), (200, &json!(false)));
    let events = streamed.events();
    assert_eq!(events.last(), Some(&json!("[DONE]")));
    let message = events[events.len() - 2]["error"]["message"].as_str().expect("an error");
    assert!(message.contains("being unloaded"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_model_stays_and_unknown_ones_are_not_found() {
    let server = Server::start(setup("first")).await;
    let only = operate(&server, "/v1/models/unload", json!({"model": "tiny"})).await;
    assert_eq!((only.status, only.error().0.contains("only model")), (400, true));
    assert_eq!(operate(&server, "/v1/models/unload", json!({"model": "x"})).await.status, 404);
    for timeout in [-1.0, 1e9] {
        let wrong = operate(&server, "/v1/models/unload", json!({"model": "tiny", "timeout": timeout})).await;
        assert_eq!((wrong.status, wrong.error().0.contains("timeout")), (400, true));
    }
    assert_eq!(text(&server, None).await, "first");
}
