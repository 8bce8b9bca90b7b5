//! `/v1/completions`: prompts in, their continuations out.

use axum::response::Response;

use crate::answer::Format;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::incoming::Incoming;
use crate::openai::CompletionRequest;
use crate::parameter::refuse_unless_neutral;
use crate::prompt::Source;
use crate::validate::Draft;

/// The API's own default, whatever the model.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Continues prompts.
pub async fn create(incoming: Incoming) -> Result<Response, ApiError> {
    incoming.serve("completion", |_, caller, body| Ok((Format::Completion, draft(caller, body)?))).await
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
