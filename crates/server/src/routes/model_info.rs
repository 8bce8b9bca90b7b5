//! `/model_info`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use crate::body::json_response;
use crate::error::ApiError;
use crate::state::AppState;

#[derive(Serialize)]
struct ModelInfo<'a> {
    model: &'a str,
    max_model_len: u32,
    tensor_parallel_size: u32,
}

/// What is served.
pub async fn show(State(state): State<AppState>) -> Result<Response, ApiError> {
    let model = state.model()?;
    let body = ModelInfo {
        model: model.name(),
        max_model_len: model.max_model_len,
        tensor_parallel_size: model.tensor_parallel_size,
    };
    Ok(json_response(StatusCode::OK, &body))
}
