//! `/version`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use crate::body::json_response;
use crate::state::AppState;

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

/// The server's version.
pub async fn show(State(state): State<AppState>) -> Response {
    json_response(StatusCode::OK, &Version { version: state.config().version })
}
