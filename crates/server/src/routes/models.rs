//! `/v1/models`: the served names, and for operators which models there are.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};

use crate::body::{json_response, read_json};
use crate::error::{ApiError, ErrorKind};
use crate::openai::OneOrMany;
use crate::state::{AppState, Model, ModelOrder};

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'static str,
    data: Vec<ModelCard<'a>>,
}

#[derive(Serialize)]
struct ModelCard<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: &'a str,
    parent: Option<&'static str>,
    max_model_len: u32,
    permission: Vec<Permission>,
}

#[derive(Serialize)]
struct Permission {
    id: String,
    object: &'static str,
    created: u64,
    allow_create_engine: bool,
    allow_sampling: bool,
    allow_logprobs: bool,
    allow_search_indices: bool,
    allow_view: bool,
    allow_fine_tuning: bool,
    organization: &'static str,
    group: Option<&'static str>,
    is_blocking: bool,
}

fn card<'a>(name: &'a str, model: &'a Model, created: u64) -> ModelCard<'a> {
    let permission = Permission {
        id: format!("modelperm-{name}"),
        object: "model_permission",
        created,
        allow_create_engine: false,
        allow_sampling: true,
        allow_logprobs: true,
        allow_search_indices: false,
        allow_view: true,
        allow_fine_tuning: false,
        organization: "*",
        group: None,
        is_blocking: false,
    };
    ModelCard {
        id: name,
        object: "model",
        created,
        owned_by: "firebrick",
        root: &model.root,
        parent: None,
        max_model_len: model.max_model_len,
        permission: vec![permission],
    }
}

/// All of them.
pub async fn list(State(state): State<AppState>) -> Result<Response, ApiError> {
    // 503 until there is one.
    state.model()?;
    Ok(cards(&state, &state.served().staying()))
}

fn cards(state: &AppState, models: &[Arc<Model>]) -> Response {
    let named = models.iter().flat_map(|model| model.served_names.iter().map(move |name| (name, model)));
    let cards = named.map(|(name, model)| card(name, model, state.created()));
    json_response(StatusCode::OK, &ModelList { object: "list", data: cards.collect() })
}

/// One of them; names may contain slashes.
pub async fn retrieve(State(state): State<AppState>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let model = state.model_named(Some(&name))?;
    Ok(json_response(StatusCode::OK, &card(&name, &model, state.created())))
}

/// The body of `/v1/models/load`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadRequest {
    /// A hub id or a path.
    model: String,
    /// Names that requests may use.
    served_model_name: Option<OneOrMany>,
}

/// Loads a model beside those that are served; the answer comes when it is in service.
pub async fn load(State(state): State<AppState>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let LoadRequest { model, served_model_name } = read_json(&headers, body, &state.config().limits).await?;
    let served_names = served_model_name.map(|OneOrMany(names)| names).unwrap_or_default();
    if model.is_empty() || served_names.iter().any(String::is_empty) {
        return Err(ApiError::parameter("model", "names must not be empty"));
    }
    // A client that leaves does not end the loading.
    finish(tokio::spawn(load_model(state, model, served_names))).await
}

async fn load_model(state: AppState, name: String, served_names: Vec<String>) -> Result<Response, ApiError> {
    let _alone = alone(&state)?;
    state.refuse_while_draining()?;
    let loader =
        state.loader().ok_or_else(|| ApiError::new(ErrorKind::NotImplemented, "this server loads no models"))?;
    let names = if served_names.is_empty() { std::slice::from_ref(&name) } else { &served_names[..] };
    state.served().check_free(names)?;
    let models = state.models();
    let allocated_bytes = models.iter().map(|model| model.device.memory_reserved_bytes).sum();
    let order = ModelOrder { model: name, served_names, allocated_bytes, num_models: models.len() };
    let loaded = tokio::task::spawn_blocking(move || loader(order)).await;
    let loaded = loaded.map_err(|_| ApiError::new(ErrorKind::Internal, "loading the model failed by a bug"))?;
    let model =
        loaded.map_err(|reason| ApiError::parameter("model", format!("the model cannot be loaded: {reason}")))?;
    let model = state.served().add(model)?;
    tracing::info!("model {} loaded by the operator", model.name().escape_debug());
    Ok(cards(&state, &[model]))
}

/// The body of `/v1/models/unload`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnloadRequest {
    /// One of the model's names.
    model: String,
    /// Seconds that its open requests have to finish.
    timeout: Option<f64>,
}

#[derive(Serialize)]
struct Unloaded {
    model: String,
    unloaded: bool,
    all_requests_finished: bool,
}

/// Takes a model out of service; the answer comes when its memory is free.
pub async fn unload(State(state): State<AppState>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let UnloadRequest { model, timeout } = read_json(&headers, body, &state.config().limits).await?;
    let seconds = timeout.unwrap_or(UNLOAD_SECONDS);
    if !(0.0..=UNLOAD_SECONDS_MAX).contains(&seconds) {
        let message = format!("timeout is {seconds}, but must be from 0 to {UNLOAD_SECONDS_MAX} seconds");
        return Err(ApiError::parameter("timeout", message));
    }
    finish(tokio::spawn(unload_model(state, model, Duration::from_secs_f64(seconds)))).await
}

/// How long open requests may take to finish, unless the operator says; and at most.
const UNLOAD_SECONDS: f64 = 30.0;
const UNLOAD_SECONDS_MAX: f64 = 3600.0;

async fn unload_model(state: AppState, name: String, patience: Duration) -> Result<Response, ApiError> {
    let _alone = alone(&state)?;
    let finished = state.served().remove(&name, patience).await?;
    tracing::info!("model {} unloaded by the operator", name.escape_debug());
    let body = Unloaded { model: name, unloaded: true, all_requests_finished: finished };
    Ok(json_response(StatusCode::OK, &body))
}

/// One model after the other is loaded or unloaded, because memory is divided by what is there.
fn alone(state: &AppState) -> Result<tokio::sync::MutexGuard<'_, ()>, ApiError> {
    let busy = |_| ApiError::new(ErrorKind::Unavailable, "another model is being loaded or unloaded");
    state.changes().try_lock().map_err(busy)
}

async fn finish(task: tokio::task::JoinHandle<Result<Response, ApiError>>) -> Result<Response, ApiError> {
    task.await.unwrap_or_else(|_| Err(ApiError::new(ErrorKind::Internal, "internal error")))
}
