//! Four tests of a server with the OpenAI API, and a conversation with it.

use std::io::{self, BufRead};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Finding, Test};
use crate::failure::Failure;
use crate::output::print;

/// Tokens of a block, by which answers are counted: a server does not say its own.
const BLOCK_SIZE: u64 = 16;

/// A server.
pub struct Server {
    agent: ureq::Agent,
    base_url: String,
    api_key: Option<String>,
    model: String,
}

/// One answer.
struct Answer {
    text: String,
    prompt_tokens: u64,
    tokens: u64,
    finish_reason: String,
    seconds: f64,
}

impl Server {
    /// Asks the server for its model, unless one is named.
    pub fn connect(url: &str, api_key: Option<String>, model: Option<String>) -> Result<Self, Failure> {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_global(Some(Duration::from_secs(600)))
            .http_status_as_error(false);
        let base_url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let mut server =
            Self { agent: config.build().into(), base_url, api_key, model: model.clone().unwrap_or_default() };
        let models = server.get("/v1/models")?;
        if model.is_none() {
            let name = models["data"][0]["id"].as_str();
            server.model = name.ok_or("the server lists no model; name one with --model".to_owned())?.to_owned();
        }
        print(&format!("{} serves {}\n", server.base_url, server.model));
        Ok(server)
    }

    /// Runs one test.
    pub fn run(&self, test: Test, num_requests: usize) -> Result<Finding, Failure> {
        match test {
            Test::Single => self.single(),
            Test::Batch => self.batch(num_requests),
            Test::Paging => self.paging(),
            Test::Sampling => self.sampling(),
        }
    }

    fn single(&self) -> Result<Finding, Failure> {
        let answer = self.ask("What is the capital of France?", 32, 0.0)?;
        let lines = vec![
            answer.text.replace('\n', " "),
            format!("{} prompt tokens, {} new, ended by {}", answer.prompt_tokens, answer.tokens, answer.finish_reason),
            format!("{:.2} s, {:.1} tokens/s", answer.seconds, answer.tokens as f64 / answer.seconds),
        ];
        Ok(Finding { lines, claim: "The server answers with text and counts it.".into(), holds: answer.tokens > 0 })
    }

    fn batch(&self, num_requests: usize) -> Result<Finding, Failure> {
        let prompt = |index: usize| format!("Request {index}: name a city and say one thing about it.");
        let alone = self.ask(&prompt(0), 32, 0.0)?;
        let started = Instant::now();
        let answers: Result<Vec<Answer>, Failure> = thread::scope(|scope| {
            let ask = |index| scope.spawn(move || self.ask(&prompt(index), 32, 0.0));
            let handles: Vec<_> = (1..=num_requests).map(ask).collect();
            let joined = handles.into_iter().map(|handle| handle.join().expect("asking does not panic"));
            joined.collect()
        });
        let answers = answers?;
        let seconds = started.elapsed().as_secs_f64();
        let tokens: u64 = answers.iter().map(|answer| answer.tokens).sum();
        let in_turn = alone.seconds * num_requests as f64;
        let lines = vec![
            format!("one request: {:.2} s, {:.1} tokens/s", alone.seconds, alone.tokens as f64 / alone.seconds),
            format!("{num_requests} at once: {seconds:.2} s, {:.1} tokens/s", tokens as f64 / seconds),
            format!("in turn they would take about {in_turn:.2} s: {:.2} times as long", in_turn / seconds),
        ];
        let claim = "Requests at once take less time than in turn.".to_owned();
        Ok(Finding { lines, claim, holds: num_requests < 2 || seconds < in_turn })
    }

