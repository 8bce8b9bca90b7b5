//! `/admin/…`: what an operator may look at and switch. These routes exist only where an admin key is set.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use crate::body::json_response;
use crate::open_requests::OpenRequestInfo;
use crate::state::AppState;

#[derive(Serialize)]
struct RequestList {
    object: &'static str,
    data: Vec<OpenRequestInfo>,
}

/// The open generating requests, the oldest first.
pub async fn list_requests(State(state): State<AppState>) -> Response {
    json_response(StatusCode::OK, &RequestList { object: "list", data: state.open_requests().list() })
}

#[derive(Serialize)]
struct Admission {
    paused: bool,
    active_requests: usize,
}

fn admission(state: &AppState) -> Response {
    json_response(StatusCode::OK, &Admission { paused: state.is_paused(), active_requests: state.num_active() })
}

/// Refuses new requests and turns `/ready` to 503, so that a balancer goes elsewhere; open ones go on.
pub async fn pause(State(state): State<AppState>) -> Response {
    state.set_paused(true);
    tracing::info!("paused by the operator: no new requests");
    admission(&state)
}

/// Accepts requests again.
pub async fn resume(State(state): State<AppState>) -> Response {
    state.set_paused(false);
    tracing::info!("resumed by the operator");
    admission(&state)
}
