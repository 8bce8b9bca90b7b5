//! One HTTP request at work: its engine requests, their events and the choices they grow into.
//!
//! Dropping a [`Generation`] drops its event streams, which aborts what still runs.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use firebrick_engine::{EventKind, TokenEvent};
use futures::stream::{SelectAll, Stream, StreamExt};

use crate::choice::{Choice, Delta};
use crate::engine_handle::{EventStream, SubmitError};
use crate::engine_metrics::Refused;
use crate::error::{ApiError, ErrorKind};
use crate::openai::{CompletionTokensDetails, PromptTokensDetails, Usage, VllmStats};
use crate::quota::Charge;
use crate::request_trace::Phases;
use crate::state::Model;
use crate::validate::ValidatedRequest;

/// A request that the engine works on.
pub struct Generation {
    streams: SelectAll<PromptStream>,
    arrived: Instant,
    prompt_tokens: u64,
    completion_tokens: u64,
    reasoning_tokens: u64,
    cached_tokens: u64,
    phases: Vec<Arc<Phases>>,
    /// What was found before this began.
    found: Option<Vec<Delta>>,
    timeout: Option<Duration>,
    charge: Option<Charge>,
}

impl Generation {
    /// Hands the request's prompts to the engine.
    pub async fn start(model: &Arc<Model>, request: &ValidatedRequest, arrived: Instant) -> Result<Self, ApiError> {
        let requests = request.engine_requests(&model.eos_token_ids);
        let streams = model.engine.submit_all(requests, arrived).await.map_err(|error| refused(error, model))?;
        let phases = streams.iter().map(EventStream::phases).collect();
        let numbered = (0..).zip(streams);
        let streams = numbered.map(|(number, events)| PromptStream::new(number, events, model, request)).collect();
        Ok(Self {
            streams,
            arrived,
            prompt_tokens: request.prompt_tokens(),
            completion_tokens: 0,
            reasoning_tokens: 0,
            cached_tokens: 0,
            phases,
            found: None,
            timeout: None,
            charge: None,
        })
    }

    /// A request whose choices are complete.
    pub fn finished(request: &ValidatedRequest, deltas: Vec<Delta>, arrived: Instant) -> Self {
        Self {
            streams: SelectAll::new(),
            arrived,
            prompt_tokens: request.prompt_tokens(),
            completion_tokens: 0,
            reasoning_tokens: 0,
            cached_tokens: 0,
            phases: Vec::new(),
            found: Some(deltas),
            timeout: None,
            charge: None,
        }
    }

    /// What the engine notes about each prompt.
    pub(crate) fn phases(&self) -> &[Arc<Phases>] {
        &self.phases
    }

    /// Ends with an error once the request is older than `timeout`.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// The request stays open in its key's account until this is dropped. Of a request that the engine works on the prompt is
    /// charged now and the answer as it grows; choices that had been found before were charged while they were looked for.
    pub(crate) fn set_charge(&mut self, charge: Charge) {
        if self.found.is_none() {
            charge.tokens(self.prompt_tokens);
        }
        self.charge = Some(charge);
    }

    /// What has been added to the choices since the last call; `None` once all are complete.
    pub async fn next(&mut self) -> Option<Result<Vec<Delta>, ApiError>> {
        if let Some(deltas) = self.found.take() {
            self.count(&deltas);
            return Some(Ok(deltas));
        }
        let next = self.streams.next();
        let next = match self.timeout {
            None => next.await,
            Some(timeout) => match tokio::time::timeout_at((self.arrived + timeout).into(), next).await {
                Ok(next) => next,
                Err(_) => return Some(Err(timed_out(timeout))),
            },
        };
        let progress = match next? {
            Ok(progress) => progress,
            Err(error) => return Some(Err(error)),
        };
        let before = self.completion_tokens;
        self.count(&progress.deltas);
        if let Some(charge) = &self.charge {
            charge.tokens(self.completion_tokens - before);
        }
        self.cached_tokens += progress.cached_tokens;
        Some(Ok(progress.deltas))
    }

