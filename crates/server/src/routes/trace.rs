//! `/v1/trace`: the engine's own state after each step as an event stream, for pages that draw it, and the tokens of a
//! block. Only where the command line asks for it, and only for who has an admin key: it shows what others ask.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use firebrick_engine::{BlockId, TokenId};
use futures::stream;
use serde::{Deserialize, Serialize};

use crate::body::json_response;
use crate::engine_handle::{EngineHandle, EngineState, SubmitError};
use crate::error::{ApiError, ErrorKind};
use crate::state::AppState;
use crate::step_watch::{Shown, Watching};

/// Where the steps are.
pub const STEPS_PATH: &str = "/v1/trace";
/// Where a block's tokens are.
pub const BLOCK_PATH: &str = "/v1/trace/blocks/{block}";

/// What may be asked about the stream.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceQuery {
    model: Option<String>,
    steps_per_second: Option<u32>,
}

/// What may be asked about a block.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockQuery {
    model: Option<String>,
}

/// The first event: what is being watched.
#[derive(Serialize)]
struct Facts<'a> {
    model: &'a str,
    device: &'a str,
    version: &'a str,
    max_model_len: u32,
    max_num_seqs: u32,
    kv_bytes_per_token: u64,
    enable_prefix_caching: bool,
}

/// One event for the facts, then one for each step.
pub async fn watch(
    State(state): State<AppState>,
    query: Result<Query<TraceQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    /// As often as a screen draws; more is for programs.
    const STEPS_PER_SECOND: u32 = 60;
    const STEPS_PER_SECOND_MAX: u32 = 1000;
    let Query(query) = query.map_err(not_understood)?;
    let steps_per_second = query.steps_per_second.unwrap_or(STEPS_PER_SECOND);
    if !(1..=STEPS_PER_SECOND_MAX).contains(&steps_per_second) {
        let message = format!("steps_per_second is {steps_per_second}, but must be 1 to {STEPS_PER_SECOND_MAX}");
        return Err(ApiError::parameter("steps_per_second", message));
    }
    let model = state.model_named(query.model.as_deref())?;
    let watching = model.engine.watch(Duration::from_secs(1) / steps_per_second).await.map_err(unavailable)?;
    let config = model.engine.config();
    let facts = Facts {
        model: model.name(),
        device: &model.device.name,
        version: state.config().version,
        max_model_len: model.max_model_len,
        max_num_seqs: config.max_num_seqs,
        kv_bytes_per_token: model.kv_bytes_per_token,
        enable_prefix_caching: config.enable_prefix_caching,
    };
    let first = event("server", &facts);
    let mut response =
        Response::new(Body::from_stream(events(first, Watcher { watching, engine: model.engine.clone() })));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn not_understood(rejection: axum::extract::rejection::QueryRejection) -> ApiError {
    ApiError::new(ErrorKind::BadRequest, rejection.body_text())
}

fn unavailable(error: SubmitError) -> ApiError {
    ApiError::new(ErrorKind::Unavailable, error.to_string())
}

fn event<T: Serialize>(name: &str, value: &T) -> Bytes {
    let json = serde_json::to_string(value).expect("events have no maps");
    format!("event: {name}\ndata: {json}\n\n").into()
}

/// Holds the engine and not the model, which may be unloaded while it is watched.
struct Watcher {
    watching: Watching,
    engine: EngineHandle,
}

#[derive(Serialize)]
struct End {
    reason: String,
}

impl Watcher {
    /// The next event; `None` once the engine has ended.
    async fn next(&mut self) -> Option<Bytes> {
        /// How long an engine that has gone idle may leave a slow watcher with an old state.
        const PATIENCE: Duration = Duration::from_millis(250);
        loop {
            match tokio::time::timeout(PATIENCE, self.watching.steps.recv()).await {
                Ok(shown) => return shown.map(|shown| step_event(&shown)),
                Err(_) if self.watching.is_behind() => self.engine.wake(),
                Err(_) => {}
            }
        }
    }

    fn end(&self) -> Bytes {
        let reason = match self.engine.state() {
            EngineState::Dead(reason) => reason,
            _ => "the server is shutting down, or the model was unloaded".to_owned(),
        };
        event("end", &End { reason })
    }
}

/// `missed` in front of what is the same for all watchers.
fn step_event(shown: &Shown) -> Bytes {
    let json = shown.step.json();
    let mut bytes = format!("data: {{\"missed\":{},", shown.missed).into_bytes();
    bytes.extend_from_slice(&json[1..]);
    bytes.extend_from_slice(b"\n\n");
    bytes.into()
}

fn events(first: Bytes, watcher: Watcher) -> impl futures::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    stream::unfold((Some(first), Some(watcher)), |(first, watcher)| async move {
        let mut watcher = watcher?;
        if let Some(first) = first {
            return Some((Ok(first), (None, Some(watcher))));
        }
        match watcher.next().await {
            Some(step) => Some((Ok(step), (None, Some(watcher)))),
            None => Some((Ok(watcher.end()), (None, None))),
        }
    })
}

#[derive(Serialize)]
struct BlockContent {
    block: u32,
    tokens: Vec<BlockToken>,
}

#[derive(Serialize)]
struct BlockToken {
    token: TokenId,
    text: String,
}

/// The tokens whose keys and values a block holds now.
pub async fn block(
    State(state): State<AppState>,
    Path(block): Path<String>,
    query: Result<Query<BlockQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(not_understood)?;
    let model = state.model_named(query.model.as_deref())?;
    let total = model.engine.snapshot().blocks_total;
    let wrong = || {
        let message = format!("there is no such block: they are numbered from 0 to {}", total.saturating_sub(1));
        ApiError::new(ErrorKind::NotFound, message)
    };
    let block: u32 = block.parse().ok().filter(|&block| u64::from(block) < total).ok_or_else(wrong)?;
    let tokens = model.engine.tokens_in_block(BlockId(block)).await.map_err(unavailable)?;
    let text = |token: TokenId| {
        let mut detokenizer = model.tokenizer.detokenizer(false);
        BlockToken { token, text: detokenizer.push(token) + &detokenizer.finish() }
    };
    Ok(json_response(StatusCode::OK, &BlockContent { block, tokens: tokens.into_iter().map(text).collect() }))
}
