//! The path of every generating request: read, check, hand to the engine, answer.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use axum::response::Response;

use crate::answer::{AnswerHead, CollectedChoice, Format, collect};
use crate::auth::Caller;
use crate::beam_search;
use crate::engine_metrics::Refused;
use crate::error::{ApiError, ErrorKind};
use crate::generation::{Generation, timed_out};
use crate::grammars;
use crate::limits::Limits;
use crate::openai::Usage;
use crate::processors::Purpose;
use crate::state::{AppState, Model, ServerConfig};
use crate::telemetry::{OpenRequest, RequestContext};
use crate::validate::{Draft, StreamOptions, ValidatedRequest};

/// Answers in the format that the request was read in, streamed, whole, or behind.
pub async fn serve_request(
    state: &AppState,
    context: RequestContext,
    kind: &'static str,
    read: impl Future<Output = Result<(Format, Draft), ApiError>>,
) -> Result<Response, ApiError> {
    let mut open = OpenRequest::new(state, context);
    let (format, started) = match begin(state, &mut open, kind, read).await {
        Ok(started) => started,
        Err(error) => return Err(failed(&mut open, error)),
    };
    let Started { request, model_name, generation } = started;
    let head = AnswerHead::new(format, &open.context().id, model_name, &request);
    if head.is_background() {
        return Ok(head.behind(generation, open));
    }
    match request.stream() {
        Some(options) => Ok(head.streamed(generation, stream_options(options, state.config()), open)),
        None => head.whole(generation, &mut open).await.map_err(|error| failed(&mut open, error)),
    }
}

/// What a client asks of its stream, and what the server's operator asks of all.
fn stream_options(asked: StreamOptions, config: &ServerConfig) -> StreamOptions {
    StreamOptions {
        include_usage: asked.include_usage || config.force_usage,
        continuous_usage: asked.continuous_usage || config.force_usage,
        interval: asked.interval.max(config.stream_interval),
    }
}

/// Refuses a request while the prompts before it are more than this server takes.
fn refuse_beyond_queue(model: &Model, limits: &Limits) -> Result<(), ApiError> {
    let (queued, Some(most)) = (model.engine.queued_tokens(), limits.queued_tokens_max) else { return Ok(()) };
    if queued < most {
        return Ok(());
    }
    model.engine.metrics().count_refused(Refused::QueueFull);
    let message = format!(
        "the prompts whose answers have not begun have {queued} tokens, and this server takes no more requests at {most}; \
         try again later"
    );
    Err(ApiError::new(ErrorKind::Unavailable, message))
}

/// A whole answer before it has a format.
pub struct Answered {
    /// The request's id.
    pub id: String,
    /// The served name that was asked for.
    pub model: String,
    /// Token counts.
    pub usage: Usage,
    /// All choices.
    pub choices: Vec<CollectedChoice>,
}

/// Waits for all choices, for endpoints with a format of their own; gives back what was read along the way.
pub async fn collect_request<F>(
    state: &AppState,
    context: RequestContext,
    kind: &'static str,
    read: impl Future<Output = Result<(F, Draft), ApiError>>,
) -> Result<(F, Answered), ApiError> {
    let mut open = OpenRequest::new(state, context);
    let (format, mut started) = match begin(state, &mut open, kind, read).await {
        Ok(begun) => begun,
        Err(error) => return Err(failed(&mut open, error)),
    };
    let num_choices = started.request.prompts().len() as u32 * started.request.n();
    let choices = collect(&mut started.generation, num_choices).await.map_err(|error| failed(&mut open, error))?;
    open.succeed(&started.generation);
    let (id, usage) = (open.context().id.to_string(), started.generation.usage());
    Ok((format, Answered { id, model: started.model_name, usage, choices }))
}

fn failed(open: &mut OpenRequest, error: ApiError) -> ApiError {
    open.fail(&error);
    error
}

struct Started {
    request: ValidatedRequest,
    model_name: String,
    generation: Generation,
}

/// From the first byte to the engine, with what was read along the way, within the request's time.
async fn begin<F>(
    state: &AppState,
    open: &mut OpenRequest,
    kind: &'static str,
    read: impl Future<Output = Result<(F, Draft), ApiError>>,
) -> Result<(F, Started), ApiError> {
    let arrived = open.context().arrived;
    within_timeout(state, arrived, begin_untimed(state, open, kind, read)).await
}

async fn begin_untimed<F>(
    state: &AppState,
    open: &mut OpenRequest,
    kind: &'static str,
    read: impl Future<Output = Result<(F, Draft), ApiError>>,
) -> Result<(F, Started), ApiError> {
    // Refused before its body is read, so that a slow sender cannot hold up a drain.
    state.refuse_while_draining()?;
    state.planted_fault().before_request();
    let (format, draft) = read.await?;
    open.admit()?;
    let charge = state.accounts().admit(draft.caller, Instant::now())?;
    let model = state.model_named(draft.sampling.model.as_deref())?;
    open.set_model(model.clone());
    refuse_beyond_queue(&model, &state.config().limits)?;
    let model_name = draft.sampling.model.clone().unwrap_or_else(|| model.name().to_owned());
    let mut request = validate(state, model.clone(), draft).await?;
    if let Some(asked) = request.take_grammar() {
        let timeout = state.config().limits.grammar_timeout;
        request.set_constraint(grammars::compile(&model, asked, timeout).await?);
    }
    open.log_accepted(kind, &model_name, &request);
    let arrived = open.context().arrived;
    let mut generation = match request.beams() {
        Some(beams) => beam_search::search(&model, &request, beams, arrived, &charge).await?,
        None => Generation::start(&model, &request, arrived).await?,
    };
    generation.set_timeout(state.config().limits.request_timeout);
    generation.set_charge(charge);
    open.set_trace(&model_name, &request, &generation);
    Ok((format, Started { request, model_name, generation }))
}

async fn validate(state: &AppState, model: Arc<Model>, draft: Draft) -> Result<ValidatedRequest, ApiError> {
    let limits = state.config().limits.clone();
    state.processors().run(Purpose::Generation, move || ValidatedRequest::new(draft, &model, &limits)).await
}

/// The answer of endpoints that compute and do not generate. They are charged as a request of the caller's, count as
/// open, and have as long as a request has.
pub async fn compute_request<B: Send + 'static, T: Send + 'static>(
    state: &AppState,
    arrived: Instant,
    caller: Caller,
    read: impl Future<Output = Result<B, ApiError>>,
    work: impl FnOnce(&AppState, B) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let computed = async {
        // Refused before its body is read, so that a slow sender cannot hold up a drain.
        state.refuse_while_draining()?;
        let body = read.await?;
        let open = state.admit()?;
        let charge = state.accounts().admit(caller, Instant::now())?;
        let of_work = state.clone();
        let work = move || {
            // Open for as long as it computes, also when the client has left.
            let _open = (open, charge);
            work(&of_work, body)
        };
        state.processors().run(Purpose::Counting, work).await
    };
    within_timeout(state, arrived, computed).await
}

/// Ends what takes longer than a request may.
async fn within_timeout<T>(
    state: &AppState,
    arrived: Instant,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let Some(timeout) = state.config().limits.request_timeout else { return work.await };
    let ended = tokio::time::timeout_at((arrived + timeout).into(), work).await;
    ended.unwrap_or_else(|_| Err(timed_out(timeout)))
}
