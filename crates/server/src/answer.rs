//! The two ways to answer a generating request: all at once, or as server-sent events.

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use firebrick_engine::TokenId;
use futures::stream;

use crate::anthropic::message_object;
use crate::body::json_response;
use crate::chat_format;
use crate::choice::{Finish, ReportedToken};
use crate::completion_format;
use crate::error::{ApiError, ErrorKind};
use crate::event_frame::EventFrame;
use crate::generation::Generation;
use crate::message::{CallIds, CollectedMessage};
use crate::prompt_report::{CollectedPrompt, PromptReport};
use crate::responses::ResponseFormat;
use crate::state::unix_seconds;
use crate::stream_pace::StreamPace;
use crate::stream_writer::StreamWriter;
use crate::telemetry::{OpenRequest, Streamed};
use crate::validate::{StreamOptions, ValidatedRequest};

/// Which endpoint's wire format an answer has.
pub enum Format {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
    /// `/v1/responses`.
    Response(Box<ResponseFormat>),
    /// Anthropic's `/v1/messages`.
    Messages,
}

/// What all parts of one answer share.
pub struct AnswerHead {
    /// `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The served name that was asked for.
    pub model: String,
    /// What choices begin with, one per choice; empty without `echo`.
    pub echoes: Vec<String>,
    /// The wire format.
    pub format: Format,
    /// Choices of all prompts.
    pub num_choices: u32,
    /// The prompts' tokens, when asked for along with those of the text.
    prompt_tokens: Option<Vec<Vec<TokenId>>>,
    /// Choices of one prompt, and how many of them are shown.
    per_prompt: (usize, usize),
    /// What is told about the prompts.
    pub report: PromptReport,
    shows_logprobs: bool,
    /// Ids of tool calls.
    pub call_ids: CallIds,
}

/// One whole choice.
#[derive(Debug, Default)]
pub struct CollectedChoice {
    /// Its text, without the prompt.
    pub text: String,
    /// Its tokens, when log-probabilities were asked for.
    pub tokens: Vec<ReportedToken>,
    /// How many tokens it has.
    pub num_tokens: u32,
    /// Which.
    pub token_ids: Vec<TokenId>,
    /// The message that the text is, where the answer is one.
    pub message: CollectedMessage,
    /// What is told about its prompt, for the first of the prompt's choices.
    pub prompt: CollectedPrompt,
    /// Why it is complete.
    pub finish: Option<Finish>,
}

/// What an answer shows when it is whole.
pub struct Collected {
    /// The choices of all prompts.
    pub choices: Vec<CollectedChoice>,
    /// What is told about each prompt.
    pub prompts: Vec<CollectedPrompt>,
}

impl CollectedChoice {
    /// How likely its tokens were on average; a choice without tokens comes last.
    fn mean_logprob(&self) -> f32 {
        let sum: f32 = self.tokens.iter().map(|token| token.chosen.logprob).sum();
        if self.tokens.is_empty() { f32::NEG_INFINITY } else { sum / self.tokens.len() as f32 }
    }

    /// `finish_reason`.
    pub fn finish_reason(&self) -> &'static str {
        self.finish.as_ref().map_or("stop", |finish| finish.reason)
    }
}

impl AnswerHead {
    /// The head of the answer to `request`.
    pub fn new(format: Format, id: &str, model: String, request: &ValidatedRequest) -> Self {
        let prefix = match format {
            Format::Chat => "chatcmpl-",
            Format::Completion => "cmpl-",
            Format::Response(_) => "resp_",
            Format::Messages => "msg_",
        };
        let prompts = request.prompts();
        let echoes = prompts.iter().filter_map(|prompt| prompt.echo.as_ref());
        let echoes = echoes.flat_map(|text| std::iter::repeat_n(text.clone(), request.n() as usize)).collect();
        let num_choices = prompts.len() as u32 * request.n();
        let call_ids = CallIds::new(request.message().is_some_and(|message| message.short_call_ids));
        let tokens = || prompts.iter().map(|prompt| prompt.tokens.clone()).collect();
        let prompt_tokens = request.text().report_tokens.then(tokens);
        let best = request.best();
        Self {
            id: format!("{prefix}{id}"),
            created: unix_seconds(),
            model,
            echoes,
            format,
            num_choices,
            prompt_tokens,
            per_prompt: (request.n() as usize, best.map_or(request.n(), |best| best.kept) as usize),
            shows_logprobs: best.is_none_or(|best| best.shows_logprobs),
            report: request.report().clone(),
            call_ids,
        }
    }

