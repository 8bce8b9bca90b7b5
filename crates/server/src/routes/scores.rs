//! `/score` and `/rerank`: how near two texts are, as the cosine of their vectors.

use axum::http::StatusCode;
use axum::response::Response;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::embeddings::PoolingUsage;
use crate::body::json_response;
use crate::error::ApiError;
use crate::incoming::Incoming;
use crate::openai::{OneOrMany, Prompt};
use crate::pooling::{PoolingFields, Vectors, cosine, draft};
use crate::state::unix_seconds;

/// The body of `/score`.
#[derive(Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScoreRequest {
    /// The model's served name; the only model when absent.
    model: Option<String>,
    /// One text, or as many as there are in `text_2`.
    #[serde(alias = "queries", alias = "data_1")]
    text_1: Option<OneOrMany>,
    /// What it is compared with.
    #[serde(alias = "documents", alias = "data_2")]
    text_2: Option<OneOrMany>,
    /// `mean`, `last` or `cls`; what the model says when absent.
    pooling: Option<String>,
    /// Keep this many of a text's last tokens; -1 keeps what fits.
    truncate_prompt_tokens: Option<i64>,
    /// Lower runs first.
    priority: Option<i64>,
    // Informational: accepted and not used.
    #[serde(rename = "user")]
    #[schemars(with = "Option<serde_json::Value>")]
    _user: Option<IgnoredAny>,
}

#[derive(Serialize)]
struct ScoreResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    data: Vec<Score>,
    usage: PoolingUsage,
}

#[derive(Serialize)]
struct Score {
    index: usize,
    object: &'static str,
    score: f64,
}

/// Compares texts in pairs.
pub async fn score(incoming: Incoming) -> Result<Response, ApiError> {
    let read = |caller, body: ScoreRequest| {
        let (left, right) = pairs(body.text_1, body.text_2)?;
        let fields = PoolingFields {
            model: body.model,
            pooling: body.pooling,
            truncate_prompt_tokens: body.truncate_prompt_tokens,
            priority: body.priority,
            ..PoolingFields::default()
        };
        let num_left = left.len();
        Ok((num_left, draft(caller, Prompt::Texts([left, right].concat()), fields)?))
    };
    let answered = incoming.collect("score", read).await;
    let (num_left, answered) = answered.map_err(|error| error.of_input("text_1 or text_2"))?;
    let vectors = Vectors::new(answered)?;
    let (left, right) = vectors.vectors.split_at(num_left);
    let scores = left.iter().cycle().zip(right).map(|(left, right)| cosine(left, right));
    let data = scores.enumerate().map(|(index, score)| Score { index, object: "score", score }).collect();
    let (id, usage) = (format!("score-{}", vectors.id), PoolingUsage::of(&vectors));
    let response = ScoreResponse { id, object: "list", created: unix_seconds(), model: vectors.model, data, usage };
    Ok(json_response(StatusCode::OK, &response))
}

/// One text with many, or as many as there are.
fn pairs(left: Option<OneOrMany>, right: Option<OneOrMany>) -> Result<(Vec<String>, Vec<String>), ApiError> {
    let given = |name: &str, texts: Option<OneOrMany>| match texts {
        Some(OneOrMany(texts)) if !texts.is_empty() => Ok(texts),
        Some(_) => Err(ApiError::parameter(name, format!("{name} must not be empty"))),
        None => Err(ApiError::parameter(name, format!("`{name}` is missing"))),
    };
    let (left, right) = (given("text_1", left)?, given("text_2", right)?);
    if left.len() != 1 && left.len() != right.len() {
        let message =
            format!("text_1 has {} texts and text_2 {}; text_1 must have one or as many", left.len(), right.len());
        return Err(ApiError::parameter("text_1", message));
    }
    Ok((left, right))
}

/// The body of `/rerank`.
#[derive(Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RerankRequest {
    /// The model's served name; the only model when absent.
    model: Option<String>,
    /// What is looked for.
    query: Option<String>,
    /// Where.
    documents: Option<OneOrMany>,
    /// Show this many of the nearest; 0 shows all.
    top_n: Option<i64>,
    /// `mean`, `last` or `cls`; what the model says when absent.
    pooling: Option<String>,
    /// Keep this many of a text's last tokens; -1 keeps what fits.
    truncate_prompt_tokens: Option<i64>,
    /// Lower runs first.
    priority: Option<i64>,
    // Informational: accepted and not used.
    #[serde(rename = "user")]
    #[schemars(with = "Option<serde_json::Value>")]
    _user: Option<IgnoredAny>,
}

#[derive(Serialize)]
struct RerankResponse {
    id: String,
    model: String,
    usage: PoolingUsage,
    results: Vec<Ranked>,
}

#[derive(Serialize)]
struct Ranked {
    index: usize,
    document: Document,
    relevance_score: f64,
}

#[derive(Serialize)]
struct Document {
    text: String,
}

/// Puts documents in the order of their nearness to a query.
pub async fn rerank(incoming: Incoming) -> Result<Response, ApiError> {
    let read = |caller, body: RerankRequest| {
        let query = body.query.ok_or_else(|| ApiError::parameter("query", "`query` is missing"))?;
        let documents = body.documents.map(|OneOrMany(documents)| documents).filter(|documents| !documents.is_empty());
        let documents = documents.ok_or_else(|| ApiError::parameter("documents", "`documents` is missing or empty"))?;
        let count = match body.top_n.unwrap_or(0) {
            0 => documents.len(),
            asked => usize::try_from(asked).map_err(|_| ApiError::parameter("top_n", "top_n must not be negative"))?,
        };
        let fields = PoolingFields {
            model: body.model,
            pooling: body.pooling,
            truncate_prompt_tokens: body.truncate_prompt_tokens,
            priority: body.priority,
            ..PoolingFields::default()
        };
        let texts = [vec![query], documents.clone()].concat();
        Ok(((documents, count), draft(caller, Prompt::Texts(texts), fields)?))
    };
    let answered = incoming.collect("rerank", read).await;
    let ((documents, count), answered) = answered.map_err(|error| error.of_input("query or documents"))?;
    let vectors = Vectors::new(answered)?;
    let Some((query, others)) = vectors.vectors.split_first() else { unreachable!("a query was asked for") };
    let scores = others.iter().map(|vector| cosine(query, vector));
    let ranked = |(index, (text, relevance_score))| Ranked { index, document: Document { text }, relevance_score };
    let mut results: Vec<Ranked> = documents.into_iter().zip(scores).enumerate().map(ranked).collect();
    // Stable: equals stay in the order in which they were sent.
    results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
    results.truncate(count);
    let (id, usage) = (format!("rerank-{}", vectors.id), PoolingUsage::of(&vectors));
    Ok(json_response(StatusCode::OK, &RerankResponse { id, model: vectors.model, usage, results }))
}
