//! `/v1/models`: the served names.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use crate::body::json_response;
use crate::error::ApiError;
use crate::state::{AppState, Model};

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
    let model = state.model()?;
    let cards = model.served_names.iter().map(|name| card(name, &model, state.created()));
    Ok(json_response(StatusCode::OK, &ModelList { object: "list", data: cards.collect() }))
}

/// One of them; names may contain slashes.
pub async fn retrieve(State(state): State<AppState>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let model = state.model_named(Some(&name))?;
    Ok(json_response(StatusCode::OK, &card(&name, &model, state.created())))
}
