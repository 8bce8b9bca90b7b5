//! `/v1/completions`: prompts in, their continuations out.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use crate::answer::Format;
use crate::auth::Caller;
use crate::body::read_json;
use crate::error::ApiError;
use crate::openai::CompletionRequest;
use crate::prompt::Source;
use crate::serve_request::serve_request;
use crate::state::AppState;
use crate::telemetry::RequestContext;
use crate::validate::{Draft, refuse_unless_neutral};

/// The API's own default, whatever the model.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Continues prompts.
pub async fn create(
    State(state): State<AppState>,
    Extension(context): Extension<RequestContext>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let read = async {
        let body = read_json(&headers, body, &state.config().limits).await?;
        Ok((Format::Completion, draft(caller, body)?))
    };
    serve_request(&state, context, "completion", read).await
}

fn draft(caller: Caller, mut body: CompletionRequest) -> Result<Draft, ApiError> {
    refuse_unless_neutral("suffix", body.suffix)?;
    Ok(Draft {
        caller,
        source: Source::Prompt {
            prompt: body.prompt.take().ok_or_else(|| ApiError::parameter("prompt", "`prompt` is missing"))?,
            add_special_tokens: body.add_special_tokens.unwrap_or(true),
        },
        sampling: body.take_sampling(),
        logprobs: body.logprobs,
        echo: body.echo.unwrap_or(false),
        pooling: None,
        message: None,
        default_max_tokens: Some(DEFAULT_MAX_TOKENS),
    })
}
