//! `/v1/messages` and `/v1/messages/count_tokens`: Anthropic's API.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::json;

use crate::answer::Format;
use crate::anthropic::{AnthropicError, count_draft, draft};
use crate::body::{json_response, read_json};
use crate::incoming::Incoming;
use crate::serve_request::off_thread;
use crate::state::AppState;

/// Answers a conversation.
pub async fn create(incoming: Incoming) -> Result<Response, AnthropicError> {
    let read = |state: &AppState, caller, body| Ok((Format::Messages, draft(caller, body, &state.config().limits)?));
    Ok(incoming.serve("message", read).await?)
}

/// Counts the tokens of a conversation.
pub async fn count_tokens(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, AnthropicError> {
    let limits = &state.config().limits;
    let (name, source) = count_draft(read_json(&headers, body, limits).await?, limits)?;
    let model = state.model_named(name.as_deref())?;
    source.check(1, limits)?;
    let prompts = off_thread(&state, move || source.into_prompts(&model, false)).await?;
    let count: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    Ok(json_response(StatusCode::OK, &json!({"input_tokens": count})))
}
