//! One generating request as spans: the request itself and the engine's phases below it, with vLLM's attributes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::http::HeaderMap;
use serde_json::{Value, json};

/// What the engine thread notes about a request while it runs.
#[derive(Debug, Default)]
pub(crate) struct Phases {
    /// The step with its first tokens began.
    pub scheduled: OnceLock<Instant>,
    /// Its first token was there.
    pub first_token: OnceLock<Instant>,
    /// Tokens of all its choices so far.
    pub tokens: AtomicU64,
}

/// The caller's own span, from the header `traceparent` (W3C Trace Context).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace: String,
    span: String,
    sampled: bool,
}

impl TraceParent {
    /// Reads the header; anything but version 00 in its exact form is none.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get("traceparent")?.to_str().ok()?;
        let parts: Vec<&str> = text.split('-').collect();
        let [version, trace, span, flags] = parts[..] else { return None };
        let is_id = |id: &str, length| {
            let hex = id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
            id.len() == length && hex && id.bytes().any(|byte| byte != b'0')
        };
        let known = version == "00" && is_id(trace, 32) && is_id(span, 16) && flags.len() == 2;
        let flags = u8::from_str_radix(flags, 16).ok().filter(|_| known)?;
        Some(Self { trace: trace.to_owned(), span: span.to_owned(), sampled: flags & 1 == 1 })
    }
}

/// A request that is traced, in numbers; no text of it is kept.
pub(crate) struct RequestTrace {
    pub id: String,
    pub parent: Option<TraceParent>,
    pub arrived: Instant,
    pub model: String,
    pub temperature: f32,
    pub top_p: f32,
    pub max_tokens: u32,
    pub n: u32,
    pub prompts: usize,
    pub prompt_tokens: u64,
    pub phases: Vec<std::sync::Arc<Phases>>,
}

/// A finished request.
pub(crate) struct EndedTrace {
    pub request: RequestTrace,
    pub ended: Instant,
    pub is_error: bool,
}

impl EndedTrace {
    /// Whether it is to be exported: not if the caller's tracing has decided against it.
    pub fn is_wanted(&self) -> bool {
        self.request.parent.as_ref().is_none_or(|parent| parent.sampled)
    }

    /// Its spans in OTLP's JSON. `ids` makes 32 hexadecimal digits, `nanoseconds` turns a time into those since 1970.
    pub fn spans(&self, ids: &dyn Fn() -> String, nanoseconds: &dyn Fn(Instant) -> u128) -> Vec<Value> {
        let request = &self.request;
        let trace = request.parent.as_ref().map_or_else(ids, |parent| parent.trace.clone());
        let root = short(ids());
        let earliest = |time: fn(&Phases) -> Option<Instant>| request.phases.iter().filter_map(|p| time(p)).min();
        let scheduled = earliest(|phases| phases.scheduled.get().copied());
        let first_token = earliest(|phases| phases.first_token.get().copied());
        let span = |id: &str, parent: Option<&str>, name: &str, from: Instant, to: Instant| {
            let mut span = json!({
                "traceId": trace, "spanId": id, "name": name, "kind": if name == REQUEST { 2 } else { 1 },
                "startTimeUnixNano": nanoseconds(from).to_string(), "endTimeUnixNano": nanoseconds(to).to_string(),
            });
            if let Some(parent) = parent {
                span["parentSpanId"] = json!(parent);
            }
            span
        };
        let parent = request.parent.as_ref().map(|parent| parent.span.as_str());
        let mut whole = span(&root, parent, REQUEST, request.arrived, self.ended);
        whole["attributes"] = self.attributes(scheduled, first_token);
        whole["status"] = json!({"code": if self.is_error { 2 } else { 1 }});
        let mut spans = vec![whole];
        let mut phase = |name, from: Option<Instant>, to: Option<Instant>| {
            if let (Some(from), Some(to)) = (from, to) {
                spans.push(span(&short(ids()), Some(&root), name, from, to));
            }
        };
        phase("queue", Some(request.arrived), scheduled);
        phase("prefill", scheduled, first_token);
        phase("decode", first_token, Some(self.ended));
        spans
    }

    fn attributes(&self, scheduled: Option<Instant>, first_token: Option<Instant>) -> Value {
        let request = &self.request;
        let text = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
        let whole = |key: &str, value: u64| json!({"key": key, "value": {"intValue": value.to_string()}});
        let real = |key: &str, value: f64| json!({"key": key, "value": {"doubleValue": value}});
        let tokens = request.phases.iter().map(|phases| phases.tokens.load(Ordering::Relaxed)).sum();
        let mut attributes = vec![
            text("gen_ai.request.id", &request.id),
            text("gen_ai.response.model", &request.model),
            real("gen_ai.request.temperature", request.temperature.into()),
            real("gen_ai.request.top_p", request.top_p.into()),
            whole("gen_ai.request.max_tokens", request.max_tokens.into()),
            whole("gen_ai.request.n", request.n.into()),
            whole("gen_ai.usage.prompt_tokens", request.prompt_tokens),
            whole("gen_ai.usage.completion_tokens", tokens),
            whole("gen_ai.usage.num_sequences", u64::from(request.n) * request.prompts as u64),
        ];
        let mut latency = |name: &str, from: Option<Instant>, to: Option<Instant>| {
            if let (Some(from), Some(to)) = (from, to) {
                let seconds = to.saturating_duration_since(from).as_secs_f64();
                attributes.push(real(&format!("gen_ai.latency.{name}"), seconds));
            }
        };
        let (arrived, ended) = (Some(request.arrived), Some(self.ended));
        latency("e2e", arrived, ended);
        latency("time_in_queue", arrived, scheduled);
        latency("time_to_first_token", arrived, first_token);
        latency("time_in_model_prefill", scheduled, first_token);
        latency("time_in_model_decode", first_token, ended);
        latency("time_in_model_inference", scheduled, ended);
        Value::Array(attributes)
    }
}

/// The name of the span that vLLM gives a request.
const REQUEST: &str = "llm_request";

/// The 16 digits of a span's id.
fn short(mut id: String) -> String {
    id.truncate(16);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_read_in_its_exact_form_only() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", text.parse().expect("a legal header value"));
            TraceParent::read(&headers)
        };
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let parent = read(&format!("00-{trace}-{span}-01")).expect("a parent");
        assert_eq!((parent.trace.as_str(), parent.span.as_str(), parent.sampled), (trace, span, true));
        assert!(!read(&format!("00-{trace}-{span}-00")).expect("a parent").sampled);
        let zero = "0".repeat(32);
        for wrong in [
            format!("01-{trace}-{span}-01"),
            format!("00-{zero}-{span}-01"),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{trace}-{span}"),
            "x".to_owned(),
        ] {
            assert_eq!(read(&wrong), None, "{wrong}");
        }
    }
}
