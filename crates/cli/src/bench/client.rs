//! One streamed request to a server with the OpenAI API, and its times.

use std::time::Instant;

use serde_json::{Value, json};

use crate::server_client::ServerClient;

/// How a request is put.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where the server is, without the path.
    pub base_url: String,
    /// `/v1/completions` or `/v1/chat/completions`.
    pub endpoint: String,
    /// The model's name.
    pub model: String,
    /// Sent as `Authorization: Bearer KEY`.
    pub api_key: Option<String>,
    /// Ask for answers of full length, which only vLLM and its relatives understand.
    pub ignore_eos: bool,
    /// Sampling temperature.
    pub temperature: f64,
}

/// What a request took, in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timing {
    /// From sending to the first text.
    pub first_token: f64,
    /// From sending to the last text.
    pub end_to_end: f64,
    /// Between one piece of text and the next.
    pub inter_token: Vec<f64>,
    /// Tokens of the prompt, as the server counts them.
    pub input_tokens: usize,
    /// Tokens of the answer, as the server counts them; without its count, pieces of text.
    pub output_tokens: usize,
}

impl Timing {
    /// Seconds per token after the first; none for a single token.
    pub fn per_output_token(&self) -> Option<f64> {
        let later = self.output_tokens.checked_sub(1).filter(|&later| later > 0)?;
        Some((self.end_to_end - self.first_token) / later as f64)
    }
}

/// Sends requests of one kind.
pub struct Client {
    server: ServerClient,
    target: Target,
}

impl Client {
    /// A client for up to `connections` requests at once.
    pub fn new(target: Target, connections: usize) -> Self {
        Self { server: ServerClient::new(&target.base_url, target.api_key.clone(), connections), target }
    }

    /// The name of the server's first model.
    pub fn first_model(&self) -> Result<String, String> {
        self.server.first_model().map_err(|error| format!("{error}; check --base-url, --api-key and --model"))
    }

    /// Sets the model that requests name.
    pub fn set_model(&mut self, model: String) {
        self.target.model = model;
    }

    /// Sends a prompt and reads the answer to its end.
    pub fn ask(&self, prompt: &str, max_tokens: usize) -> Result<Timing, String> {
        let body = self.body(prompt, max_tokens);
        let sent = Instant::now();
        read_events(self.server.stream(&self.target.endpoint, &body)?, sent)
    }

    fn body(&self, prompt: &str, max_tokens: usize) -> Value {
        let mut body = json!({
            "model": self.target.model,
            "temperature": self.target.temperature,
            "max_tokens": max_tokens,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if self.target.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        if self.target.endpoint.ends_with("/chat/completions") {
            body["messages"] = json!([{"role": "user", "content": prompt}]);
        } else {
            body["prompt"] = json!(prompt);
        }
        body
    }
}

/// Follows a stream of events to its end.
fn read_events(events: impl Iterator<Item = Result<Value, String>>, sent: Instant) -> Result<Timing, String> {
    let mut timing = Timing::default();
    let mut last = None;
    let mut num_pieces = 0;
    for event in events {
        let event = event?;
        if let Some(usage) = event.get("usage").filter(|usage| usage.is_object()) {
            timing.input_tokens = usage["prompt_tokens"].as_u64().unwrap_or(0) as usize;
            timing.output_tokens = usage["completion_tokens"].as_u64().unwrap_or(0) as usize;
        }
        if has_text(&event["choices"][0]) {
            let now = sent.elapsed().as_secs_f64();
            match last.replace(now) {
                None => timing.first_token = now,
                Some(before) => timing.inter_token.push(now - before),
            }
            timing.end_to_end = now;
            num_pieces += 1;
        }
    }
    if num_pieces == 0 {
        // An answer of control tokens alone has no text, but took its time.
        let now = sent.elapsed().as_secs_f64();
        (timing.first_token, timing.end_to_end) = (now, now);
    }
    if timing.output_tokens == 0 {
        timing.output_tokens = num_pieces;
    }
    Ok(timing)
}

fn has_text(choice: &Value) -> bool {
    let delta = &choice["delta"];
    let fields = [&choice["text"], &delta["content"], &delta["reasoning"], &delta["reasoning_content"]];
    fields.iter().any(|field| field.as_str().is_some_and(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server_client::Events;

    fn read(stream: &[u8]) -> Result<Timing, String> {
        read_events(Events::new(stream), Instant::now())
    }

    #[test]
    fn a_stream_is_counted_and_timed() {
        let stream = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n: comment\n\
            data: {\"choices\":[{\"text\":\"b\"}]}\n\n\
            data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";
        let timing = read(stream.as_bytes()).expect("a whole stream");
        assert_eq!((timing.input_tokens, timing.output_tokens, timing.inter_token.len()), (7, 3, 1));
        assert!(timing.first_token > 0.0 && timing.first_token <= timing.end_to_end);
    }

    #[test]
    fn a_stream_that_breaks_off_or_fails_is_an_error() {
        for (stream, part) in [
            ("data: {\"choices\":[{\"text\":\"b\"}]}\n\n", "without [DONE]"),
            ("data: {\"error\":{\"message\":\"full\"}}\n\ndata: [DONE]\n\n", "full"),
            ("data: nonsense\n\n", "not JSON"),
        ] {
            let error = read(stream.as_bytes()).expect_err(part);
            assert!(error.contains(part), "{error}");
        }
    }

    /// `FIREBRICK_FUZZ_ROUNDS=100` runs a hundred times as many.
    #[test]
    fn damaged_streams_end_in_a_value_or_an_error() {
        let sound = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[{\"text\":\"b\"}]}\n\n\
            : ping\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";
        let pieces: [&[u8]; 10] = [
            b"\n",
            b"\r\n",
            b"data:",
            b"data: {}\n\n",
            b"null",
            b"-1",
            b"\xff",
            b"\0",
            b"[[[[",
            b"18446744073709551616",
        ];
        let rounds = std::env::var("FIREBRICK_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
        let mut state = 1_u64;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound
        };
        let (mut whole, mut broken) = (0, 0);
        for _ in 0..3000 * rounds {
            let mut bytes = sound.as_bytes().to_vec();
            for _ in 0..1 + below(3) {
                let at = below(bytes.len());
                let end = (at + below(8)).min(bytes.len());
                drop(bytes.splice(at..end, pieces[below(pieces.len())].iter().copied()));
            }
            *(if read(&bytes).is_ok() { &mut whole } else { &mut broken }) += 1;
        }
        assert!(whole > 50 && broken > 500, "{whole} whole, {broken} broken");
    }
}
