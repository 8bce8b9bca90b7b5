//! The engine's load in a response header, for balancers that ask for it (ORCA's `endpoint-load-metrics`).

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::engine_handle::EngineSnapshot;
use crate::state::AppState;

const FORMAT: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");
const LOAD: HeaderName = HeaderName::from_static("endpoint-load-metrics");

/// How a balancer wants to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadFormat {
    /// `TEXT name=value, name=value`.
    Text,
    /// `JSON {…}`.
    Json,
}

impl LoadFormat {
    /// What the request asks for; formats that are not known are not asked for.
    pub fn wanted(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(FORMAT)?.to_str().ok()?;
        match value.to_ascii_lowercase().as_str() {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }

    /// Says how loaded the engines are, once there is one: the fullest KV cache, and all that waits.
    pub fn insert(self, state: &AppState, headers: &mut HeaderMap) {
        let snapshots: Vec<_> = state.models().iter().map(|model| model.engine.snapshot()).collect();
        if snapshots.is_empty() {
            return;
        }
        let usage = snapshots.iter().map(EngineSnapshot::kv_usage).fold(0.0, f64::max);
        let waiting: u64 = snapshots.iter().map(|snapshot| snapshot.num_waiting).sum();
        let text = match self {
            Self::Text => {
                format!("TEXT named_metrics.kv_cache_usage_perc={usage}, named_metrics.num_requests_waiting={waiting}")
            }
            Self::Json => format!(
                "JSON {{\"named_metrics\": {{\"kv_cache_usage_perc\": {usage}, \"num_requests_waiting\": {waiting}}}}}"
            ),
        };
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(LOAD, value);
        }
    }
}
