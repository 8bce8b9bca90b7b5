//! One choice of an answer: tokens become text, and stop strings end it.

use firebrick_engine::{EventKind, FinishReason, TokenId, TokenLogprobs};
use firebrick_text::{Detokenizer, MessageEvent, MessageReader, StopMatcher, StopOutput, TOO_COMPLEX, Tokenizer};

use crate::error::{ApiError, ErrorKind};
use crate::message::MessageOptions;
use crate::openai::StopReason;
use crate::prompt_report::PromptPart;
use crate::validate::TextOptions;

/// What one event added to a choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Number of the choice within the whole answer.
    pub index: u32,
    /// Text that is certain now; may be empty.
    pub text: String,
    /// What the text means, where the answer is a message.
    pub events: Vec<MessageEvent>,
    /// Tokens of reasoning among `num_tokens`.
    pub num_reasoning_tokens: u32,
    /// Tokens that the event brought: 0 or 1; more where several events were put together.
    pub num_tokens: u32,
    /// Which.
    pub token_ids: Vec<TokenId>,
    /// The tokens with their log-probabilities, when they were asked for.
    pub tokens: Vec<ReportedToken>,
    /// Results of the prompt, for its first choice, when they were asked for.
    pub prompt: Option<PromptPart>,
    /// Set when the choice is complete.
    pub finish: Option<Finish>,
}

impl Delta {
    /// Adds what a later event has added to the same choice. What is told about prompts stays by itself.
    pub fn extend(&mut self, later: Self) {
        self.text.push_str(&later.text);
        self.events.extend(later.events);
        self.num_reasoning_tokens += later.num_reasoning_tokens;
        self.num_tokens += later.num_tokens;
        self.token_ids.extend(later.token_ids);
        self.tokens.extend(later.tokens);
        self.finish = later.finish.or(self.finish.take());
    }
}

/// A token whose log-probabilities are reported.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportedToken {
    /// The chosen token.
    pub chosen: TokenLogprob,
    /// The most likely tokens, best first.
    pub top: Vec<TokenLogprob>,
}

/// A token as log-probabilities show it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Its text, or its number where the client wants that.
    pub text: String,
    /// What it adds to the text, exactly: a character may be spread over several tokens.
    pub bytes: Vec<u8>,
    /// How likely it was.
    pub logprob: f32,
}

/// How log-probabilities show tokens.
#[derive(Clone, Debug)]
pub struct TokenTexts {
    tokenizer: Tokenizer,
    as_ids: bool,
}

impl TokenTexts {
    /// By their text, or by their number.
    pub fn new(tokenizer: &Tokenizer, as_ids: bool) -> Self {
        Self { tokenizer: tokenizer.clone(), as_ids }
    }

    /// A token that stands after another, where it does not lose a leading space.
    pub fn show(&self, before: Option<TokenId>, token: TokenId, logprob: f32) -> TokenLogprob {
        let text = if self.as_ids { format!("token_id:{token}") } else { self.text(before, token) };
        let bytes = self.tokenizer.token_bytes(token).unwrap_or_default();
        TokenLogprob { text, bytes, logprob: finite(logprob) }
    }

    fn text(&self, before: Option<TokenId>, token: TokenId) -> String {
        let mut detokenizer = self.tokenizer.detokenizer(false);
        detokenizer.continue_after(before.as_slice());
        detokenizer.push(token) + &detokenizer.finish()
    }
}

/// Why a choice is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// `stop`, `length`, `tool_calls` or `abort`.
    pub reason: &'static str,
    /// Which stop token or stop string.
    pub stop_reason: Option<StopReason>,
}

/// How a choice's text becomes a message.
struct Message {
    reader: MessageReader,
    options: MessageOptions,
    num_calls: u32,
}

/// The state of one choice.
pub struct Choice {
    index: u32,
    texts: TokenTexts,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    options: TextOptions,
    message: Option<Message>,
    num_tokens: u32,
    last_token: TokenId,
    /// The last token of the prompt whose successor's log-probabilities have come.
    last_reported: TokenId,
    finished: bool,
}

impl Choice {
    /// A choice that continues `prompt`.
    pub fn new(index: u32, tokenizer: &Tokenizer, options: &TextOptions, prompt: &[TokenId]) -> Self {
        let mut detokenizer = tokenizer.detokenizer(options.skip_special_tokens);
        if options.continues_prompt {
            detokenizer.continue_after(prompt);
        }
        Self {
            index,
            texts: TokenTexts::new(tokenizer, options.tokens_as_ids),
            detokenizer,
            matcher: StopMatcher::new(&options.stops, options.include_stop),
            options: options.clone(),
            num_tokens: 0,
            last_token: prompt.last().copied().unwrap_or_default(),
            last_reported: prompt.first().copied().unwrap_or_default(),
            message: None,
            finished: false,
        }
    }

    /// Reads the text as a message.
    #[must_use]
    pub fn with_message(mut self, options: Option<&MessageOptions>) -> Self {
        if let Some(options) = options {
            self.detokenizer.show(options.shown.clone());
            self.message = Some(Message { reader: options.reader.clone(), options: options.clone(), num_calls: 0 });
        }
        self
    }

