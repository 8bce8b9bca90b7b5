//! One answer at a time from an engine, as text.

use std::time::{Duration, Instant};

use firebrick::{Error, FinishReason, Loaded, Message, SamplingParams, TokenId};
use firebrick_engine::{EventKind, Pipeline, Request};
use firebrick_text::{Detokenizer, RenderOptions, StopMatcher};

/// A model that answers one prompt at a time.
pub struct Generator {
    loaded: Loaded,
    /// How tokens are chosen.
    pub params: SamplingParams,
    stops: Vec<String>,
}

/// An answer.
#[derive(Debug, Default)]
pub struct Answer {
    /// Its text, without special tokens and stop strings.
    pub text: String,
    /// Its tokens.
    pub num_tokens: usize,
    /// Prompt tokens that were computed in an earlier turn.
    pub cached_tokens: u32,
    /// Why it ended; an interrupted answer has none.
    pub finish_reason: Option<FinishReason>,
    /// Time to the first token.
    pub first_token: Duration,
    /// Time in all.
    pub duration: Duration,
}

impl Generator {
    /// Wraps a model.
    pub fn new(loaded: Loaded, params: SamplingParams, stops: Vec<String>) -> Self {
        Self { loaded, params, stops }
    }

    /// The model.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// A plain text as a prompt.
    pub fn encode_text(&self, text: &str) -> Result<Vec<TokenId>, Error> {
        Ok(self.loaded.tokenizer.try_encode(text, true)?)
    }

    /// A conversation as a prompt for the assistant's next turn.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<TokenId>, Error> {
        let template = self.loaded.chat_template.as_ref().ok_or(Error::NoTemplate)?;
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        Ok(self.loaded.tokenizer.try_encode(&template.render(messages, &options)?, false)?)
    }

    /// Generates until the answer ends or `on_text` returns `false`. It is called with each piece of text as it comes,
    /// at every token, if need be with an empty piece.
    pub fn generate(&mut self, prompt: Vec<TokenId>, on_text: &mut dyn FnMut(&str) -> bool) -> Result<Answer, Error> {
        let started = Instant::now();
        let eos_token_ids = self.loaded.eos_token_ids.clone();
        let request = Request { eos_token_ids, ..Request::new(prompt, self.params.clone()) };
        let engine = &mut self.loaded.engine;
        let id = engine.add_request(request)?;
        let mut text = Text {
            detokenizer: self.loaded.tokenizer.detokenizer(true),
            stop: StopMatcher::new(&self.stops, false),
            started,
            answer: Answer::default(),
        };
        let mut pipeline = Pipeline::new();
        while engine.has_work() {
            let mut go_on = true;
            for event in pollster::block_on(pipeline.step(engine))? {
                let (piece, more) = text.take(event.kind);
                text.answer.text.push_str(&piece);
                go_on &= on_text(&piece) && more;
            }
            if !go_on {
                engine.abort(id);
                // The abort's own events are nobody's concern any more.
                engine.take_events();
            }
        }
        text.answer.duration = started.elapsed();
        Ok(text.answer)
    }
}

/// An answer in the making.
struct Text {
    detokenizer: Detokenizer,
    stop: StopMatcher,
    started: Instant,
    answer: Answer,
}

impl Text {
    /// The text that an event adds, and whether the answer goes on as far as stop strings are concerned.
    fn take(&mut self, event: EventKind) -> (String, bool) {
        let answer = &mut self.answer;
        match event {
            EventKind::Scheduled { cached_tokens } => {
                answer.cached_tokens = cached_tokens;
                (String::new(), true)
            }
            EventKind::Prompt(_) => (String::new(), true),
            EventKind::Token { token, is_stop, .. } => {
                answer.num_tokens += 1;
                if answer.num_tokens == 1 {
                    answer.first_token = self.started.elapsed();
                }
                if is_stop {
                    return (String::new(), true);
                }
                let output = self.stop.push(&self.detokenizer.push(token));
                if output.matched.is_some() {
                    answer.finish_reason = Some(FinishReason::Stop(None));
                }
                (output.text, output.matched.is_none())
            }
            EventKind::Finished { reason } => {
                answer.finish_reason.get_or_insert(reason);
                let mut text = self.stop.push(&self.detokenizer.finish()).text;
                text.push_str(&self.stop.finish());
                (text, true)
            }
        }
    }
}
