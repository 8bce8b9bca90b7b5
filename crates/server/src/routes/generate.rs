//! `/generate` and `/batch_generate`: the plain endpoints, with errors as `{"detail": …}`.

use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use crate::answer::CollectedChoice;
use crate::auth::Caller;
use crate::body::json_response;
use crate::error::DetailError;
use crate::incoming::Incoming;
use crate::openai::{OneOrMany, Prompt, SamplingFields};
use crate::prompt::Source;
use crate::validate::Draft;

/// The body of `/generate`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerateRequest {
    prompt: String,
    max_tokens: Option<i64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    stop: Option<OneOrMany>,
}

#[derive(Serialize)]
struct GenerateResponse {
    text: String,
    tokens_generated: u32,
    finish_reason: &'static str,
}

/// Continues one prompt.
pub async fn generate(incoming: Incoming) -> Result<Response, DetailError> {
    let read = |caller, body: GenerateRequest| {
        let sampling = SamplingFields {
            max_tokens: body.max_tokens,
            temperature: Some(body.temperature.unwrap_or(0.7)),
            top_p: Some(body.top_p.unwrap_or(0.9)),
            stop: body.stop,
            ..SamplingFields::default()
        };
        Ok(((), draft(caller, vec![body.prompt], sampling)))
    };
    let ((), answered) = incoming.collect("generate", read).await?;
    let choice = answered.choices.into_iter().next().unwrap_or_default();
    let finish_reason = choice.finish_reason();
    let body = GenerateResponse { text: choice.text, tokens_generated: choice.num_tokens, finish_reason };
    Ok(json_response(StatusCode::OK, &body))
}

/// The body of `/batch_generate`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchRequest {
    prompts: Vec<String>,
    max_tokens: Option<i64>,
    temperature: Option<f64>,
}

#[derive(Serialize)]
struct BatchResponse {
    results: Vec<BatchResult>,
}

#[derive(Serialize)]
struct BatchResult {
    text: String,
    tokens: u32,
}

/// Continues several prompts.
pub async fn batch_generate(incoming: Incoming) -> Result<Response, DetailError> {
    let read = |caller, body: BatchRequest| {
        let sampling = SamplingFields {
            max_tokens: body.max_tokens,
            temperature: Some(body.temperature.unwrap_or(0.7)),
            ..SamplingFields::default()
        };
        Ok(((), draft(caller, body.prompts, sampling)))
    };
    let ((), answered) = incoming.collect("generate", read).await?;
    let result = |choice: CollectedChoice| BatchResult { text: choice.text, tokens: choice.num_tokens };
    Ok(json_response(StatusCode::OK, &BatchResponse { results: answered.choices.into_iter().map(result).collect() }))
}

/// The length used when the request does not say.
const DEFAULT_MAX_TOKENS: u32 = 256;

fn draft(caller: Caller, prompts: Vec<String>, sampling: SamplingFields) -> Draft {
    Draft {
        caller,
        source: Source::Prompt { prompt: Prompt::Texts(prompts), add_special_tokens: true },
        sampling,
        logprobs: None,
        echo: false,
        pooling: None,
        message: None,
        default_max_tokens: Some(DEFAULT_MAX_TOKENS),
    }
}
