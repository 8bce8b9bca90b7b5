//! One thread that owns the engine and drives it.
//!
//! With nothing to do it blocks on its inbox and uses no CPU. It never waits for a reader: a request whose reader
//! falls too far behind is aborted. Whatever ends the thread, the state says so and every open stream ends.
//!
//! With many requests open, tokens of each are kept for a few milliseconds and sent together: waking a reader and writing to
//! its connection takes the server longer than making the text.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use firebrick_engine::{
    Engine, EngineError, EventKind, Executor, FinishReason, Pipeline, Rejected, RequestId, SequenceId, TokenEvent,
};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::engine_handle::{Command, EngineHandle, EngineSnapshot, EngineState, Shared, Submission};
use crate::engine_metrics::Refused;
use crate::live_request::{Kept, Live};
use crate::planted_fault::PlantedFault;
use crate::recording::{Recording, RecordingFile, RecordingHeader};
use crate::request_timing::RequestTiming;
use crate::step_watch::{WatchedStep, Watchers};

/// Bounds of the engine thread.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineThreadOptions {
    /// Requests of clients on their way to the engine, each with all its prompts; more are refused at once. They come
    /// in while a step runs: with less room than requests may wait in the engine, a burst is refused too early.
    pub inbox_max: usize,
    /// Unread messages to one request, of an event or of those that were gathered, beyond which its reader counts as slow.
    pub events_slow: usize,
    /// How long a reader may be slow before its request is aborted.
    pub slow_reader_grace: Duration,
    /// Unread messages at which it is aborted at once.
    pub events_max: usize,
    /// How long a token may wait for the request's next ones, while at least so many requests are open. First tokens and ends
    /// never wait, and none does when the next step has a prompt.
    pub gathering: Duration,
    /// See `gathering`.
    pub requests_gathered: usize,
}

impl Default for EngineThreadOptions {
    fn default() -> Self {
        Self {
            inbox_max: 4096,
            events_slow: 1024,
            slow_reader_grace: Duration::from_secs(30),
            events_max: 16 << 10,
            gathering: Duration::from_millis(8),
            requests_gathered: 64,
        }
    }
}

/// Starts the engine's thread with room for `inbox` requests on their way in.
pub fn spawn_engine<E: Executor + Send + 'static>(engine: Engine<E>, inbox: usize) -> EngineHandle {
    spawn_engine_with(engine, EngineThreadOptions { inbox_max: inbox, ..EngineThreadOptions::default() })
}

/// Starts the engine's thread.
pub fn spawn_engine_with<E: Executor + Send + 'static>(
    engine: Engine<E>,
    options: EngineThreadOptions,
) -> EngineHandle {
    spawn(engine, options, None)
}

/// Starts the engine's thread; everything that comes in and every decision goes to the file.
pub fn spawn_engine_recorded<E: Executor + Send + 'static>(
    mut engine: Engine<E>,
    options: EngineThreadOptions,
    file: RecordingFile,
) -> EngineHandle {
    // The thread takes the entries after every step, before which as many requests may come as the inbox holds.
    engine.start_recording(usize::MAX);
    let header = RecordingHeader { config: engine.config().clone(), kv_blocks: engine.executor().kv_blocks() };
    let recording = file.start(&header);
    spawn(engine, options, Some(recording))
}

fn spawn<E: Executor + Send + 'static>(
    engine: Engine<E>,
    options: EngineThreadOptions,
    recording: Option<Recording>,
) -> EngineHandle {
    let (sender, inbox) = mpsc::channel(options.inbox_max.max(1));
    let shared = Arc::new(Shared::new(engine.config().clone(), snapshot(&engine)));
    let handle = EngineHandle::new(sender, shared.clone(), options.events_max.max(1));
    let notice = DeathNotice { shared: shared.clone(), verdict: None };
    let body = move || {
        let mut notice = notice;
        let fault = PlantedFault::from_environment();
        let (live, gathered) = (HashMap::new(), Vec::new());
        let (pipeline, watchers) = (Pipeline::new(), Watchers::default());
        let departures_seen = 0;
        let driver = Driver {
            engine,
            pipeline,
            inbox,
            options,
            shared,
            live,
            gathered,
            departures_seen,
            recording,
            fault,
            watchers,
        };
        notice.verdict = Some(driver.run());
    };
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(body)
        .expect("a thread for the engine can be started at start-up");
    handle
}

/// Publishes how the thread ended, also when it ends by a panic.
struct DeathNotice {
    shared: Arc<Shared>,
    verdict: Option<EngineState>,
}

impl Drop for DeathNotice {
    fn drop(&mut self) {
        let verdict = self.verdict.take();
        let verdict = verdict.unwrap_or_else(|| EngineState::Dead("the engine thread panicked".to_owned()));
        if let EngineState::Dead(reason) = &verdict {
            tracing::error!(%reason, "the engine has died");
        }
        self.shared.state.send_replace(verdict);
    }
}

