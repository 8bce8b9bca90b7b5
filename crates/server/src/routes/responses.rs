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
    Ok(json_response(StatusCode::OK, &kept(&state, caller, &id)?.object))
}

/// Forgets a kept response; one that is still being generated is ended.
pub async fn delete(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let response = kept(&state, caller, &id)?;
    if let Some(running) = response.running {
        running.abort();
    }
    state.responses().delete(caller, &id);
    Ok(json_response(StatusCode::OK, &json!({"id": id, "object": "response", "deleted": true})))
}

/// Ends a response that is generated in the background.
pub async fn cancel(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let StoredResponse { mut object, messages, running } = kept(&state, caller, &id)?;
    if object["background"] != json!(true) {
        let message = "only background responses can be cancelled; close the connection to end another";
        return Err(ApiError::parameter("response_id", message));
    }
    if let Some(running) = running {
        running.abort();
        object["status"] = json!("cancelled");
        let cancelled = StoredResponse { object: object.clone(), messages, running: None };
        state.responses().update(caller, &id, cancelled);
    }
    Ok(json_response(StatusCode::OK, &object))
}

fn kept(state: &AppState, caller: Caller, id: &str) -> Result<StoredResponse, ApiError> {
    state.responses().get(caller, id).ok_or_else(|| {
        let id: String = id.chars().take(100).collect();
        let message = format!("Response with id {id:?} not found.");
        ApiError { kind: ErrorKind::NotFound, message, param: Some("response_id".to_owned()) }
    })
}
