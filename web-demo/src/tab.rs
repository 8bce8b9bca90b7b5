//! The engine as the worker's JavaScript sees it.
//!
//! JavaScript may call any method while a step is awaited, so that everything lies in a `RefCell` that is never borrowed
//! across an `await`.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use firebrick_engine::{BlockId, Request, RequestId, TokenEvent};
use firebrick_text::{Message, RenderOptions};
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsError, JsValue};

use crate::answer::Answer;
use crate::loading::{Loaded, text};
use crate::messages::{Accepted, BlockToken, ChatRequest, Event, LoadRequest, StepReport};

/// The files of a model, by their names.
#[wasm_bindgen]
#[derive(Default)]
pub struct ModelFiles(BTreeMap<String, Vec<u8>>);

#[wasm_bindgen]
impl ModelFiles {
    /// None yet.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn add(&mut self, name: String, bytes: Vec<u8>) {
        self.0.insert(name, bytes);
    }
}

/// A loaded model with its engine.
#[wasm_bindgen]
pub struct Tab {
    state: RefCell<State>,
}

struct State {
    loaded: Loaded,
    answers: HashMap<u64, Answer>,
}

/// An error for JavaScript.
fn js(message: String) -> JsError {
    JsError::new(&message)
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("messages have no maps with other keys than strings and numbers")
}

fn parse<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| format!("message not understood: {error}"))
}

#[wasm_bindgen]
impl Tab {
    /// Loads the model in `files` as the JSON `request` says; `progress` is called with the bytes on the device so far.
    pub async fn load(files: ModelFiles, request: String, progress: js_sys::Function) -> Result<Tab, JsError> {
        let request: LoadRequest = parse(&request).map_err(js)?;
        let mut done = 0_u64;
        let mut report = |bytes: u64| {
            done += bytes;
            // A listener that fails must not end the loading.
            let _ = progress.call1(&JsValue::NULL, &JsValue::from_f64(done as f64));
        };
        let loaded = Loaded::load(files.0, &request, &mut report).await.map_err(js)?;
        Ok(Tab { state: RefCell::new(State { loaded, answers: HashMap::new() }) })
    }

    /// What was loaded.
    pub fn facts(&self) -> String {
        json(&self.state.borrow().loaded.facts)
    }

    /// Takes a request, or says why it cannot be served.
    pub fn add(&self, request: &str) -> Result<String, JsError> {
        let request: ChatRequest = parse(request).map_err(js)?;
        let accepted = self.state.borrow_mut().add(&request).map_err(js)?;
        Ok(json(&accepted))
    }

    /// Ends a request; its end comes with the next step's report.
    pub fn abort(&self, request: u32) {
        self.state.borrow_mut().loaded.engine.abort(RequestId(u64::from(request)));
    }

    /// Whether a step would have something to do or to tell.
    pub fn has_work(&self) -> bool {
        self.state.borrow().loaded.engine.has_work()
    }

    /// Plans a batch, runs it and reports what happened and how things stand.
    pub async fn step(&self) -> Result<String, JsError> {
        let begun = self.state.borrow_mut().loaded.engine.begin_step().map_err(|error| js(text(error)))?;
        let Some(running) = begun else {
            let mut state = self.state.borrow_mut();
            let events = state.loaded.engine.take_events();
            return Ok(json(&state.report(events, Vec::new())));
        };
        let rows = self.state.borrow().loaded.engine.rows_in_flight();
        let result = running.await;
        let mut state = self.state.borrow_mut();
        let events = state.loaded.engine.finish_step(result).map_err(|error| js(text(error)))?;
        Ok(json(&state.report(events, rows)))
    }

    /// The engine's state now.
    pub fn snapshot(&self) -> String {
        json(&self.state.borrow().loaded.engine.snapshot())
    }

    /// The tokens that a block holds.
    pub fn tokens_in_block(&self, block: u32) -> String {
        let state = self.state.borrow();
        let token = |token: u32| {
            let mut detokenizer = state.loaded.tokenizer.detokenizer(false);
            BlockToken { token, text: detokenizer.push(token) + &detokenizer.finish() }
        };
        let tokens = state.loaded.engine.tokens_in_block(BlockId(block));
        json(&tokens.into_iter().map(token).collect::<Vec<_>>())
    }

    /// Proves the engine's invariants; a failure ends the worker with the invariant's number.
    pub fn audit(&self) {
        self.state.borrow().loaded.engine.audit();
    }
}

impl State {
    fn add(&mut self, request: &ChatRequest) -> Result<Accepted, String> {
        let prompt = self.prompt(request)?;
        let eos_token_ids = self.loaded.eos_token_ids.clone();
        let mut params = request.sampling.params(request.ignore_eos);
        if request.fit {
            params.max_tokens = Some(self.room(prompt.len()).min(params.max_tokens.unwrap_or(u32::MAX)));
        }
        let max_tokens = params.max_tokens;
        let engine_request = Request { eos_token_ids, ..Request::new(prompt.clone(), params) };
        let RequestId(id) = self.loaded.engine.add_request(engine_request).map_err(text)?;
        self.answers.insert(id, Answer::new(id, &self.loaded.tokenizer, &prompt, &request.stop));
        Ok(Accepted { request: id, prompt_tokens: prompt.len(), max_tokens })
    }

    /// Tokens that an answer to a prompt can have: within the model's length, and in the whole pool. At least one, so that
    /// a prompt without room is refused by the engine, with the numbers.
    fn room(&self, prompt_tokens: usize) -> u32 {
        let engine = &self.loaded.engine;
        let config = engine.config();
        let slots = engine.stats().blocks_total.saturating_mul(config.block_size);
        let prompt_tokens = u32::try_from(prompt_tokens).unwrap_or(u32::MAX);
        config.max_model_len.min(slots).saturating_sub(prompt_tokens).max(1)
    }

    fn prompt(&self, request: &ChatRequest) -> Result<Vec<u32>, String> {
        let tokenizer = &self.loaded.tokenizer;
        if request.messages.is_empty() {
            return tokenizer.try_encode(&request.text, true).map_err(text);
        }
        let messages: Vec<Message> =
            request.messages.iter().map(|turn| Message::new(&*turn.role, &*turn.content)).collect();
        let template = self.loaded.chat_template.as_ref();
        let template = template.ok_or("the model has no chat template: it continues texts, it does not answer")?;
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let rendered = template.render(&messages, &options).map_err(text)? + &request.text;
        tokenizer.try_encode(&rendered, false).map_err(text)
    }

    fn report(&mut self, events: Vec<TokenEvent>, rows: Vec<firebrick_engine::RowSnapshot>) -> StepReport {
        let mut told = Vec::new();
        for event in events {
            let id = event.request.0;
            let Some(answer) = self.answers.get_mut(&id) else { continue };
            told.extend(answer.take(event.kind));
            if matches!(told.last(), Some(Event::Finished { request, .. }) if *request == id) {
                self.answers.remove(&id);
            } else if answer.is_stopped() {
                self.loaded.engine.abort(event.request);
            }
        }
        let engine = &self.loaded.engine;
        StepReport { events: told, rows, engine: engine.snapshot(), num_graphs: engine.executor().num_graphs() }
    }
}
