//! `/v1/responses`: a text or items in, a response out; kept responses by their id.

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::json;

use crate::answer::Format;
use crate::auth::Caller;
use crate::body::{json_response, read_json};
use crate::error::{ApiError, ErrorKind};
use crate::responses::{StoredResponse, draft};
use crate::serve_request::serve_request;
use crate::state::AppState;
use crate::telemetry::RequestContext;

/// Answers, streams, or begins to generate behind.
pub async fn create(
    State(state): State<AppState>,
    Extension(context): Extension<RequestContext>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let read = async {
        let body = read_json(&headers, body, &state.config().limits).await?;
        let (format, draft) = draft(&state, caller, body)?;
        Ok((Format::Response(format), draft))
    };
    serve_request(&state, context, "response", read).await
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
