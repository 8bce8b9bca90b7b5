//! Errors in Anthropic's shape.

use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::body::json_response;
use crate::error::{ApiError, ErrorKind, with_retry_after};

/// The same error as `{"type": "error", "error": {…}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnthropicError(pub ApiError);

/// The body of an error.
#[derive(Serialize)]
pub struct AnthropicErrorBody<'a> {
    r#type: &'static str,
    error: AnthropicErrorFields<'a>,
}

#[derive(Serialize)]
struct AnthropicErrorFields<'a> {
    r#type: &'static str,
    message: &'a str,
}

impl<'a> AnthropicErrorBody<'a> {
    /// An error of this type.
    pub fn new(r#type: &'static str, message: &'a str) -> Self {
        Self { r#type: "error", error: AnthropicErrorFields { r#type, message } }
    }

    /// The body of an error of ours.
    pub fn of(error: &'a ApiError) -> Self {
        let name = match error.kind {
            ErrorKind::BadRequest | ErrorKind::MethodNotAllowed | ErrorKind::NotImplemented => "invalid_request_error",
            ErrorKind::NotFound => "not_found_error",
            ErrorKind::TooLarge | ErrorKind::PathTooLong | ErrorKind::HeadTooLarge => "request_too_large",
            ErrorKind::RateLimited { .. } => "rate_limit_error",
            ErrorKind::Timeout | ErrorKind::DeadlineExceeded => "timeout_error",
            ErrorKind::Unavailable => "overloaded_error",
            ErrorKind::Internal => "api_error",
        };
        Self::new(name, &error.message)
    }
}

impl From<ApiError> for AnthropicError {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for AnthropicError {
    fn into_response(self) -> Response {
        let body = AnthropicErrorBody::of(&self.0);
        with_retry_after(self.0.kind, json_response(self.0.kind.status(), &body))
    }
}