    /// Whether the choice is complete.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Takes an event of the engine; `None` when it changes nothing that a client sees.
    pub fn apply(&mut self, kind: EventKind) -> Result<Option<Delta>, ApiError> {
        if self.finished {
            return Ok(None);
        }
        let mut delta = match kind {
            EventKind::Scheduled { .. } => return Ok(None),
            EventKind::Prompt(result) => {
                let prompt = PromptPart::new(result, &self.texts, &mut self.last_reported)?;
                Delta { index: self.index, prompt: Some(prompt), ..Delta::default() }
            }
            EventKind::Token { token, logprobs, is_stop } => self.token(token, logprobs, is_stop),
            EventKind::Finished { reason } => self.finish(reason)?,
        };
        if let Some(message) = &mut self.message {
            message.read(&mut delta);
        }
        self.finished |= delta.finish.is_some();
        Ok(Some(delta))
    }

    fn token(&mut self, token: TokenId, logprobs: Option<TokenLogprobs>, is_stop: bool) -> Delta {
        let tokens = logprobs.map(|logprobs| self.report(token, logprobs)).into_iter().collect();
        self.last_token = token;
        self.num_tokens += 1;
        let mut delta = Delta { index: self.index, num_tokens: 1, token_ids: vec![token], tokens, ..Delta::default() };
        if is_stop {
            if self.options.include_stop {
                // Nothing comes after it, so what was held back before it is text.
                let before = self.matcher.finish();
                delta.text = before + &self.detokenizer.push(token) + &self.detokenizer.finish();
            }
            return delta;
        }
        let text = self.detokenizer.push(token);
        let output = self.watch(&text);
        delta.text = output.text;
        delta.finish = output.matched.map(|number| self.matched(number));
        delta
    }

    /// Looks for stop strings, which end nothing before there are more tokens than `min_tokens`.
    fn watch(&mut self, text: &str) -> StopOutput {
        if self.num_tokens <= self.options.min_tokens {
            return StopOutput { text: self.matcher.pass(text), matched: None };
        }
        self.matcher.push(text)
    }

    fn matched(&mut self, number: usize) -> Finish {
        self.finished = true;
        Finish { reason: "stop", stop_reason: self.options.stops.get(number).cloned().map(StopReason::Text) }
    }

    fn finish(&mut self, reason: FinishReason) -> Result<Delta, ApiError> {
        let mut finish = match reason {
            FinishReason::Stop(token) => Finish { reason: "stop", stop_reason: token.map(StopReason::Token) },
            FinishReason::Length => Finish { reason: "length", stop_reason: None },
            FinishReason::Abort => Finish { reason: "abort", stop_reason: None },
            FinishReason::Impossible => return Err(impossible()),
            FinishReason::Error(message) => {
                // A grammar that costs too much is the request's fault; everything else is ours.
                let is_theirs = message.starts_with(TOO_COMPLEX);
                return Err(ApiError::new(
                    if is_theirs { ErrorKind::BadRequest } else { ErrorKind::Internal },
                    message,
                ));
            }
        };
        let rest = self.detokenizer.finish();
        let output = self.watch(&rest);
        let text = output.text + &self.matcher.finish();
        if let Some(number) = output.matched {
            finish = self.matched(number);
        }
        self.finished = true;
        Ok(Delta { index: self.index, text, finish: Some(finish), ..Delta::default() })
    }

    fn report(&self, token: TokenId, logprobs: TokenLogprobs) -> ReportedToken {
        let alternatives = logprobs.top.into_iter();
        ReportedToken {
            chosen: self.texts.show(Some(self.last_token), token, logprobs.chosen),
            top: alternatives.map(|(token, logprob)| self.texts.show(Some(self.last_token), token, logprob)).collect(),
        }
    }
}

impl Message {
    /// Finds out what the text of a delta means.
    fn read(&mut self, delta: &mut Delta) {
        let was_reasoning = self.reader.is_reasoning();
        let mut events = self.reader.push(&delta.text);
        if was_reasoning {
            delta.num_reasoning_tokens = delta.num_tokens;
        }
        if delta.finish.is_some() {
            events.extend(self.reader.finish());
        }
        if !self.options.include_reasoning {
            events.retain(|event| !matches!(event, MessageEvent::Reasoning(_)));
        }
        if self.options.ends_with_call
            && let Some(end) = events.iter().position(|event| *event == MessageEvent::CallEnd)
        {
            events.truncate(end + 1);
            delta.finish.get_or_insert(Finish { reason: "stop", stop_reason: None });
        }
        self.num_calls += events.iter().filter(|event| **event == MessageEvent::CallEnd).count() as u32;
        if let Some(finish) = &mut delta.finish
            && finish.reason == "stop"
            && self.num_calls > 0
            && self.options.calls_are_a_reason
        {
            finish.reason = "tool_calls";
        }
        delta.events = events;
    }
}

/// JSON has no infinity; an impossible token is shown as very unlikely.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
/// The request contradicts itself, which shows only when the contradiction is reached.
fn impossible() -> ApiError {
    let message = "no token is possible here: what the text must follow (a grammar, a schema, choices, \
                   allowed_token_ids) cannot be spelled with this model's vocabulary, or leaves only tokens that \
                   bad_words or min_tokens exclude";
    ApiError::new(ErrorKind::BadRequest, message)
}
