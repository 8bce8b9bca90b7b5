//! The server's side of the engine thread: submitting requests and reading their events.
//!
//! Dropping an [`EventStream`] is the only way to cancel: the engine aborts the request before its next step.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use firebrick_engine::{BlockId, EngineConfig, EventKind, Rejected, Request, TokenEvent, TokenId};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use crate::engine_metrics::EngineMetrics;
use crate::heartbeat::Heartbeat;
use crate::request_trace::Phases;
use crate::step_watch::{WATCHERS_MAX, Watching};

/// Why a request did not reach the engine.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// The inbox is full.
    #[error("the server is overloaded: its request queue is full")]
    InboxFull,
    /// The engine thread has ended.
    #[error("the engine is not running")]
    NotRunning,
    /// As many watch the engine as may.
    #[error("{WATCHERS_MAX} watch this engine already, as many as may")]
    TooManyWatchers,
    /// The engine refused it.
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

/// What the engine thread is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineState {
    /// Serving.
    Running,
    /// Ended on request.
    Stopped,
    /// Ended by a device failure or a panic; the text says which.
    Dead(String),
}

/// The engine's gauges and counters as of its last step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineSnapshot {
    /// Sequences in batches.
    pub num_running: u64,
    /// Requests waiting for their first step or preempted.
    pub num_waiting: u64,
    /// Blocks owned by sequences.
    pub blocks_used: u64,
    /// Blocks in the pool.
    pub blocks_total: u64,
    /// Tokens per block.
    pub block_size: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Sequences preempted.
    pub num_preemptions: u64,
}

impl EngineSnapshot {
    /// Share of the blocks that sequences own, 0 to 1.
    pub fn kv_usage(&self) -> f64 {
        self.blocks_used as f64 / self.blocks_total.max(1) as f64
    }
}

/// A request on its way to the engine.
pub(crate) struct Submission {
    pub request: Request,
    pub arrived: Instant,
    pub events: mpsc::Sender<Vec<TokenEvent>>,
    pub reader: Arc<ReaderWishes>,
    pub phases: Arc<Phases>,
}

/// What a request's reader tells the engine's thread.
#[derive(Default)]
pub(crate) struct ReaderWishes {
    /// The text is complete, so that the end of the reader counts as `stop`.
    pub stopped_early: AtomicBool,
    /// Choices that are complete while others go on.
    stopped_choices: Mutex<Vec<u32>>,
}

impl ReaderWishes {
    fn lock_choices(&self) -> MutexGuard<'_, Vec<u32>> {
        self.stopped_choices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The choices that have become complete since the last call.
    pub fn take_choices(&self) -> Vec<u32> {
        std::mem::take(&mut *self.lock_choices())
    }
}

pub(crate) enum Command {
    /// Adds requests that belong together, up to the first that is refused.
    Submit { submissions: Vec<Submission>, reply: oneshot::Sender<Result<(), Rejected>> },
    /// Shows the engine's steps to somebody, at most one in every `interval`; answered with `None` when too many watch.
    Watch { interval: Duration, reply: oneshot::Sender<Option<Watching>> },
    /// Reads a block for somebody who watches.
    ReadBlock { block: BlockId, reply: oneshot::Sender<Vec<TokenId>> },
    /// Wakes an idle engine so that it sees the stop flag, or that a watcher has room again.
    Wake,
}

/// What both sides of the thread boundary see.
pub(crate) struct Shared {
    pub config: EngineConfig,
    pub metrics: EngineMetrics,
    pub snapshot: Mutex<EngineSnapshot>,
    pub state: watch::Sender<EngineState>,
    pub stop: AtomicBool,
    /// What open requests are told when the engine stops.
    pub stop_reason: OnceLock<&'static str>,
    /// Tokens of the prompts whose answers have not begun.
    pub queued_tokens: AtomicU64,
    /// Counts dropped streams, so that the engine looks for them only when there are some.
    pub departures: AtomicU64,
    pub started: Instant,
    pub heartbeat: Heartbeat,
}

