//! OpenAI's batch files: a request a line in, an answer a line out, by the same routes as over a connection.
//!
//! Whatever is wrong with a line, its answer says so, and the next one is answered.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::body::parse_json;
use crate::error::ApiError;
use crate::routes::router;
use crate::state::AppState;
use crate::telemetry::REQUEST_ID;

/// Pause after which a request that found the queue full is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Parameters that ask for an answer which does not fit into a line.
const NOT_IN_A_LINE: [&str; 2] = ["stream", "background"];

/// Answers the lines of a batch file. Clones share the server.
#[derive(Clone)]
pub struct BatchFile {
    state: AppState,
    service: TowerToHyperService<Router>,
}

/// An answer to one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchAnswer {
    /// A line of JSON, without its line feed.
    pub line: String,
    /// Whether it is an answer rather than an error.
    pub succeeded: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    custom_id: String,
    method: String,
    url: String,
    body: Map<String, Value>,
}

#[derive(Serialize)]
struct Answered<'a> {
    id: String,
    custom_id: Option<&'a str>,
    response: Option<Reply>,
    error: Option<LineError>,
}

#[derive(Serialize)]
struct Reply {
    status_code: u16,
    request_id: String,
    body: Value,
}

#[derive(Serialize)]
struct LineError {
    code: String,
    message: String,
}

impl BatchFile {
    /// Requests go to this server, whose model must be loaded.
    pub fn new(state: &AppState) -> Self {
        Self { state: state.clone(), service: TowerToHyperService::new(router(state.clone())) }
    }

    /// The longest line that is taken.
    pub fn line_bytes_max(&self) -> usize {
        self.state.config().limits.body_bytes_max
    }

    /// Answers a line; `number` counts from 1. A full queue is waited for.
    pub async fn answer(&self, number: u64, line: &[u8]) -> BatchAnswer {
        let asked: Asked = match parse_json(line) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_of(custom_id_of(line).as_deref(), number, &error.message),
        };
        let (reply, error) = match request_of(&asked) {
            Ok((uri, body)) => {
                let reply = self.send(uri, body).await;
                let error = (reply.status_code != StatusCode::OK).then(|| error_of(&reply));
                (Some(reply), error)
            }
            Err(error) => {
                let message = format!("line {number}: {}", error.message);
                (None, Some(LineError { code: "invalid_request".to_owned(), message }))
            }
        };
        self.write(Some(&asked.custom_id), reply, error)
    }

    /// The answer to a line that cannot be read.
    pub fn refuse(&self, number: u64, reason: &str) -> BatchAnswer {
        self.refuse_of(None, number, reason)
    }

    fn refuse_of(&self, custom_id: Option<&str>, number: u64, reason: &str) -> BatchAnswer {
        let error = LineError { code: "invalid_line".to_owned(), message: format!("line {number}: {reason}") };
        self.write(custom_id, None, Some(error))
    }

    fn write(&self, custom_id: Option<&str>, response: Option<Reply>, error: Option<LineError>) -> BatchAnswer {
        let succeeded = error.is_none();
        let answered = Answered { id: format!("batch_req_{}", self.state.ids().next()), custom_id, response, error };
        let line = serde_json::to_string(&answered).expect("strings and values are always JSON");
        BatchAnswer { line, succeeded }
    }

    async fn send(&self, uri: Uri, body: Bytes) -> Reply {
        loop {
            let mut request = Request::new(Body::from(body.clone()));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = uri.clone();
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            let response = self.service.call(request).await.unwrap_or_else(|never| match never {});
            let is_full = response.status() == StatusCode::SERVICE_UNAVAILABLE && self.state.is_ready();
            if !is_full {
                return read(response).await;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// What a line that is no request calls itself, if it is JSON at all.
fn custom_id_of(line: &[u8]) -> Option<String> {
    let line: Value = serde_json::from_slice(line).ok()?;
    line.get("custom_id")?.as_str().map(str::to_owned)
}

/// Where a line's request goes, and its body.
fn request_of(asked: &Asked) -> Result<(Uri, Bytes), ApiError> {
    if asked.method != "POST" {
        return Err(ApiError::parameter("method", "method: must be POST"));
    }
    let path = Some(&asked.url).filter(|url| url.starts_with('/')).and_then(|url| url.parse::<Uri>().ok());
    let uri = path.ok_or_else(|| ApiError::parameter("url", "url: must be a path such as /v1/chat/completions"))?;
    let refused = NOT_IN_A_LINE.iter().find(|name| asked.body.get(**name) == Some(&Value::Bool(true)));
    if let Some(name) = refused {
        return Err(ApiError::parameter(
            *name,
            format!("body.{name}: an answer in a file is always whole; leave it out"),
        ));
    }
    let body = serde_json::to_vec(&asked.body).expect("a value that was read can be written");
    Ok((uri, body.into()))
}

async fn read(response: Response<Body>) -> Reply {
    let request_id = response.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let status_code = response.status().as_u16();
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap_or_default();
    let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| text());
    Reply { status_code, request_id, body }
}

/// The error of an answer that is one, in whichever shape the endpoint gives it.
fn error_of(reply: &Reply) -> LineError {
    let error = &reply.body["error"];
    let message = error["message"].as_str().or_else(|| reply.body["detail"].as_str()).unwrap_or("no reason given");
    let code = error["type"].as_str().map_or_else(|| reply.status_code.to_string(), str::to_owned);
    LineError { code, message: message.to_owned() }
}