    /// Which prompt a choice that is shown continues.
    pub fn prompt_number(&self, index: u32) -> usize {
        index as usize / self.per_prompt.1.max(1)
    }

    /// Whether the client wants the tokens of prompt and text.
    pub fn returns_token_ids(&self) -> bool {
        self.prompt_tokens.is_some()
    }

    /// The tokens of the prompt that a choice continues, when asked for.
    pub fn prompt_token_ids(&self, index: u32) -> Option<Vec<TokenId>> {
        self.prompt_tokens.as_ref()?.get(self.prompt_number(index)).cloned()
    }

    /// A chunk's tokens, when asked for.
    pub fn token_ids(&self, tokens: Vec<TokenId>) -> Option<Vec<TokenId>> {
        Some(tokens).filter(|tokens| self.returns_token_ids() && !tokens.is_empty())
    }

    /// Leaves the likeliest choices of each prompt, where more were generated than asked for.
    fn keep_best(&mut self, mut choices: Vec<CollectedChoice>) -> Collected {
        let (generated, kept) = self.per_prompt;
        // The first choice has what is told about the prompt; it may not be among the best.
        let firsts = choices.iter_mut().step_by(generated.max(1));
        let prompts = firsts.map(|choice| std::mem::take(&mut choice.prompt)).collect();
        if kept == generated {
            return Collected { choices, prompts };
        }
        let mut best = likeliest(choices, generated, kept);
        if !self.shows_logprobs {
            best.iter_mut().for_each(|choice| choice.tokens.clear());
        }
        let echoes = std::mem::take(&mut self.echoes);
        self.echoes = echoes.chunks(generated).flat_map(|of_prompt| of_prompt[..kept].to_vec()).collect();
        Collected { choices: best, prompts }
    }

    /// Answers when all choices are complete.
    pub async fn whole(mut self, mut generation: Generation, open: &mut OpenRequest) -> Result<Response, ApiError> {
        let choices = collect(&mut generation, self.num_choices).await?;
        let collected = self.keep_best(choices);
        open.succeed(&generation);
        let (usage, stats) = (generation.usage(), generation.stats());
        Ok(match self.format {
            Format::Response(ref format) => {
                json_response(StatusCode::OK, &format.whole(&self, collected.choices, &usage))
            }
            Format::Messages => json_response(StatusCode::OK, &message_object(&self, collected.choices, &usage)),
            Format::Chat => json_response(StatusCode::OK, &chat_format::response(self, collected, usage, stats)),
            Format::Completion => {
                json_response(StatusCode::OK, &completion_format::response(self, collected, usage, stats))
            }
        })
    }

    /// Whether the answer is given before it is generated.
    pub fn is_background(&self) -> bool {
        matches!(&self.format, Format::Response(format) if format.background)
    }

    /// Answers at once and generates behind; the outcome is kept.
    pub fn behind(self, mut generation: Generation, mut open: OpenRequest) -> Response {
        let Format::Response(format) = &self.format else {
            return ApiError::new(ErrorKind::Internal, "only responses are generated behind").into_response();
        };
        let format = format.clone();
        let queued = format.object(&self, "queued", Vec::new(), None);
        let running = format.clone();
        let head = std::sync::Arc::new(self);
        let (begin, begun) = tokio::sync::oneshot::channel::<Result<(), ApiError>>();
        let generated = head.clone();
        let task = tokio::spawn(async move {
            // The response is kept before its outcome can be.
            match begun.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return open.fail(&error),
                // Whoever asked has ended by a panic.
                Err(_) => return,
            }
            match collect(&mut generation, 1).await {
                Ok(choices) => {
                    running.whole(&generated, choices, &generation.usage());
                    open.succeed(&generation);
                }
                Err(error) => {
                    open.fail(&error);
                    let object = running.failed(&generated, Vec::new(), &error);
                    running.store(&generated, object, &CollectedMessage::default());
                }
            }
        });
        let in_progress = format.object(&head, "in_progress", Vec::new(), None);
        let kept = format.begin(&head, in_progress, task.abort_handle());
        // The task waits for this word; it cannot have ended.
        let _ = begin.send(kept.clone());
        kept.map_or_else(IntoResponse::into_response, |()| json_response(StatusCode::OK, &queued))
    }

    /// Answers with events as the choices grow.
    pub fn streamed(self, generation: Generation, options: StreamOptions, mut open: OpenRequest) -> Response {
        open.set_streamed();
        let writer = StreamWriter::new(&self);
        let pace = StreamPace::new(options.interval, self.num_choices);
        let events = EventWriter { head: self, generation, options, writer, pace, open, begun: false, ended: false };
        let frames = stream::unfold(events, |mut events| async move {
            let frame = events.next_frame().await?;
            Some((Ok::<_, std::convert::Infallible>(frame), events))
        });
        let mut response = Response::new(Body::from_stream(frames));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        // Asks reverse proxies not to hold events back.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response.extensions_mut().insert(Streamed);
        response
    }
}

