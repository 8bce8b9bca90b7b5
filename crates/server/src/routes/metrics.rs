//! `/metrics` as Prometheus text, or as JSON when the client accepts that, and `/metrics.json`.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;

use crate::body::json_response;
use crate::error::ApiError;
use crate::metrics::render;
use crate::routes::model_info::{NamedQuery, model_of};
use crate::state::AppState;

/// Prometheus text unless JSON is asked for.
pub async fn show(State(state): State<AppState>, query: NamedQuery, headers: HeaderMap) -> Result<Response, ApiError> {
    if accepts_json(&headers) {
        return show_json(State(state), query).await;
    }
    let mut response = Response::new(Body::from(render(&state)));
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

fn accepts_json(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|range| range.split(';').next().unwrap_or_default().trim() == "application/json")
}

#[derive(Serialize)]
struct Metrics<'a> {
    model: &'a str,
    tensor_parallel_size: u32,
    gpu_memory_allocated_gb: f64,
    gpu_memory_reserved_gb: f64,
    gpu_name: &'a str,
    active_requests: usize,
    num_requests_running: u64,
    num_requests_waiting: u64,
    kv_blocks_total: u64,
    kv_blocks_used: u64,
    kv_cache_usage_perc: f64,
}

/// A few numbers as JSON; of several models those of the one that is named, or of the first.
pub async fn show_json(State(state): State<AppState>, query: NamedQuery) -> Result<Response, ApiError> {
    let model = model_of(&state, query)?;
    let snapshot = model.engine.snapshot();
    let gb = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let body = Metrics {
        model: model.name(),
        tensor_parallel_size: model.tensor_parallel_size,
        gpu_memory_allocated_gb: gb(model.device.memory_allocated_bytes),
        gpu_memory_reserved_gb: gb(model.device.memory_reserved_bytes),
        gpu_name: &model.device.name,
        active_requests: state.num_active(),
        num_requests_running: snapshot.num_running,
        num_requests_waiting: snapshot.num_waiting,
        kv_blocks_total: snapshot.blocks_total,
        kv_blocks_used: snapshot.blocks_used,
        kv_cache_usage_perc: snapshot.kv_usage(),
    };
    Ok(json_response(StatusCode::OK, &body))
}
