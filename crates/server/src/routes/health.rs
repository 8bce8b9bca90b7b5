//! `/health`, `/ready` and `/ping`: for probes, so they answer at once whatever the engine does.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use crate::body::json_response;
use crate::state::{AppState, DeviceKind, ModelSlot};

#[derive(Serialize)]
struct Health {
    status: &'static str,
    model: Option<String>,
    model_loaded: bool,
    gpu_available: bool,
    active_requests: usize,
    tensor_parallel_size: u32,
}

/// 200 when the model is loaded and its engine moves, also while draining; else 503.
pub async fn health(State(state): State<AppState>) -> Response {
    let slot = state.slot();
    let healthy = state.is_healthy();
    let status = match &slot {
        ModelSlot::Loading => "loading",
        ModelSlot::Failed(_) => "failed",
        ModelSlot::Ready(_) if healthy => "healthy",
        ModelSlot::Ready(_) => "unhealthy",
    };
    let models = state.models();
    let model = models.first();
    let body = Health {
        status,
        model: model.map(|model| model.name().to_owned()),
        model_loaded: model.is_some(),
        gpu_available: model.is_some_and(|model| model.device.kind == DeviceKind::Gpu),
        active_requests: state.num_active(),
        tensor_parallel_size: model.map_or(1, |model| model.tensor_parallel_size),
    };
    json_response(if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &body)
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
}

/// 200 when new work is accepted; else 503.
pub async fn ready(State(state): State<AppState>) -> Response {
    let ready = state.is_ready();
    json_response(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &Ready { ready })
}