struct Driver<E: Executor> {
    engine: Engine<E>,
    pipeline: Pipeline,
    inbox: mpsc::Receiver<Command>,
    options: EngineThreadOptions,
    shared: Arc<Shared>,
    live: HashMap<RequestId, Live>,
    /// The requests of which something waits to be sent.
    gathered: Vec<RequestId>,
    departures_seen: u64,
    recording: Option<Recording>,
    fault: PlantedFault,
    watchers: Watchers,
}

impl<E: Executor> Driver<E> {
    fn run(mut self) -> EngineState {
        self.shared.heartbeat.beat();
        self.publish();
        loop {
            while let Ok(command) = self.inbox.try_recv() {
                self.take(command);
            }
            if self.shared.stop.load(Ordering::Acquire) {
                let reason = self.shared.stop_reason.get().copied();
                self.end_all(reason.unwrap_or("the server is shutting down"));
                return EngineState::Stopped;
            }
            self.follow_readers();
            self.send_gathered();
            if self.engine.has_work() {
                let stepped = self.step();
                self.record();
                if let Err(reason) = stepped {
                    self.end_all(&reason);
                    return EngineState::Dead(reason);
                }
                continue;
            }
            self.publish();
            self.record();
            self.watchers.catch_up(|| now_stands(&self.engine, &self.shared));
            let Some(command) = self.wait() else { return EngineState::Stopped };
            self.take(command);
        }
    }

