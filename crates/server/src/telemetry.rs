//! What is known about a request while it is open: its id, its log lines, its place in the metrics.
//!
//! Texts are never logged. The id in the log is ours; the client's `X-Request-Id` is only sent back.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;

use crate::error::{ApiError, ErrorKind};
use crate::generation::Generation;
use crate::keep_alive::keep_alive;
use crate::metrics::Outcome;
use crate::orca::LoadFormat;
use crate::request_trace::{EndedTrace, RequestTrace, TraceParent};
use crate::state::{ActiveGuard, AppState, Model};
use crate::validate::ValidatedRequest;

/// A request's id in its answer.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request's id and when it came.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// 32 hexadecimal digits.
    pub id: Arc<str>,
    /// When its headers were whole.
    pub arrived: Instant,
    /// The caller's own span.
    pub parent: Option<TraceParent>,
}

/// Marks a response whose body outlives its handler, so that its end is logged elsewhere.
#[derive(Clone)]
pub struct Streamed;

/// The layer around all routes: gives every request an id, logs it, and turns a panic of its handler into a 500.
pub async fn trace(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let parent = state.tracer().and_then(|_| TraceParent::read(request.headers()));
    let context = RequestContext { id: state.ids().next().into(), arrived: Instant::now(), parent };
    let echoed = client_id(request.headers());
    let load_format = LoadFormat::wanted(request.headers());
    let quiet = !state.config().log_requests || request.method() == axum::http::Method::GET;
    if !quiet {
        tracing::info!("[{}] {} {}", context.id, request.method(), request.uri().path().escape_debug());
    }
    request.extensions_mut().insert(context.clone());
    let outcome = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let response = outcome.unwrap_or_else(|_| {
        tracing::error!("[{}] the handler panicked", context.id);
        ApiError::new(ErrorKind::Internal, "internal error").into_response()
    });
    let mut response = match state.config().limits.keep_alive_interval {
        Some(interval) => keep_alive(response, interval),
        None => response,
    };
    if let Some(format) = load_format {
        format.insert(&state, response.headers_mut());
    }
    let id = echoed.or_else(|| HeaderValue::from_str(&context.id).ok());
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    if !quiet && response.extensions().get::<Streamed>().is_none() {
        log_completed(&context, response.status().as_u16());
    }
    response
}

fn log_completed(context: &RequestContext, status: u16) {
    tracing::info!("[{}] Completed in {:.3}s - Status: {status}", context.id, context.arrived.elapsed().as_secs_f64());
}

/// The client's own id, if it is short and plain enough to be sent back.
fn client_id(headers: &HeaderMap) -> Option<HeaderValue> {
    const BYTES_MAX: usize = 128;
    let value = headers.get(REQUEST_ID)?;
    let plain = !value.is_empty() && value.len() <= BYTES_MAX && value.as_bytes().iter().all(u8::is_ascii_graphic);
    plain.then(|| value.clone())
}

/// A generating request from its first byte to its last; counted and logged when dropped.
pub struct OpenRequest {
    state: AppState,
    context: RequestContext,
    active: Option<ActiveGuard>,
    /// Held to the end, so that a model that is unloaded waits for its requests.
    model: Option<Arc<Model>>,
    outcome: Outcome,
    streamed: bool,
    trace: Option<RequestTrace>,
}

impl OpenRequest {
    /// A request that has just come.
    pub fn new(state: &AppState, context: RequestContext) -> Self {
        let (active, model, trace) = (None, None, None);
        Self { state: state.clone(), context, active, model, outcome: Outcome::Aborted, streamed: false, trace }
    }

    /// Its id and when it came.
    pub fn context(&self) -> &RequestContext {
        &self.context
    }

    /// Counts it as active; 503 while draining.
    pub fn admit(&mut self) -> Result<(), ApiError> {
        self.active = Some(self.state.admit()?);
        Ok(())
    }

    /// Which model it is for.
    pub fn set_model(&mut self, model: Arc<Model>) {
        self.model = Some(model);
    }

    /// Logs what was asked, in numbers.
    pub fn log_accepted(&self, kind: &'static str, model: &str, request: &ValidatedRequest) {
        self.state.open_requests().insert(&self.context, kind, model, request);
        if self.state.config().log_requests {
            let (prompt, max_tokens) = (request.prompt_tokens(), request.max_tokens());
            tracing::info!(
                "[{}] Processing {kind} request: Prompt length: {prompt} tokens, Max tokens: {max_tokens}",
                self.context.id
            );
        }
    }

    /// From here on the request is traced, where traces are wanted.
    pub fn set_trace(&mut self, model: &str, request: &ValidatedRequest, generation: &Generation) {
        if self.state.tracer().is_none() {
            return;
        }
        let (temperature, top_p) = request.sampling().map_or((1.0, 1.0), |params| (params.temperature, params.top_p));
        self.trace = Some(RequestTrace {
            id: self.context.id.to_string(),
            parent: self.context.parent.clone(),
            arrived: self.context.arrived,
            model: model.to_owned(),
            temperature,
            top_p,
            max_tokens: request.max_tokens(),
            n: request.n(),
            prompts: request.prompts().len(),
            prompt_tokens: request.prompt_tokens(),
            phases: generation.phases().to_vec(),
        });
    }

    /// The answer will outlive the handler.
    pub fn set_streamed(&mut self) {
        self.streamed = true;
    }

    /// The answer is complete.
    pub fn succeed(&mut self, generation: &Generation) {
        self.outcome = Outcome::Success;
        if self.state.config().log_requests {
            let stats = generation.stats();
            tracing::info!(
                "[{}] Generation completed: Inference time: {:.3}s, Generated tokens: {}, Throughput: {:.1} tokens/s",
                self.context.id,
                stats.inference_time_seconds,
                generation.usage().completion_tokens,
                stats.tokens_per_second
            );
        }
    }

    /// The answer is an error.
    pub fn fail(&mut self, error: &ApiError) {
        self.outcome = Outcome::Error;
        if error.kind == ErrorKind::Internal {
            tracing::error!("[{}] {}", self.context.id, error.message.escape_debug());
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.state.open_requests().remove(&self.context.id);
        if let (Some(tracer), Some(request)) = (self.state.tracer(), self.trace.take()) {
            let is_error = self.outcome == Outcome::Error;
            tracer.export(EndedTrace { request, ended: Instant::now(), is_error });
        }
        let seconds = self.context.arrived.elapsed().as_secs_f64();
        self.state.count_request(self.model.as_deref(), self.outcome, seconds);
        if self.outcome == Outcome::Aborted && self.state.config().log_requests {
            tracing::info!("[{}] the client left", self.context.id);
        } else if self.streamed && self.state.config().log_requests {
            log_completed(&self.context, 200);
        }
    }
}
