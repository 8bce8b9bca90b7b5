//! `/invocations`, the one door that SageMaker knows: a body's fields say which endpoint it is for.

use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::{chat_completions, completions, embeddings, scores};
use crate::body::parse_json;
use crate::error::{ApiError, ErrorKind};
use crate::incoming::Incoming;

/// What tells bodies apart; the first of these fields decides. All others are those of the endpoint.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct InvocationRequest {
    /// In a body of `/v1/chat/completions`.
    #[schemars(with = "Option<Value>")]
    messages: Option<IgnoredAny>,
    /// In a body of `/v1/completions`.
    #[schemars(with = "Option<Value>")]
    prompt: Option<IgnoredAny>,
    /// In a body of `/v1/embeddings`.
    #[schemars(with = "Option<Value>")]
    input: Option<IgnoredAny>,
    /// In a body of `/rerank`.
    #[schemars(with = "Option<Value>")]
    query: Option<IgnoredAny>,
    /// In a body of `/score`.
    #[serde(alias = "queries", alias = "data_1")]
    #[schemars(with = "Option<Value>")]
    text_1: Option<IgnoredAny>,
}

/// Answers as the endpoint does that the body is for.
pub async fn invoke(incoming: Incoming) -> Result<Response, ApiError> {
    let (bytes, incoming) = incoming.read_ahead().await?;
    match parse_json(&bytes)? {
        InvocationRequest { messages: Some(_), .. } => chat_completions::create(incoming).await,
        InvocationRequest { prompt: Some(_), .. } => completions::create(incoming).await,
        InvocationRequest { input: Some(_), .. } => embeddings::create(incoming).await,
        InvocationRequest { query: Some(_), .. } => scores::rerank(incoming).await,
        InvocationRequest { text_1: Some(_), .. } => scores::score(incoming).await,
        _ => {
            let message =
                "the body has none of messages, prompt, input, query and text_1, one of which says what it asks for";
            Err(ApiError::new(ErrorKind::BadRequest, message))
        }
    }
}
