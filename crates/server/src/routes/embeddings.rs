//! `/v1/embeddings`: texts in, vectors out.

use axum::http::StatusCode;
use axum::response::Response;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::body::json_response;
use crate::error::ApiError;
use crate::incoming::Incoming;
use crate::openai::Prompt;
use crate::pooling::{PoolingFields, Vectors, base64, draft, normalized};
use crate::state::unix_seconds;

/// The body of `/v1/embeddings`.
#[derive(Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EmbeddingsRequest {
    /// The model's served name; the only model when absent.
    model: Option<String>,
    /// One or several texts or lists of tokens.
    input: Option<Prompt>,
    /// `float` or `base64`.
    encoding_format: Option<String>,
    /// Keep this many numbers of each vector.
    dimensions: Option<i64>,
    /// `mean`, `last` or `cls`; what the model says when absent.
    pooling: Option<String>,
    /// Make every vector as long as 1.
    normalize: Option<bool>,
    /// Put the model's special tokens around texts.
    add_special_tokens: Option<bool>,
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
struct EmbeddingsResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    data: Vec<Embedding>,
    usage: PoolingUsage,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Numbers,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Numbers {
    Floats(Vec<f32>),
    Base64(String),
}

/// Token counts of a request that generates nothing.
#[derive(Serialize)]
pub struct PoolingUsage {
    prompt_tokens: u64,
    total_tokens: u64,
}

impl PoolingUsage {
    /// Of a request with these vectors.
    pub fn of(vectors: &Vectors) -> Self {
        let prompt_tokens = vectors.usage.prompt_tokens;
        Self { prompt_tokens, total_tokens: prompt_tokens }
    }
}

/// How vectors are shown.
struct Shape {
    is_base64: bool,
    dimensions: Option<usize>,
    normalizes: bool,
}

/// Turns texts into vectors.
pub async fn create(incoming: Incoming) -> Result<Response, ApiError> {
    let read = |caller, body: EmbeddingsRequest| {
        let shape = shape(&body)?;
        let input = body.input.ok_or_else(|| ApiError::parameter("input", "`input` is missing"))?;
        let fields = PoolingFields {
            model: body.model,
            pooling: body.pooling,
            add_special_tokens: body.add_special_tokens,
            truncate_prompt_tokens: body.truncate_prompt_tokens,
            priority: body.priority,
        };
        Ok((shape, draft(caller, input, fields)?))
    };
    let answered = incoming.collect("embeddings", read).await;
    let (shape, answered) = answered.map_err(|error| error.of_input("input"))?;
    let vectors = Vectors::new(answered)?;
    let usage = PoolingUsage::of(&vectors);
    let shown = vectors.vectors.into_iter().map(|vector| shape.show(vector)).collect::<Result<Vec<_>, _>>()?;
    let embedding = |(index, embedding)| Embedding { object: "embedding", index, embedding };
    let data = shown.into_iter().enumerate().map(embedding).collect();
    let id = format!("embd-{}", vectors.id);
    let response =
        EmbeddingsResponse { id, object: "list", created: unix_seconds(), model: vectors.model, data, usage };
    Ok(json_response(StatusCode::OK, &response))
}

fn shape(body: &EmbeddingsRequest) -> Result<Shape, ApiError> {
    let is_base64 = match body.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::parameter("encoding_format", "encoding_format must be float or base64")),
    };
    let dimensions = match body.dimensions {
        None => None,
        Some(asked) => Some(usize::try_from(asked).ok().filter(|asked| *asked > 0).ok_or_else(|| {
            ApiError::parameter("dimensions", format!("dimensions is {asked}, it must be at least 1"))
        })?),
    };
    Ok(Shape { is_base64, dimensions, normalizes: body.normalize.unwrap_or(true) })
}

impl Shape {
    fn show(&self, mut vector: Vec<f32>) -> Result<Numbers, ApiError> {
        if let Some(dimensions) = self.dimensions {
            let size = vector.len();
            if dimensions > size {
                let message = format!("dimensions is {dimensions}, this model's vectors have {size}");
                return Err(ApiError::parameter("dimensions", message));
            }
            vector.truncate(dimensions);
        }
        if self.normalizes {
            vector = normalized(vector);
        }
        Ok(if self.is_base64 { Numbers::Base64(base64(&vector)) } else { Numbers::Floats(vector) })
    }
}
