//! One request's answer: tokens become text, and stop strings end it.

use firebrick_engine::{EventKind, FinishReason};
use firebrick_text::{Detokenizer, StopMatcher, Tokenizer};

use crate::messages::Event;

/// An answer in the making.
pub struct Answer {
    request: u64,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    stopped: bool,
}

impl Answer {
    /// An answer that continues `prompt`.
    pub fn new(request: u64, tokenizer: &Tokenizer, prompt: &[u32], stop: &[String]) -> Self {
        let mut detokenizer = tokenizer.detokenizer(true);
        detokenizer.continue_after(prompt);
        Self { request, detokenizer, matcher: StopMatcher::new(stop, false), stopped: false }
    }

    /// A stop string has ended it, so that the engine need not go on.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// What the page is told of an event of the engine; nothing comes after a stop string but the end.
    pub fn take(&mut self, kind: EventKind) -> Option<Event> {
        let request = self.request;
        match kind {
            EventKind::Scheduled { cached_tokens } => Some(Event::Scheduled { request, cached_tokens }),
            EventKind::Token { .. } if self.stopped => None,
            // The page asks for no results of prompts.
            EventKind::Prompt(_) => None,
            EventKind::Token { token, is_stop: true, .. } => Some(Event::Token { request, token, text: String::new() }),
            EventKind::Token { token, .. } => {
                let output = self.matcher.push(&self.detokenizer.push(token));
                self.stopped = output.matched.is_some();
                Some(Event::Token { request, token, text: output.text })
            }
            EventKind::Finished { reason } => Some(self.finish(reason)),
        }
    }

    fn finish(&mut self, reason: FinishReason) -> Event {
        let mut text = String::new();
        if !self.stopped {
            let output = self.matcher.push(&self.detokenizer.finish());
            self.stopped = output.matched.is_some();
            text = output.text + &self.matcher.finish();
        }
        let reason = match reason {
            _ if self.stopped => "stop".to_owned(),
            FinishReason::Stop(_) => "stop".to_owned(),
            FinishReason::Length => "length".to_owned(),
            FinishReason::Abort => "abort".to_owned(),
            FinishReason::Impossible => "the request's conditions left no token to choose".to_owned(),
            FinishReason::Error(message) => message,
        };
        Event::Finished { request: self.request, text, reason }
    }
}
