//! The two ways to answer a generating request: all at once, or as server-sent events.

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures::stream;
use serde::Serialize;

use crate::body::json_response;
use crate::chat_format;
use crate::choice::{Delta, Finish, ReportedToken};
use crate::completion_format::{self, TextOffsets};
use crate::error::ApiError;
use crate::generation::Generation;
use crate::openai::{Field, Usage, VllmStats};
use crate::state::unix_seconds;
use crate::telemetry::{OpenRequest, Streamed};
use crate::validate::{StreamOptions, ValidatedRequest};

/// Which endpoint's wire format an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
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
    format: Format,
    num_choices: u32,
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
    /// Why it is complete.
    pub finish: Option<Finish>,
}

impl CollectedChoice {
    /// `finish_reason`.
    pub fn finish_reason(&self) -> &'static str {
        self.finish.as_ref().map_or("stop", |finish| finish.reason)
    }
}

impl AnswerHead {
    /// The head of the answer to `request`.
    pub fn new(format: Format, id: &str, model: String, request: &ValidatedRequest) -> Self {
        let prefix = match format {
            Format::Chat => "chatcmpl",
            Format::Completion => "cmpl",
        };
        let prompts = request.prompts();
        let echoes = prompts.iter().filter_map(|prompt| prompt.echo.as_ref());
        let echoes = echoes.flat_map(|text| std::iter::repeat_n(text.clone(), request.n() as usize)).collect();
        let num_choices = prompts.len() as u32 * request.n();
        Self { id: format!("{prefix}-{id}"), created: unix_seconds(), model, echoes, format, num_choices }
    }

    /// Answers when all choices are complete.
    pub async fn whole(self, mut generation: Generation, open: &mut OpenRequest) -> Result<Response, ApiError> {
        let choices = collect(&mut generation, self.num_choices).await?;
        open.succeed(&generation);
        let (usage, stats) = (generation.usage(), generation.stats());
        Ok(match self.format {
            Format::Chat => json_response(StatusCode::OK, &chat_format::response(self, choices, usage, stats)),
            Format::Completion => {
                json_response(StatusCode::OK, &completion_format::response(self, choices, usage, stats))
            }
        })
    }

    /// Answers with events as the choices grow.
    pub fn streamed(self, generation: Generation, options: StreamOptions, mut open: OpenRequest) -> Response {
        open.set_streamed();
        let offsets = TextOffsets::new(&self.echoes, self.num_choices);
        let events = EventWriter { head: self, generation, options, offsets, open, begun: false, ended: false };
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

/// Waits for all choices.
pub async fn collect(generation: &mut Generation, num_choices: u32) -> Result<Vec<CollectedChoice>, ApiError> {
    let mut choices: Vec<_> = (0..num_choices).map(|_| CollectedChoice::default()).collect();
    while let Some(deltas) = generation.next().await {
        for delta in deltas? {
            let Some(choice) = choices.get_mut(delta.index as usize) else { continue };
            choice.text.push_str(&delta.text);
            choice.num_tokens += delta.num_tokens;
            choice.tokens.extend(delta.token);
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
    offsets: TextOffsets,
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
            let mut frame = Vec::new();
            match self.generation.next().await {
                Some(Ok(deltas)) => self.write_deltas(&mut frame, deltas),
                Some(Err(error)) => {
                    self.open.fail(&error);
                    write_event(&mut frame, &error.body());
                    self.end(&mut frame);
                }
                None => {
                    self.write_last_usage(&mut frame);
                    self.open.succeed(&self.generation);
                    self.end(&mut frame);
                }
            }
            if !frame.is_empty() {
                return Some(frame.into());
            }
        }
    }

    fn write_deltas(&mut self, frame: &mut Vec<u8>, deltas: Vec<Delta>) {
        let usage = self.chunk_usage();
        if !deltas.is_empty() && !std::mem::replace(&mut self.begun, true) {
            self.write_opening(frame, &usage);
        }
        for delta in deltas {
            let shows_nothing = delta.text.is_empty() && delta.token.is_none() && delta.finish.is_none();
            if shows_nothing {
                continue;
            }
            match self.head.format {
                Format::Chat => write_event(frame, &chat_format::chunk(&self.head, delta, usage.clone())),
                Format::Completion => {
                    let chunk = completion_format::chunk(&self.head, delta, &mut self.offsets, usage.clone());
                    write_event(frame, &chunk);
                }
            }
        }
    }

    /// What every choice begins with, before its first token.
    fn write_opening(&self, frame: &mut Vec<u8>, usage: &Field<Usage>) {
        match self.head.format {
            Format::Chat => {
                for index in 0..self.head.num_choices {
                    write_event(frame, &chat_format::opening(&self.head, index, usage.clone()));
                }
            }
            Format::Completion => {
                for (index, text) in (0..).zip(&self.head.echoes) {
                    write_event(frame, &completion_format::opening(&self.head, index, text, usage.clone()));
                }
            }
        }
    }

    /// The `usage` of a chunk that is not the last: absent, null or the counts so far.
    fn chunk_usage(&self) -> Field<Usage> {
        match self.options {
            StreamOptions { continuous_usage: true, .. } => Some(Some(self.generation.usage())),
            StreamOptions { include_usage: true, .. } => Some(None),
            _ => None,
        }
    }

    fn write_last_usage(&self, frame: &mut Vec<u8>) {
        if !self.options.include_usage {
            return;
        }
        let (usage, stats): (Usage, VllmStats) = (self.generation.usage(), self.generation.stats());
        match self.head.format {
            Format::Chat => write_event(frame, &chat_format::usage_chunk(&self.head, usage, stats)),
            Format::Completion => write_event(frame, &completion_format::usage_chunk(&self.head, usage, stats)),
        }
    }

    fn end(&mut self, frame: &mut Vec<u8>) {
        frame.extend_from_slice(b"data: [DONE]\n\n");
        self.ended = true;
    }
}

fn write_event<T: Serialize>(frame: &mut Vec<u8>, value: &T) {
    frame.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *frame, value).expect("response types hold only maps with string keys");
    frame.extend_from_slice(b"\n\n");
}