    fn count(&mut self, deltas: &[Delta]) {
        self.completion_tokens += deltas.iter().map(|delta| u64::from(delta.num_tokens)).sum::<u64>();
        self.reasoning_tokens += deltas.iter().map(|delta| u64::from(delta.num_reasoning_tokens)).sum::<u64>();
    }

    /// Token counts so far.
    pub fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            total_tokens: self.prompt_tokens + self.completion_tokens,
            completion_tokens: self.completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens: self.cached_tokens },
            completion_tokens_details: CompletionTokensDetails { reasoning_tokens: self.reasoning_tokens },
        }
    }

    /// Speed so far.
    pub fn stats(&self) -> VllmStats {
        let seconds = self.arrived.elapsed().as_secs_f64();
        let tokens_per_second = self.completion_tokens as f64 / seconds.max(f64::EPSILON);
        VllmStats { inference_time_seconds: seconds, tokens_per_second }
    }
}

/// The error of a request that took too long.
pub(crate) fn timed_out(timeout: Duration) -> ApiError {
    let message = format!("the request took longer than {} s, which this server allows", timeout.as_secs_f64());
    ApiError::new(ErrorKind::DeadlineExceeded, message)
}

/// Why the engine did not take a request.
pub(crate) fn refused(error: SubmitError, model: &Model) -> ApiError {
    match error {
        SubmitError::Rejected(rejected) => rejected.into(),
        SubmitError::InboxFull => {
            model.engine.metrics().count_refused(Refused::QueueFull);
            ApiError::new(ErrorKind::Unavailable, error.to_string())
        }
        SubmitError::NotRunning | SubmitError::TooManyWatchers => {
            ApiError::new(ErrorKind::Unavailable, error.to_string())
        }
    }
}

/// What one prompt's choices gained.
#[derive(Default)]
struct Progress {
    deltas: Vec<Delta>,
    cached_tokens: u64,
}

/// One prompt's events and choices; ends when all its choices are complete.
struct PromptStream {
    events: EventStream,
    buffer: Vec<TokenEvent>,
    choices: Vec<Choice>,
    failed: bool,
}

impl PromptStream {
    fn new(number: u32, events: EventStream, model: &Model, request: &ValidatedRequest) -> Self {
        let prompt = &request.prompts()[number as usize].tokens;
        let first = number * request.n();
        let choice = |index| {
            Choice::new(first + index, &model.tokenizer, request.text(), prompt).with_message(request.message())
        };
        Self { events, buffer: Vec::new(), choices: (0..request.n()).map(choice).collect(), failed: false }
    }

    fn is_finished(&self) -> bool {
        self.failed || self.choices.iter().all(Choice::is_finished)
    }

    fn apply_all(&mut self) -> Result<Progress, ApiError> {
        let (mut progress, mut stopped) = (Progress::default(), Vec::new());
        for event in self.buffer.drain(..) {
            let Some(choice) = self.choices.get_mut(event.index as usize) else { continue };
            // The choices share the prompt's blocks; the first one says how many were cached.
            if let (0, EventKind::Scheduled { cached_tokens }) = (event.index, &event.kind) {
                progress.cached_tokens += u64::from(*cached_tokens);
            }
            let ends_itself = choice.is_finished() || matches!(event.kind, EventKind::Finished { .. });
            progress.deltas.extend(choice.apply(event.kind)?);
            if choice.is_finished() && !ends_itself {
                stopped.push(event.index);
            }
        }
        if self.choices.iter().all(Choice::is_finished) {
            self.events.stop_early();
        } else {
            stopped.into_iter().for_each(|index| self.events.stop_choice(index));
        }
        Ok(progress)
    }
}

impl Stream for PromptStream {
    type Item = Result<Progress, ApiError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.is_finished() {
            return Poll::Ready(None);
        }
        let count = ready!(this.events.poll_events(context, &mut this.buffer));
        let result = if count == 0 {
            let message = "the request was ended by the server: its engine stopped, or its reader was too slow";
            Err(ApiError::new(ErrorKind::Internal, message))
        } else {
            this.apply_all()
        };
        this.failed = result.is_err();
        Poll::Ready(Some(result))
    }
}
