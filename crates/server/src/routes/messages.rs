//! `/v1/messages` and `/v1/messages/count_tokens`: Anthropic's API.

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use crate::answer::Format;
use crate::anthropic::{AnthropicError, CountTokensRequest, count_draft, draft};
use crate::body::json_response;
use crate::incoming::Incoming;
use crate::state::AppState;

/// Answers a conversation.
pub async fn create(incoming: Incoming) -> Result<Response, AnthropicError> {
    let read = |state: &AppState, caller, body| Ok((Format::Messages, draft(caller, body, &state.config().limits)?));
    Ok(incoming.serve("message", read).await?)
}

/// Counts the tokens of a conversation.
pub async fn count_tokens(incoming: Incoming) -> Result<Response, AnthropicError> {
    let work = |state: &AppState, body: CountTokensRequest| {
        let limits = &state.config().limits;
        let (name, source) = count_draft(body, limits)?;
        let model = state.model_named(name.as_deref())?;
        source.check(1, limits)?;
        Ok(source.into_prompts(&model, false)?.iter().map(|prompt| prompt.tokens.len()).sum::<usize>())
    };
    let count = incoming.compute(work).await?;
    Ok(json_response(StatusCode::OK, &json!({"input_tokens": count})))
}
