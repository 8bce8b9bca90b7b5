//! Request bodies in, JSON bodies out.
//!
//! A body is read with a size limit and an idle limit and parsed into its type at once: no generic tree is built, so
//! that memory stays within a small multiple of the body. Errors name the parameter and the position.

use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, HeaderValue, Response as HttpResponse, StatusCode, header};
use axum::response::Response;
use futures::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{ApiError, ErrorKind};
use crate::limits::Limits;
use crate::request_json::RequestJson;

/// Reads and parses a JSON body.
pub async fn read_json<T: DeserializeOwned>(headers: &HeaderMap, body: Body, limits: &Limits) -> Result<T, ApiError> {
    parse_json(&read_bytes(headers, body, limits).await?)
}

/// Reads a body that says that it is JSON.
pub async fn read_bytes(headers: &HeaderMap, body: Body, limits: &Limits) -> Result<Bytes, ApiError> {
    require_json(headers)?;
    let read = tokio::time::timeout(limits.body_timeout, read_body(headers, body, limits));
    read.await.unwrap_or_else(|_| Err(too_late()))
}

/// A JSON response with its content type.
pub fn json_response<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let bytes = serde_json::to_vec(value).expect("response types hold only maps with string keys");
    let mut response = HttpResponse::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Err(ApiError::new(ErrorKind::BadRequest, "the Content-Type header is missing, send application/json"));
    };
    let essence = value.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    let lower = essence.to_ascii_lowercase();
    if lower == b"application/json" || (lower.starts_with(b"application/") && lower.ends_with(b"+json")) {
        return Ok(());
    }
    Err(ApiError::new(ErrorKind::BadRequest, "the body must be JSON: send Content-Type: application/json"))
}

async fn read_body(headers: &HeaderMap, body: Body, limits: &Limits) -> Result<Bytes, ApiError> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok())
        .unwrap_or(0);
    let max = limits.body_bytes_max;
    let mut stream = body.into_data_stream();
    if announced > max as u64 {
        discard(stream).await;
        return Err(too_large(max));
    }
    let mut bytes = Vec::new();
    loop {
        let frame = tokio::time::timeout(limits.body_idle_timeout, stream.next()).await.map_err(|_| too_late())?;
        let Some(frame) = frame else { return Ok(bytes.into()) };
        let chunk = frame.map_err(|_| ApiError::new(ErrorKind::BadRequest, "the request body broke off"))?;
        if bytes.len() + chunk.len() > max {
            drop(bytes);
            discard(stream).await;
            return Err(too_large(max));
        }
        bytes.extend_from_slice(&chunk);
    }
}

/// Reads on for a moment: a client that is still sending would not see the answer if the connection closed now.
async fn discard(mut stream: BodyDataStream) {
    const PATIENCE: Duration = Duration::from_secs(2);
    let rest = async { while let Some(Ok(_)) = stream.next().await {} };
    // Whoever is still sending after that gets the answer without our listening.
    let _ = tokio::time::timeout(PATIENCE, rest).await;
}

fn too_late() -> ApiError {
    ApiError::new(ErrorKind::Timeout, "the request body did not arrive in time")
}

fn too_large(max: usize) -> ApiError {
    ApiError::new(ErrorKind::TooLarge, format!("the request body is larger than {max} bytes"))
}

/// Parses JSON into `T` by the rules of [`RequestJson`]; what follows the value must be white space.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(RequestJson(&mut deserializer)).map_err(|error| {
        let path = error.path().to_string();
        parse_error(error.inner(), &path)
    })?;
    deserializer.end().map_err(|error| parse_error(&error, "."))?;
    Ok(value)
}

fn parse_error(error: &serde_json::Error, path: &str) -> ApiError {
    let message = limited(&error.to_string());
    if !error.is_data() {
        return ApiError::new(ErrorKind::BadRequest, format!("the body is not valid JSON: {message}"));
    }
    if let Some(name) = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next()) {
        return unknown(name);
    }
    if let Some(name) = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        return ApiError::parameter(name, format!("`{name}` is missing"));
    }
    match path {
        "." | "?" => ApiError::new(ErrorKind::BadRequest, message),
        path => ApiError::parameter(limited(path), format!("{}: {message}", limited(path))),
    }
}

fn unknown(name: &str) -> ApiError {
    ApiError::parameter(name, format!("`{name}` is not a parameter that this endpoint supports"))
}

/// Refuses fields of the object at `path` that nobody knows. For objects whose kind is to be checked before, because other kinds have
/// such fields.
pub fn refuse_others(fields: &Map<String, Value>, path: &str) -> Result<(), ApiError> {
    fields.keys().next().map_or(Ok(()), |name| Err(unknown(&limited(&format!("{path}.{name}")))))
}

/// Cuts text that repeats the client's own input.
fn limited(text: &str) -> String {
    const CHARS_MAX: usize = 300;
    if text.chars().nth(CHARS_MAX).is_none() {
        return text.to_owned();
    }
    text.chars().take(CHARS_MAX).chain("…".chars()).collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code)]
        n: Option<u32>,
        #[allow(dead_code)]
        list: Option<Vec<bool>>,
    }

    fn error(text: &str) -> ApiError {
        parse_json::<Sample>(text.as_bytes()).expect_err("must be refused")
    }

    #[test]
    fn a_wrong_type_names_the_parameter_and_the_position() {
        let error = error(r#"{"list":[true,5]}"#);
        assert_eq!(error.param.as_deref(), Some("list[1]"));
        assert!(error.message.contains("line 1 column"), "{}", error.message);
    }

    #[test]
    fn an_unknown_field_is_named() {
        let error = error(r#"{"nn":1}"#);
        assert_eq!(error.param.as_deref(), Some("nn"));
    }

    #[test]
    fn broken_json_says_where() {
        let error = error(r#"{"n":1"#);
        assert!(error.message.contains("not valid JSON") && error.message.contains("column"), "{}", error.message);
        assert_eq!(error.param, None);
    }

    #[test]
    fn text_after_the_value_is_refused() {
        assert!(error("{} {}").message.contains("trailing"));
    }

    #[test]
    fn long_field_names_are_cut() {
        assert!(error(&format!("{{\"{}\":1}}", "x".repeat(10_000))).message.len() < 1000);
    }

    #[test]
    fn content_types_of_json_are_accepted_and_others_refused() {
        let check = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
            require_json(&headers).is_ok()
        };
        assert!(check("application/json") && check("Application/JSON; charset=utf-8"));
        assert!(!check("text/plain") && !check("application/jsonx") && !check(""));
        assert!(require_json(&HeaderMap::new()).is_err());
    }
}
