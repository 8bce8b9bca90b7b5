//! The server's router without a socket, in front of a scripted model that is as fast as it can be.
#![allow(dead_code, reason = "each target uses a part of it")]

use axum::body::{Body, to_bytes};
use axum::http::Request;
use firebrick_engine::Script;
use firebrick_server::{AppState, Model, ServerConfig, router};
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

#[path = "../../crates/server/tests/server/support.rs"]
pub mod support;

use support::{Setup, VOCAB};

/// What may be asked; the table of routes has more, which take no bodies.
pub const PATHS: [&str; 13] = [
    "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
    "/v1/embeddings", "/v1/score", "/v1/rerank", "/rerank", "/tokenize", "/detokenize", "/generate", "/batch_generate",
];

/// A model that says anything at all and can be held to grammars.
pub fn babbling() -> Served {
    let script = Script::Hash { vocab_size: VOCAB };
    let setup = Setup { script, max_model_len: 256, prefix_caching: true, ..Setup::default() };
    Served::start(setup.model(&["tiny"], setup.engine()))
}

pub struct Served {
    runtime: Runtime,
    router: axum::Router,
}

impl Served {
    pub fn start(model: Model) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let config = ServerConfig { log_requests: false, ..ServerConfig::default() };
        let router = runtime.block_on(async {
            let state = AppState::new(config);
            state.set_model(model);
            router(state)
        });
        Self { runtime, router }
    }

    /// The status and the whole body of an answer.
    pub fn post(&self, path: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
        let request = Request::post(path).header("content-type", "application/json").body(Body::from(body));
        let request = request.expect("a valid request");
        self.runtime.block_on(async {
            let answer = self.router.clone().oneshot(request).await.expect("routers do not fail");
            let status = answer.status().as_u16();
            let bytes = to_bytes(answer.into_body(), 256 << 20).await.expect("a whole answer");
            (status, bytes.to_vec())
        })
    }
}