impl Shared {
    pub fn new(config: EngineConfig, snapshot: EngineSnapshot) -> Self {
        let started = Instant::now();
        Self {
            metrics: EngineMetrics::new(config.max_model_len),
            config,
            snapshot: Mutex::new(snapshot),
            state: watch::Sender::new(EngineState::Running),
            stop: AtomicBool::new(false),
            stop_reason: OnceLock::new(),
            queued_tokens: AtomicU64::new(0),
            departures: AtomicU64::new(0),
            started,
            heartbeat: Heartbeat::new(started),
        }
    }
}

/// A way to reach the engine thread; clones share it. When the last one is dropped the idle engine ends.
#[derive(Clone)]
pub struct EngineHandle {
    inbox: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    events_max: usize,
}

impl EngineHandle {
    pub(crate) fn new(inbox: mpsc::Sender<Command>, shared: Arc<Shared>, events_max: usize) -> Self {
        Self { inbox, shared, events_max }
    }

    /// Hands requests that belong together to the engine, which takes all of them or none; `arrived` is when their client
    /// sent them. Never waits for room: a full inbox is an error. However many they are, they take one place in it.
    pub async fn submit_all(
        &self,
        requests: impl IntoIterator<Item = Request>,
        arrived: Instant,
    ) -> Result<Vec<EventStream>, SubmitError> {
        let (submissions, streams) = requests.into_iter().map(|request| self.submission(request, arrived)).unzip();
        self.ask(|reply| Command::Submit { submissions, reply }).await??;
        Ok(streams)
    }

    /// The same for one request.
    pub async fn submit(&self, request: Request, arrived: Instant) -> Result<EventStream, SubmitError> {
        let (submission, stream) = self.submission(request, arrived);
        self.ask(|reply| Command::Submit { submissions: vec![submission], reply }).await??;
        Ok(stream)
    }

    fn submission(&self, request: Request, arrived: Instant) -> (Submission, EventStream) {
        let (events, receiver) = mpsc::channel(self.events_max);
        let reader = Arc::new(ReaderWishes::default());
        let phases = Arc::<Phases>::default();
        let queued_tokens = request.prompt.len() as u64;
        self.shared.queued_tokens.fetch_add(queued_tokens, Ordering::Relaxed);
        let submission = Submission { request, arrived, events, reader: reader.clone(), phases: phases.clone() };
        (submission, EventStream { receiver, reader, phases, queued_tokens, shared: self.shared.clone() })
    }

    /// Watches the engine's steps, at most one in every `interval`.
    pub(crate) async fn watch(&self, interval: Duration) -> Result<Watching, SubmitError> {
        let watching = self.ask(|reply| Command::Watch { interval, reply }).await?;
        watching.ok_or(SubmitError::TooManyWatchers)
    }

    /// The tokens whose keys and values a block holds now.
    pub(crate) async fn tokens_in_block(&self, block: BlockId) -> Result<Vec<TokenId>, SubmitError> {
        self.ask(|reply| Command::ReadBlock { block, reply }).await
    }

