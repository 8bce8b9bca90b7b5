//! Errors as clients see them: the one place where trouble becomes a status code and a body.
//!
//! Messages are written where the facts are; nothing here prints `Debug` output, paths or backtraces.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use firebrick_engine::Rejected;
use serde::Serialize;

use crate::body::json_response;

/// What went wrong with a request, in OpenAI's categories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong.
    BadRequest,
    /// No such model or path.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// The body did not arrive in time.
    Timeout,
    /// The body exceeds the limit.
    TooLarge,
    /// The path exceeds the limit.
    PathTooLong,
    /// The headers exceed a limit.
    HeadTooLarge,
    /// The request is understood but this model cannot serve it.
    NotImplemented,
    /// The request took longer than the server allows.
    DeadlineExceeded,
    /// The caller has used up what its key may take.
    RateLimited {
        /// Seconds after which it is worth trying again.
        retry_after: u32,
    },
    /// Loading, draining, queue full or engine dead; worth trying again.
    Unavailable,
    /// Our own mistake or a device failure.
    Internal,
}

impl ErrorKind {
    /// Status code of the response.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::PathTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The `type` field of the body.
    fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "BadRequestError",
            Self::NotFound => "NotFoundError",
            Self::MethodNotAllowed => "MethodNotAllowedError",
            Self::Timeout => "RequestTimeoutError",
            Self::TooLarge => "RequestEntityTooLargeError",
            Self::PathTooLong => "RequestPathTooLongError",
            Self::HeadTooLarge => "RequestHeadTooLargeError",
            Self::NotImplemented => "NotImplementedError",
            Self::DeadlineExceeded => "DeadlineExceededError",
            Self::RateLimited { .. } => "RateLimitError",
            Self::Unavailable => "ServiceUnavailableError",
            Self::Internal => "InternalServerError",
        }
    }
}

/// An error response in OpenAI's shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The category, which decides status and type.
    pub kind: ErrorKind,
    /// What is wrong and what would be right.
    pub message: String,
    /// The parameter at fault.
    pub param: Option<String>,
}

impl ApiError {
    /// An error that no single parameter causes.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None }
    }

    /// A bad parameter, named.
    pub fn parameter(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::BadRequest, message: message.into(), param: Some(name.into()) }
    }

    /// The same about a prompt that its endpoint calls by another name.
    pub fn of_input(mut self, name: &str) -> Self {
        if matches!(self.param.as_deref(), Some("prompt" | "max_tokens")) {
            self.param = Some(name.to_owned());
        }
        self
    }

    /// The body of the error, also sent as an event once streaming has begun.
    pub fn body(&self) -> ErrorBody<'_> {
        ErrorBody {
            error: ErrorFields {
                message: &self.message,
                r#type: self.kind.name(),
                param: self.param.as_deref(),
                code: self.kind.status().as_u16(),
            },
        }
    }
}

/// `{"error": {…}}`.
#[derive(Serialize)]
pub struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

#[derive(Serialize)]
struct ErrorFields<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: u16,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        with_retry_after(self.kind, json_response(self.kind.status(), &self.body()))
    }
}

/// Says when to try again, where that may help.
pub(crate) fn with_retry_after(kind: ErrorKind, mut response: Response) -> Response {
    let seconds = match kind {
        ErrorKind::Unavailable => 5,
        ErrorKind::RateLimited { retry_after } => retry_after,
        _ => return response,
    };
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

impl From<Rejected> for ApiError {
    fn from(rejected: Rejected) -> Self {
        let message = rejected.to_string();
        match rejected {
            Rejected::EmptyPrompt => Self::parameter("prompt", message),
            Rejected::TooLong { .. } | Rejected::LargerThanPool { .. } | Rejected::LargerThanStep { .. } => {
                Self::parameter("max_tokens", message)
            }
            Rejected::TokenOutOfRange { .. } => Self::parameter("prompt", message),
            Rejected::Choices { .. } => Self::parameter("n", message),
            Rejected::Parameter { name, .. } => Self::parameter(name, message),
            Rejected::QueueFull { .. } | Rejected::NotAccepting => Self::new(ErrorKind::Unavailable, message),
        }
    }
}

/// The same error as `{"detail": …}`, the shape of `/generate` and `/batch_generate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetailError(pub ApiError);

#[derive(Serialize)]
struct DetailBody<'a> {
    detail: &'a str,
}

impl From<ApiError> for DetailError {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for DetailError {
    fn into_response(self) -> Response {
        let body = DetailBody { detail: &self.0.message };
        with_retry_after(self.0.kind, json_response(self.0.kind.status(), &body))
    }
}
