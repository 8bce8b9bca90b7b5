//! Four tests of a server with the OpenAI API, and a conversation with it.

use std::io::{self, BufRead};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Finding, Test};
use crate::failure::Failure;
use crate::output::print;
use crate::server_client::ServerClient;

/// Tokens of a block, by which answers are counted: a server does not say its own.
const BLOCK_SIZE: u64 = 16;

/// Connections that are kept for another request.
const CONNECTIONS: usize = 16;

/// A server.
pub struct Server {
    client: ServerClient,
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
        let client = ServerClient::new(url, api_key, CONNECTIONS);
        let model = match model {
            Some(model) => model,
            None => client.first_model().map_err(|error| format!("{error}; check --url, --api-key and --model"))?,
        };
        print(&format!("{} serves {model}\n", client.base_url()));
        Ok(Self { client, model })
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
        let ask = |index: usize| self.ask(&prompt(index), 32, 0.0);
        ask(0)?; // what happens once only is not measured
        let rate = |answers: &[Answer], seconds: f64| {
            answers.iter().map(|answer| answer.tokens).sum::<u64>() as f64 / seconds.max(f64::MIN_POSITIVE)
        };
        let started = Instant::now();
        let alone = (1..=num_requests).map(ask).collect::<Result<Vec<Answer>, Failure>>()?;
        let in_turn = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let together: Result<Vec<Answer>, Failure> = thread::scope(|scope| {
            // Others of the same length: the first ones' prompts may be cached now.
            let handles: Vec<_> =
                (1..=num_requests).map(|index| scope.spawn(move || ask(num_requests + index))).collect();
            handles.into_iter().map(|handle| handle.join().expect("asking does not panic")).collect()
        });
        let together = together?;
        let at_once = started.elapsed().as_secs_f64();
        let lines = vec![
            format!("{num_requests} in turn: {in_turn:.2} s, {:.1} tokens/s", rate(&alone, in_turn)),
            format!("{num_requests} at once: {at_once:.2} s, {:.1} tokens/s", rate(&together, at_once)),
            format!("{:.2} times as many tokens per second", rate(&together, at_once) / rate(&alone, in_turn)),
        ];
        let claim = "Requests at once take less time than in turn.".to_owned();
        Ok(Finding { lines, claim, holds: num_requests < 2 || at_once < in_turn })
    }

    fn paging(&self) -> Result<Finding, Failure> {
        let mut lines = vec![format!("blocks of {BLOCK_SIZE} tokens, counted from the server's own number of tokens")];
        let mut holds = true;
        for (length, expected) in [(10, 1), (200, 13)] {
            let answer = self.ask_for_all("Tell a long story about a brick.", length)?;
            let blocks = answer.tokens.div_ceil(BLOCK_SIZE);
            lines.push(format!("{} of {length} tokens: {blocks} blocks, {} slots", answer.tokens, blocks * BLOCK_SIZE));
            holds &= answer.tokens == u64::from(length) && blocks == expected;
        }
        Ok(Finding { lines, claim: "An answer of 10 tokens needs 1 block, one of 200 needs 13.".into(), holds })
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
        let text = |index: usize| &answers[index].1.text;
        let holds = text(0) == text(1) && text(0) != text(3);
        let claim = "Temperature 0 gives the same text twice, 1.5 another one.".into();
        Ok(Finding { lines, claim, holds })
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

    /// An answer that does not end before its last token, of servers that know how to ask for such (as vLLM does).
    fn ask_for_all(&self, prompt: &str, max_tokens: u32) -> Result<Answer, Failure> {
        let mut body = self.body(&[json!({"role": "user", "content": prompt})], max_tokens, 0.0);
        body["ignore_eos"] = true.into();
        self.answer(&body)
    }

    fn chat(&self, messages: &[Value], max_tokens: u32, temperature: f64) -> Result<Answer, Failure> {
        self.answer(&self.body(messages, max_tokens, temperature))
    }

    fn body(&self, messages: &[Value], max_tokens: u32, temperature: f64) -> Value {
        json!({"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": temperature})
    }

    fn answer(&self, body: &Value) -> Result<Answer, Failure> {
        let started = Instant::now();
        let answer = self.client.post("/v1/chat/completions", body)?;
        let choice = &answer["choices"][0];
        let text = choice["message"]["content"].as_str();
        let tokens = answer["usage"]["completion_tokens"].as_u64();
        let (Some(text), Some(tokens)) = (text, tokens) else {
            return Err(Failure::Run(format!("{}: the answer has no text or no usage", self.client.base_url())));
        };
        Ok(Answer {
            text: text.to_owned(),
            prompt_tokens: answer["usage"]["prompt_tokens"].as_u64().unwrap_or(0),
            tokens,
            finish_reason: choice["finish_reason"].as_str().unwrap_or("nothing").to_owned(),
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}