/// Of every `generated` choices in a row the `kept` likeliest, best first.
fn likeliest(mut choices: Vec<CollectedChoice>, generated: usize, kept: usize) -> Vec<CollectedChoice> {
    let mut best = Vec::new();
    while !choices.is_empty() {
        let mut of_prompt: Vec<_> = choices.drain(..generated.min(choices.len())).collect();
        of_prompt.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
        best.extend(of_prompt.into_iter().take(kept));
    }
    best
}

/// Waits for all choices.
pub async fn collect(generation: &mut Generation, num_choices: u32) -> Result<Vec<CollectedChoice>, ApiError> {
    let mut choices: Vec<_> = (0..num_choices).map(|_| CollectedChoice::default()).collect();
    while let Some(deltas) = generation.next().await {
        for delta in deltas? {
            let Some(choice) = choices.get_mut(delta.index as usize) else { continue };
            choice.text.push_str(&delta.text);
            choice.num_tokens += delta.num_tokens;
            choice.tokens.extend(delta.tokens);
            choice.token_ids.extend(delta.token_ids);
            if let Some(part) = delta.prompt {
                choice.prompt.add(part);
            }
            delta.events.into_iter().for_each(|event| choice.message.add(event));
            choice.finish = delta.finish.or(choice.finish.take());
        }
    }
    Ok(choices)
}

/// Writes an answer as server-sent events. Dropping it, when the client leaves, aborts the generation.
struct EventWriter {
    head: AnswerHead,
    generation: Generation,
    options: StreamOptions,
    writer: StreamWriter,
    pace: StreamPace,
    open: OpenRequest,
    begun: bool,
    ended: bool,
}

impl EventWriter {
    /// The events that are ready, as one piece to write.
    async fn next_frame(&mut self) -> Option<Bytes> {
        loop {
            if self.ended {
                return None;
            }
            let progress = self.generation.next().await;
            let mut frame = EventFrame::new(&self.head, self.options, &self.generation);
            match progress {
                Some(Ok(deltas)) => {
                    if !deltas.is_empty() && !std::mem::replace(&mut self.begun, true) {
                        self.writer.begin(&mut frame);
                    }
                    let told = deltas.into_iter().filter_map(|delta| self.pace.pass(delta));
                    told.for_each(|delta| self.writer.add(&mut frame, delta));
                }
                Some(Err(error)) => {
                    self.open.fail(&error);
                    self.pace.rest().for_each(|delta| self.writer.add(&mut frame, delta));
                    self.writer.fail(&mut frame, &error);
                    self.ended = true;
                }
                None => {
                    self.writer.end(&mut frame);
                    self.open.succeed(&self.generation);
                    self.ended = true;
                }
            }
            let bytes = frame.into_bytes();
            if !bytes.is_empty() {
                return Some(bytes.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::TokenLogprob;

    #[test]
    fn the_likeliest_choices_of_each_prompt_are_kept() {
        let choice = |text: &str, logprobs: &[f32]| {
            let token = |logprob: &f32| ReportedToken {
                chosen: TokenLogprob { text: String::new(), bytes: Vec::new(), logprob: *logprob },
                top: Vec::new(),
            };
            let tokens = logprobs.iter().map(token).collect();
            CollectedChoice { text: text.to_owned(), tokens, ..CollectedChoice::default() }
        };
        // The mean decides, not the sum, so that short texts win nothing.
        let choices = vec![
            choice("a", &[-1.0]),
            choice("b", &[-0.5, -0.5, -0.5]),
            choice("c", &[-2.0]),
            choice("d", &[]),
            choice("e", &[-3.0]),
            choice("f", &[-3.0]),
        ];
        let texts: Vec<String> = likeliest(choices, 3, 2).into_iter().map(|choice| choice.text).collect();
        assert_eq!(texts, ["b", "a", "e", "f"]);
    }
}
