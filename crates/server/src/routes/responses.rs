//! `/v1/responses`: a text or items in, a response out; kept responses by their id.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use crate::answer::Format;
use crate::auth::Caller;
use crate::body::json_response;
use crate::error::{ApiError, ErrorKind};
use crate::incoming::Incoming;
use crate::responses::{StoredResponse, draft};
use crate::state::AppState;

/// Answers, streams, or begins to generate behind.
pub async fn create(incoming: Incoming) -> Result<Response, ApiError> {
    let read = |state: &AppState, caller, body| {
        let (format, draft) = draft(state, caller, body)?;
        Ok((Format::Response(format), draft))
    };
    incoming.serve("response", read).await
}

/// A kept response.
pub async fn retrieve(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let response = state.responses().get(caller, &id).ok_or_else(|| not_found(&id))?;
    Ok(json_response(StatusCode::OK, &response.object))
}

/// Forgets a kept response; one that is still being generated is ended.
pub async fn delete(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    if !state.responses().delete(caller, &id) {
        return Err(not_found(&id));
    }
    Ok(json_response(StatusCode::OK, &json!({"id": id, "object": "response", "deleted": true})))
}

/// Ends a response that is generated in the background.
pub async fn cancel(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    // Others are never running, so that this changes nothing of them.
    let StoredResponse { object, .. } = state.responses().cancel(caller, &id).ok_or_else(|| not_found(&id))?;
    if object["background"] != json!(true) {
        let message = "only background responses can be cancelled; close the connection to end another";
        return Err(ApiError::parameter("response_id", message));
    }
    Ok(json_response(StatusCode::OK, &object))
}

fn not_found(id: &str) -> ApiError {
    let id: String = id.chars().take(100).collect();
    let message = format!("Response with id {id:?} not found.");
    ApiError { kind: ErrorKind::NotFound, message, param: Some("response_id".to_owned()) }
}
