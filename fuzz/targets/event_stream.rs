//! Streams of whatever a model may say: the input is the bytes that it says. Every stream is well framed, and its parts
//! add up to the answer that the same request gets in one piece. The first byte chooses the request.
#![no_main]

mod caught;
mod served;

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use firebrick_engine::{
    Batch, Engine, Executor, SampleOutcome, SampleRow, SampledToken, SequenceId, StepOutput, StepResult, TokenLogprobs,
};
use firebrick_server::spawn_engine;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use served::Served;
use served::support::{END, Setup};

/// What the model says next.
static SAID: Mutex<Vec<u32>> = Mutex::new(Vec::new());

static SERVED: LazyLock<Served> = LazyLock::new(|| {
    let setup = Setup::default();
    let executor = Repeating::default();
    let engine = Engine::new(setup.engine().config().clone(), executor).expect("a valid configuration");
    Served::start(setup.model(&["tiny"], spawn_engine(engine, 16)))
});

/// Says [`SAID`] to everybody, whatever was asked.
#[derive(Default)]
struct Repeating {
    /// Where each sequence's answer begins.
    prompt_lens: HashMap<SequenceId, u32>,
}

impl Repeating {
    fn sample(&mut self, row: &SampleRow, said: &[u32]) -> SampleOutcome {
        let begin = *self.prompt_lens.entry(row.sequence).or_insert(row.position);
        let token = said.get((row.position - begin) as usize).copied().unwrap_or(END);
        let logprobs = row.params.logprobs.map(|num| TokenLogprobs {
            chosen: -0.5,
            rank: 1,
            top: (0..num).map(|rank| ((token + rank) % END, -0.5 - rank as f32)).collect(),
        });
        SampleOutcome::Token(SampledToken { token, logprobs })
    }
}

impl Executor for Repeating {
    fn kv_blocks(&self) -> u32 {
        4096
    }

    fn execute(&mut self, batch: &Batch) -> impl Future<Output = StepResult> + 'static {
        let said = SAID.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let samples = batch.samples.iter().map(|row| self.sample(row, &said)).collect();
        self.prompt_lens.retain(|sequence, _| batch.samples.iter().any(|row| row.sequence == *sequence));
        std::future::ready(Ok(StepOutput { samples, prompts: Vec::new() }))
    }
}

/// The events of a stream, which are JSON, and end with `[DONE]`.
fn events(raw: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(raw).expect("streams are UTF-8");
    let events = text.strip_suffix("\n\n").expect("a blank line ends the stream").split("\n\n");
    let mut data: Vec<&str> = events.map(|event| event.strip_prefix("data: ").expect("every event is data")).collect();
    assert_eq!(data.pop(), Some("[DONE]"));
    data.into_iter().map(|data| serde_json::from_str(data).expect("every event is JSON")).collect()
}

fn ask(path: &str, body: &Value) -> Vec<u8> {
    let (status, answer) = SERVED.post(path, body.to_string().into_bytes());
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    answer
}

/// What a message holds, whether whole or the sum of its parts.
#[derive(Debug, Default, PartialEq)]
struct Message {
    content: String,
    reasoning: String,
    calls: Vec<(String, String)>,
    finish: String,
}

impl Message {
    fn add(&mut self, choice: &Value, part: &Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.content.push_str(&text(if part.is_null() { &choice["text"] } else { &part["content"] }));
        self.reasoning.push_str(&text(&part["reasoning"]));
        for (at, call) in part["tool_calls"].as_array().into_iter().flatten().enumerate() {
            let at = call["index"].as_u64().map_or(at, |index| index as usize);
            if self.calls.len() <= at {
                self.calls.resize_with(at + 1, Default::default);
            }
            self.calls[at].0.push_str(&text(&call["function"]["name"]));
            self.calls[at].1.push_str(&text(&call["function"]["arguments"]));
        }
        self.finish.push_str(&text(&choice["finish_reason"]));
    }
}

fuzz_target!(init: caught::only_what_is_not_caught_counts(), |data: &[u8]| {
    let Some((&kind, said)) = data.split_first() else { return };
    let said: Vec<u32> = said.iter().take(200).map(|&byte| byte.into()).collect();
    *SAID.lock().unwrap_or_else(PoisonError::into_inner) = said;
    let (path, mut body) = if kind & 1 == 0 {
        ("/v1/completions", json!({"model": "tiny", "prompt": "Once", "max_tokens": 300}))
    } else {
        let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
        let messages = json!([{"role": "user", "content": "a"}]);
        ("/v1/chat/completions", json!({"model": "tiny", "messages": messages, "tools": tools, "max_tokens": 300}))
    };
    if kind & 2 == 2 {
        body["stop"] = json!(["</s>", "\n\n\n"]);
    }
    let whole: Value = serde_json::from_slice(&ask(path, &body)).expect("JSON");
    let mut expected = Message::default();
    expected.add(&whole["choices"][0], &whole["choices"][0]["message"]);
    body["stream"] = json!(true);
    let mut streamed = Message::default();
    for event in events(&ask(path, &body)) {
        assert!(event["error"].is_null(), "{event}");
        let choice = &event["choices"][0];
        streamed.add(choice, &choice["delta"]);
    }
    assert_eq!(streamed, expected);
});
