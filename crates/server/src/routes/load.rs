//! `/load`: how many generating requests are open, for balancers.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use crate::body::json_response;
use crate::state::AppState;

#[derive(Serialize)]
struct Load {
    server_load: usize,
}

/// The number of open requests.
pub async fn show(State(state): State<AppState>) -> Response {
    json_response(StatusCode::OK, &Load { server_load: state.num_active() })
}