    fn paging(&self) -> Result<Finding, Failure> {
        let mut lines = vec![format!("blocks of {BLOCK_SIZE} tokens, counted from the server's own number of tokens")];
        let mut holds = true;
        for (length, blocks_max) in [(10, 1), (200, 13)] {
            let answer = self.ask("Tell a long story about a brick.", length, 0.0)?;
            let blocks = answer.tokens.div_ceil(BLOCK_SIZE);
            lines.push(format!("{} of {length} tokens: {blocks} blocks, {} slots", answer.tokens, blocks * BLOCK_SIZE));
            holds &= answer.tokens > 0 && answer.tokens <= u64::from(length) && blocks <= blocks_max;
        }
        Ok(Finding { lines, claim: "An answer of 10 tokens needs 1 block, one of 200 at most 13.".into(), holds })
    }

    fn sampling(&self) -> Result<Finding, Failure> {
        let mut answers = Vec::new();
        for temperature in [0.0, 0.0, 0.7, 1.5] {
            answers.push((temperature, self.ask("Write one sentence about the sea.", 24, temperature)?));
        }
        let line = |(temperature, answer): &(f64, Answer)| {
            format!("temperature {temperature:.1}: {}", answer.text.replace('\n', " "))
        };
        let lines = answers.iter().map(line).collect();
        let holds = answers[0].1.text == answers[1].1.text;
        Ok(Finding { lines, claim: "Temperature 0 gives the same text twice.".into(), holds })
    }

    /// A line at a time until the input ends.
    pub fn converse(&self) -> Result<(), Failure> {
        print("Each line is a message; an empty line or Ctrl-D ends.\n");
        let mut messages = Vec::new();
        loop {
            print(">>> ");
            let mut line = String::new();
            if io::stdin().lock().read_line(&mut line)? == 0 || line.trim().is_empty() {
                return Ok(());
            }
            messages.push(json!({"role": "user", "content": line.trim()}));
            let answer = self.chat(&messages, 512, 0.7)?;
            print(&format!("{}\n({:.2} s, {} tokens)\n", answer.text, answer.seconds, answer.tokens));
            messages.push(json!({"role": "assistant", "content": answer.text}));
        }
    }

    fn ask(&self, prompt: &str, max_tokens: u32, temperature: f64) -> Result<Answer, Failure> {
        self.chat(&[json!({"role": "user", "content": prompt})], max_tokens, temperature)
    }

    fn chat(&self, messages: &[Value], max_tokens: u32, temperature: f64) -> Result<Answer, Failure> {
        let body = json!({
            "model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": temperature,
        });
        let started = Instant::now();
        let answer = self.post("/v1/chat/completions", &body)?;
        let choice = &answer["choices"][0];
        let text = choice["message"]["content"].as_str();
        let tokens = answer["usage"]["completion_tokens"].as_u64();
        let (Some(text), Some(tokens)) = (text, tokens) else {
            return Err(Failure::Run(format!("{}: the answer has no text or no usage", self.base_url)));
        };
        Ok(Answer {
            text: text.to_owned(),
            prompt_tokens: answer["usage"]["prompt_tokens"].as_u64().unwrap_or(0),
            tokens,
            finish_reason: choice["finish_reason"].as_str().unwrap_or("nothing").to_owned(),
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    fn get(&self, path: &str) -> Result<Value, Failure> {
        let request = self.agent.get(format!("{}{path}", self.base_url));
        self.read(path, self.authorised(request).call())
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let request = self.agent.post(format!("{}{path}", self.base_url)).header("Content-Type", "application/json");
        self.read(path, self.authorised(request).send(body.to_string()))
    }

    fn authorised<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.api_key {
            Some(key) => request.header("Authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    fn read(
        &self,
        path: &str,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Value, Failure> {
        let url = format!("{}{path}", self.base_url);
        let mut answer = answer.map_err(|error| format!("cannot reach {url}: {error}; is the server running?"))?;
        let status = answer.status();
        let text = answer.body_mut().read_to_string().map_err(|error| format!("{url}: {error}"))?;
        if !status.is_success() {
            let start: String = text.chars().take(300).collect();
            return Err(Failure::Run(format!("{url} answers {status}: {start}")));
        }
        serde_json::from_str(&text).map_err(|_| Failure::Run(format!("{url} does not answer with JSON")))
    }
}
