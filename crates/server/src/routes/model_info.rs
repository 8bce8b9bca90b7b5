//! `/model_info`.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use crate::body::json_response;
use crate::error::ApiError;
use crate::state::{AppState, Model};

#[derive(Deserialize)]
pub struct Named {
    model: Option<String>,
}

/// What a URL says as `?model=NAME`.
pub type NamedQuery = Result<Query<Named>, QueryRejection>;

/// The model that a URL names, or the first.
pub fn model_of(state: &AppState, query: NamedQuery) -> Result<Arc<Model>, ApiError> {
    let wrong = |_| ApiError::parameter("model", "the query must be ?model=NAME");
    let Query(Named { model }) = query.map_err(wrong)?;
    state.model_named(model.as_deref())
}

#[derive(Serialize)]
struct ModelInfo<'a> {
    model: &'a str,
    max_model_len: u32,
    tensor_parallel_size: u32,
}

/// What is served; of several models the one that is named, or the first.
pub async fn show(State(state): State<AppState>, query: NamedQuery) -> Result<Response, ApiError> {
    let model = model_of(&state, query)?;
    let body = ModelInfo {
        model: model.name(),
        max_model_len: model.max_model_len,
        tensor_parallel_size: model.tensor_parallel_size,
    };
    Ok(json_response(StatusCode::OK, &body))
}