    /// Blocks until there is a command; `None` once nobody can send one any more.
    fn wait(&mut self) -> Option<Command> {
        self.shared.heartbeat.set_idle(true);
        let command = self.inbox.blocking_recv();
        self.shared.heartbeat.set_idle(false);
        command
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Submit { submissions, reply } => {
                // The streams of what was added before a refusal are dropped by whoever asked, which aborts it.
                let added = submissions.into_iter().try_for_each(|submission| self.submit(submission));
                // A client that left meanwhile is found by its closed stream.
                let _ = reply.send(added);
            }
            // Whoever asked may have left meanwhile.
            Command::Watch { interval, reply } => {
                let watching = self.watchers.add(interval, || now_stands(&self.engine, &self.shared));
                drop(reply.send(watching));
            }
            Command::ReadBlock { block, reply } => drop(reply.send(self.engine.tokens_in_block(block))),
            Command::Wake => {}
        }
    }

    fn submit(&mut self, submission: Submission) -> Result<(), Rejected> {
        let Submission { request, arrived, events, reader, phases } = submission;
        if events.is_closed() {
            return Ok(());
        }
        let timing = RequestTiming::new(&request, arrived, phases);
        let added = self.engine.add_request(request);
        let id = added.inspect_err(|rejected| self.shared.metrics.count_refused(reason_of(rejected)))?;
        self.live.insert(id, Live::new(events, timing, reader));
        Ok(())
    }

    /// Aborts the requests whose streams were dropped, and the choices whose text is complete.
    fn follow_readers(&mut self) {
        let departures = self.shared.departures.load(Ordering::Acquire);
        if std::mem::replace(&mut self.departures_seen, departures) == departures {
            return;
        }
        let left: Vec<RequestId> =
            self.live.iter().filter(|(_, live)| live.events.is_closed()).map(|(&id, _)| id).collect();
        for id in left {
            self.abort(id);
        }
        let now = Instant::now();
        for (&request, live) in &mut self.live {
            for index in live.reader.take_choices() {
                // Counted as `stop` before the engine reports an abort.
                live.timing.stop_choice(index, now, &self.shared.metrics);
                self.engine.abort_choice(SequenceId { request, index });
            }
        }
    }

    fn abort(&mut self, id: RequestId) {
        self.engine.abort(id);
        let Some(mut live) = self.live.remove(&id) else { return };
        let early = live.reader.stopped_early.load(Ordering::Acquire);
        let reason = if early { FinishReason::Stop(None) } else { FinishReason::Abort };
        live.timing.end(&reason, Instant::now(), &self.shared.metrics);
    }

    /// Hands over what the engine has recorded.
    fn record(&mut self) {
        if let Some(recording) = &mut self.recording {
            recording.push(self.engine.take_recorded());
        }
    }

    fn step(&mut self) -> Result<(), String> {
        self.shared.heartbeat.step_begins(self.step_tokens_max());
        self.fault.before_step()?;
        let begun = Instant::now();
        let outcome = self.watched_step();
        let now = Instant::now();
        self.shared.heartbeat.beat();
        match outcome {
            Ok(events) => {
                for event in events {
                    // A sequence enters its first batch when the step begins, and has its token when it ends.
                    let at = if matches!(event.kind, EventKind::Scheduled { .. }) { begun } else { now };
                    self.deliver(event, at);
                }
                for id in self.engine.take_preempted() {
                    if let Some(live) = self.live.get_mut(&id) {
                        live.timing.preempted();
                    }
                }
                if let Some(tokens) = self.engine.take_finished_tokens() {
                    self.shared.metrics.step_tokens.observe(tokens.into());
                }
                self.publish();
            }
            Err(error) => return Err(error.to_string()),
        }
        if self.engine.is_dead() {
            let reason = pollster::block_on(self.engine.step()).err().map(|error| error.to_string());
            return Err(reason.unwrap_or_else(|| "the device failed".to_owned()));
        }
        Ok(())
    }

    /// Tokens that the next step has at most. With nobody waiting and every prompt computed it is one a sequence.
    fn step_tokens_max(&self) -> u32 {
        let stats = self.engine.stats();
        let decodes = stats.waiting == 0 && stats.last_step_tokens <= stats.running;
        if decodes { stats.running } else { self.engine.config().max_num_batched_tokens }
    }

    /// Whether the next step has a prompt, as far as can be told before one that runs makes room for another.
    fn has_prompt_next(&self) -> bool {
        let (stats, config) = (self.engine.stats(), self.engine.config());
        stats.last_step_tokens > stats.running || (stats.waiting > 0 && stats.running < config.max_num_seqs)
    }

    /// A step of the engine, shown to those who watch.
    fn watched_step(&mut self) -> Result<Vec<TokenEvent>, EngineError> {
        let begun = Instant::now();
        if !self.watchers.want_step(begun) {
            return pollster::block_on(self.pipeline.step(&mut self.engine));
        }
        let mut rows = Vec::new();
        let step = self.pipeline.step_seen(&mut self.engine, |engine| rows = engine.rows_in_flight());
        let events = pollster::block_on(step)?;
        self.watchers.show(WatchedStep::new(&self.engine, rows, begun, self.shared.started), begun);
        Ok(events)
    }

    fn deliver(&mut self, event: TokenEvent, now: Instant) {
        let id = event.request;
        let Some(live) = self.live.get_mut(&id) else { return };
        live.timing.observe(&event, now, &self.shared.metrics);
        match live.keep(event) {
            Kept::First => self.gathered.push(id),
            Kept::Another => {}
            Kept::Urgent => self.send(id, now),
        }
    }

    /// Sends what has waited long enough; everything if what comes next may take long.
    fn send_gathered(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let gathers =
            self.live.len() >= self.options.requests_gathered && self.engine.has_work() && !self.has_prompt_next();
        let (now, longest) = (Instant::now(), if gathers { self.options.gathering } else { Duration::ZERO });
        for id in std::mem::take(&mut self.gathered) {
            match self.live.get(&id) {
                Some(live) if live.may_wait(now, longest) => self.gathered.push(id),
                _ => self.send(id, now),
            }
        }
    }

    /// Sends everything that the request was told.
    fn send(&mut self, id: RequestId, now: Instant) {
        let Some(live) = self.live.get_mut(&id) else { return };
        match live.send_all(now) {
            Ok(()) if live.timing.is_finished() => drop(self.live.remove(&id)),
            Ok(()) if live.is_too_slow(&self.options, now) => self.abort_slow(id),
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.abort_slow(id),
            Err(TrySendError::Closed(_)) => self.abort(id),
        }
    }

    fn abort_slow(&mut self, id: RequestId) {
        self.shared.metrics.slow_readers.fetch_add(1, Ordering::Relaxed);
        self.abort(id);
    }

    /// Ends every open request with an error event.
    fn end_all(&mut self, reason: &str) {
        let now = Instant::now();
        let finished = FinishReason::Error(reason.to_owned());
        for (id, mut live) in self.live.drain() {
            let _ = live.send_all(now);
            for index in live.timing.open_choices() {
                let kind = EventKind::Finished { reason: finished.clone() };
                // A reader that left or is far behind learns from the end of its stream.
                let _ = live.events.try_send(vec![TokenEvent { request: id, index, kind }]);
            }
            live.timing.end(&finished, now, &self.shared.metrics);
        }
    }

    fn publish(&mut self) {
        let snapshot = snapshot(&self.engine);
        *self.shared.snapshot.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = snapshot;
    }
}

fn reason_of(rejected: &Rejected) -> Refused {
    match rejected {
        Rejected::QueueFull { .. } | Rejected::NotAccepting => Refused::QueueFull,
        _ => Refused::Invalid,
    }
}

fn now_stands<E: Executor>(engine: &Engine<E>, shared: &Shared) -> WatchedStep {
    WatchedStep::new(engine, Vec::new(), Instant::now(), shared.started)
}

fn snapshot<E: Executor>(engine: &Engine<E>) -> EngineSnapshot {
    let stats = engine.stats();
    EngineSnapshot {
        num_running: stats.running.into(),
        num_waiting: stats.waiting.into(),
        blocks_used: stats.blocks_used.into(),
        blocks_total: stats.blocks_total.into(),
        block_size: engine.config().block_size.into(),
        prefix_queries: stats.prefix_cache_queries,
        prefix_hits: stats.prefix_cache_hits,
        num_preemptions: stats.preemptions,
    }
}
