//! A client of a server with the OpenAI API: one answer at a time, whole or as a stream of events.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use serde_json::Value;

/// Longest text of an error that is shown.
const ERROR_CHARS_MAX: usize = 300;

/// The longest that an answer may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3600);

/// A client that keeps its connections.
pub struct ServerClient {
    agent: ureq::Agent,
    base_url: String,
    api_key: Option<String>,
}

/// The events of an answer that streams.
pub type AnswerEvents = Events<BufReader<ureq::BodyReader<'static>>>;

impl ServerClient {
    /// A client for up to `connections` requests at once. The URL may end with `/v1`, as other clients write it.
    pub fn new(url: &str, api_key: Option<String>, connections: usize) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_global(Some(ANSWER_TIME_MAX))
            .max_idle_connections(connections)
            .max_idle_connections_per_host(connections)
            .http_status_as_error(false);
        let url = url.trim_end_matches('/');
        let base_url = url.strip_suffix("/v1").unwrap_or(url).to_owned();
        Self { agent: config.build().into(), base_url, api_key }
    }

    /// Where the server is, without a path of the API.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// The name of the server's first model.
    pub fn first_model(&self) -> Result<String, String> {
        let models = self.get("/v1/models")?;
        let name = models["data"][0]["id"].as_str().map(str::to_owned);
        name.ok_or_else(|| format!("{} lists no model", self.base_url))
    }

    /// What a path shows.
    pub fn get(&self, path: &str) -> Result<Value, String> {
        let url = format!("{}{path}", self.base_url);
        let answer = self.authorised(self.agent.get(&url)).call();
        read_json(&url, check(&url, answer)?)
    }

    /// The whole answer to a request.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let url = format!("{}{path}", self.base_url);
        read_json(&url, self.send(&url, body)?)
    }

    /// The answer to a request that asks for a stream.
    pub fn stream(&self, path: &str, body: &Value) -> Result<AnswerEvents, String> {
        let answer = self.send(&format!("{}{path}", self.base_url), body)?;
        Ok(Events::new(BufReader::new(answer.into_body().into_reader())))
    }

    fn send(&self, url: &str, body: &Value) -> Result<ureq::http::Response<ureq::Body>, String> {
        let request = self.authorised(self.agent.post(url)).header("Content-Type", "application/json");
        check(url, request.send(body.to_string()))
    }

    fn authorised<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.api_key {
            Some(key) => request.header("Authorization", format!("Bearer {key}")),
            None => request,
        }
    }
}

type Answer = ureq::http::Response<ureq::Body>;

fn check(url: &str, answer: Result<Answer, ureq::Error>) -> Result<Answer, String> {
    let mut answer = answer.map_err(|error| {
        format!("cannot reach {url}: {error}; is the server running? `firebrick serve MODEL` starts one")
    })?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let text = answer.body_mut().read_to_string().unwrap_or_default();
    Err(format!("{url} answers {status}: {}", reason(&text)))
}

/// What an error's body says: its message where it has one.
fn reason(text: &str) -> String {
    let body: Value = serde_json::from_str(text).unwrap_or_default();
    let message = body["error"]["message"].as_str().or_else(|| body["error"].as_str());
    shorten(message.unwrap_or(text))
}

fn read_json(url: &str, mut answer: Answer) -> Result<Value, String> {
    let text = answer.body_mut().read_to_string().map_err(|error| format!("{url}: {error}"))?;
    serde_json::from_str(&text).map_err(|_| format!("{url} does not answer with JSON"))
}

/// The JSON events of a stream, up to `[DONE]`. A stream that ends without it, or that tells of an error, ends with an
/// error.
pub struct Events<R> {
    lines: std::io::Lines<R>,
    has_ended: bool,
}

impl<R: BufRead> Events<R> {
    /// Reads a body of server-sent events.
    pub fn new(reader: R) -> Self {
        Self { lines: reader.lines(), has_ended: false }
    }

    /// `None` at `[DONE]`.
    fn read(&mut self) -> Result<Option<Value>, String> {
        for line in &mut self.lines {
            let line = line.map_err(|error| format!("the stream broke: {error}"))?;
            let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                return Ok(None);
            }
            let event: Value = serde_json::from_str(data).map_err(|_| format!("not JSON: {}", shorten(data)))?;
            return match event.get("error").filter(|error| !error.is_null()) {
                Some(error) => Err(shorten(&error.to_string())),
                None => Ok(Some(event)),
            };
        }
        Err("the stream ended without [DONE]".to_owned())
    }
}

impl<R: BufRead> Iterator for Events<R> {
    type Item = Result<Value, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_ended {
            return None;
        }
        let event = self.read();
        self.has_ended = !matches!(event, Ok(Some(_)));
        event.transpose()
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(ERROR_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_end_with_the_version() {
        for url in ["http://host:1/llm", "http://host:1/llm/", "http://host:1/llm/v1", "http://host:1/llm/v1/"] {
            assert_eq!(ServerClient::new(url, None, 1).base_url(), "http://host:1/llm");
        }
    }

    #[test]
    fn an_error_is_told_in_the_servers_words() {
        assert_eq!(reason(r#"{"error": {"message": "too long\u001b", "code": 400}}"#), "too long ");
        assert_eq!(reason(r#"{"error": "Unauthorized"}"#), "Unauthorized");
        assert_eq!(reason("<html>"), "<html>");
    }

    #[test]
    fn nothing_follows_the_end_of_a_stream() {
        let mut events = Events::new("data: {\"a\":1}\n\ndata: [DONE]\n\ndata: {\"a\":2}\n\n".as_bytes());
        assert_eq!(events.next(), Some(Ok(serde_json::json!({"a": 1}))));
        assert_eq!((events.next(), events.next()), (None, None));
        let mut broken = Events::new("data: {\"a\":1}\n\n".as_bytes());
        assert!(broken.next().is_some_and(|event| event.is_ok()));
        assert!(broken.next().is_some_and(|event| event.is_err()));
        assert!(broken.next().is_none());
    }
}
