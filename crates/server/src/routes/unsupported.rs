//! Endpoints of vLLM that this version does not have: who asks learns why.

use crate::error::{ApiError, ErrorKind};

/// `/v1/embeddings`.
pub async fn embeddings() -> ApiError {
    ApiError::new(ErrorKind::NotImplemented, "embeddings are not supported: this server generates text only")
}

/// `/score` and `/rerank`.
pub async fn scores() -> ApiError {
    ApiError::new(ErrorKind::NotImplemented, "scores are not supported: this server generates text only")
}