    /// Lets an idle engine look after its watchers.
    pub(crate) fn wake(&self) {
        // A full inbox needs no wake-up: the engine is about to look at it anyway.
        let _ = self.inbox.try_send(Command::Wake);
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, SubmitError> {
        let (reply, answer) = oneshot::channel();
        self.inbox.try_send(command(reply)).map_err(not_sent)?;
        answer.await.map_err(|_| SubmitError::NotRunning)
    }

    /// The engine's limits.
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// The engine's numbers as of its last step.
    pub fn snapshot(&self) -> EngineSnapshot {
        self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tokens of the prompts whose answers have not begun; a prompt counts once, however many choices continue it.
    pub fn queued_tokens(&self) -> u64 {
        self.shared.queued_tokens.load(Ordering::Relaxed)
    }

    /// Counters and histograms of the requests served.
    pub fn metrics(&self) -> &EngineMetrics {
        &self.shared.metrics
    }

    /// What the engine thread is doing.
    pub fn state(&self) -> EngineState {
        self.shared.state.borrow().clone()
    }

    /// Whether the engine runs and moves: it has finished a step within `heartbeat_age_max`, is computing one whose
    /// tokens explain that it takes longer, or has nothing to do.
    pub fn is_healthy(&self, heartbeat_age_max: Duration) -> bool {
        self.state() == EngineState::Running && self.shared.heartbeat.is_alive(heartbeat_age_max)
    }

    /// Waits until the engine has died of a failure, and says of which. Never returns after an orderly stop.
    pub async fn dead(&self) -> String {
        match self.ended().await {
            EngineState::Dead(reason) => reason,
            _ => std::future::pending().await,
        }
    }

    /// Waits until the engine has ended, and says how.
    pub async fn ended(&self) -> EngineState {
        let mut state = self.shared.state.subscribe();
        let ended = state.wait_for(|state| *state != EngineState::Running).await;
        ended.expect("the handle keeps the sender").clone()
    }

    /// Ends the engine after its current step; open requests get a final error event.
    pub fn stop(&self) {
        self.stop_because("the server is shutting down");
    }

    /// Ends the engine; open requests get this reason, unless it has been stopped for another one.
    pub fn stop_because(&self, reason: &'static str) {
        let _ = self.shared.stop_reason.set(reason);
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
    }
}

fn not_sent(error: mpsc::error::TrySendError<Command>) -> SubmitError {
    match error {
        mpsc::error::TrySendError::Full(_) => SubmitError::InboxFull,
        mpsc::error::TrySendError::Closed(_) => SubmitError::NotRunning,
    }
}

/// The events of one request, in order. Dropping it aborts the request.
pub struct EventStream {
    receiver: mpsc::Receiver<Vec<TokenEvent>>,
    reader: Arc<ReaderWishes>,
    phases: Arc<Phases>,
    /// Tokens of the prompt, while they count as queued.
    queued_tokens: u64,
    shared: Arc<Shared>,
}

impl EventStream {
    /// Appends the events that are there, waiting for one if there are none. 0 means that the engine gave the stream
    /// up without finishing it: it died, or the reader fell too far behind.
    pub fn poll_events(&mut self, context: &mut Context, buffer: &mut Vec<TokenEvent>) -> Poll<usize> {
        const EVENTS_AT_ONCE: usize = 64;
        let before = buffer.len();
        let mut next = ready!(self.receiver.poll_recv(context));
        while let Some(events) = next {
            buffer.extend(events);
            let has_room = buffer.len() - before < EVENTS_AT_ONCE;
            next = if has_room { self.receiver.try_recv().ok() } else { None };
        }
        let count = buffer.len() - before;
        let begins = |event: &TokenEvent| matches!(event.kind, EventKind::Token { .. } | EventKind::Finished { .. });
        if self.queued_tokens > 0 && buffer.iter().any(begins) {
            self.leave_queue();
        }
        Poll::Ready(count)
    }

    /// The prompt no longer counts as queued.
    fn leave_queue(&mut self) {
        self.shared.queued_tokens.fetch_sub(std::mem::take(&mut self.queued_tokens), Ordering::Relaxed);
    }

    /// What the engine notes about the request.
    pub(crate) fn phases(&self) -> Arc<Phases> {
        self.phases.clone()
    }

    /// Says that the text is complete (a stop string matched), so that the coming drop counts as `stop`.
    pub fn stop_early(&self) {
        self.reader.stopped_early.store(true, Ordering::Release);
    }

    /// Says that one choice is complete while others go on; the engine ends it before its next step.
    pub fn stop_choice(&self, index: u32) {
        self.reader.lock_choices().push(index);
        // After the choice, so that an engine that sees the count also sees the choice.
        self.shared.departures.fetch_add(1, Ordering::Release);
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.leave_queue();
        // Closed first, so that an engine that sees the count also sees the closed channel.
        self.receiver.close();
        self.shared.departures.fetch_add(1, Ordering::Release);
    }
}
