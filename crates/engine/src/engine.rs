//! The engine: a scheduler and the executor that carries out its plans.

use std::future::Future;

use crate::scheduler::Scheduler;
use crate::trace::{Recorder, Trace, TraceEntry};
use crate::{
    Batch, BlockId, ConfigError, EngineConfig, EngineError, EngineSnapshot, EngineStats, ExecuteError, Executor,
    FinishReason, PromptRows, Rejected, Request, RequestId, RowSnapshot, SequenceId, SnapshotLimits, StepOutput,
    TokenEvent, TokenId,
};

/// What an executor's future gives: the step's results, or the reason why the device cannot go on.
pub type StepResult = Result<StepOutput, ExecuteError>;

/// Requests in, token events out.
///
/// ```text
/// add_request ─┐
/// abort ───────┴→ step ─→ schedule → Executor::execute → commit ─→ Vec<TokenEvent>
/// ```
///
/// Call [`step`](Self::step) as long as [`has_work`](Self::has_work). A caller that wants to take requests while a step
/// runs uses its two halves, [`begin_step`](Self::begin_step) and [`finish_step`](Self::finish_step).
pub struct Engine<E> {
    executor: E,
    scheduler: Scheduler,
    dead: Option<ExecuteError>,
    recorder: Option<Recorder>,
    #[cfg(test)]
    planted: crate::planted_bugs::Planted,
}

impl<E: Executor> Engine<E> {
    /// An idle engine; the executor says how many blocks there are.
    pub fn new(config: EngineConfig, executor: E) -> Result<Self, ConfigError> {
        let num_blocks = executor.kv_blocks();
        config.check(num_blocks)?;
        Ok(Self {
            executor,
            scheduler: Scheduler::new(config, num_blocks),
            dead: None,
            recorder: None,
            #[cfg(test)]
            planted: Default::default(),
        })
    }

    /// Puts a request in the queue, or says why it can never or not now be served. Nothing is kept of a refused one.
    pub fn add_request(&mut self, request: Request) -> Result<RequestId, Rejected> {
        if let Some(recorder) = &mut self.recorder {
            recorder.push(TraceEntry::Add(request.clone()));
        }
        #[cfg(test)]
        let request = self.planted.on_request(&mut self.scheduler, request);
        let id = self.scheduler.add_request(request)?;
        #[cfg(test)]
        self.planted.after_request(&mut self.scheduler);
        Ok(id)
    }

    /// Ends a request and frees its blocks: now, or when the step in flight returns. The next step delivers the events.
    /// Unknown and ended requests are ignored.
    pub fn abort(&mut self, id: RequestId) {
        if let Some(recorder) = &mut self.recorder {
            recorder.push(TraceEntry::Abort(id));
        }
        self.scheduler.abort(id);
    }

    /// Ends one choice of a request and leaves the others alone, otherwise as [`abort`](Self::abort).
    pub fn abort_choice(&mut self, id: SequenceId) {
        if let Some(recorder) = &mut self.recorder {
            recorder.push(TraceEntry::AbortChoice(id));
        }
        self.scheduler.abort_choice(id);
    }

    /// Refuses new requests from now on; those accepted are finished. There is no way back.
    pub fn stop_accepting(&mut self) {
        if let Some(recorder) = &mut self.recorder {
            recorder.push(TraceEntry::StopAccepting);
        }
        self.scheduler.accepting = false;
    }

    /// Plans a batch, runs it, and returns everything that has happened since the last step.
    ///
    /// With nothing to run it returns what events there are without calling the executor. When the device fails, every
    /// request ends with an error event, which this step still returns; the engine [is dead](Self::is_dead) then, and
    /// further steps return the error. A dropped future loses no token: its step is run again.
    pub async fn step(&mut self) -> Result<Vec<TokenEvent>, EngineError> {
        if let Some(running) = self.begin_step()? {
            let result = running.await;
            return self.finish_step(result);
        }
        Ok(self.take_events())
    }

    /// The first half of a step: plans a batch and hands it to the executor. `None` when there is nothing to run.
    ///
    /// The future borrows nothing. While it runs, requests may be added and aborted; its result goes to
    /// [`finish_step`](Self::finish_step). Beginning another step instead abandons all that are in flight.
    pub fn begin_step(&mut self) -> Result<Option<impl Future<Output = StepResult> + 'static>, EngineError> {
        if let Some(error) = &self.dead
            && self.scheduler.events.is_empty()
        {
            return Err(error.clone().into());
        }
        self.scheduler.abandon();
        #[cfg(test)]
        self.planted.before_schedule(&mut self.scheduler);
        let planned = self.scheduler.schedule();
        #[cfg(test)]
        self.planted.after_schedule(&mut self.scheduler);
        let batch = planned.then_some(&self.scheduler.batch);
        if let Some(recorder) = &mut self.recorder {
            recorder.push(TraceEntry::Begin(batch.cloned()));
        }
        Ok(batch.map(|batch| self.executor.execute(batch)))
    }

    /// Plans the step after the one in flight and hands it to the executor, if that can be done before the results of
    /// the one in flight are known. Its result goes to [`finish_step`](Self::finish_step) after theirs.
    ///
    /// A device is never idle while it is told what to do next. [`Pipeline`](crate::Pipeline) does it in the right order.
    pub fn begin_ahead(&mut self) -> Option<impl Future<Output = StepResult> + 'static> {
        let possible = self.dead.is_none() && self.executor.can_run_ahead();
        if !possible || !self.scheduler.schedule_ahead() {
            return None;
        }
        #[cfg(test)]
        self.planted.after_schedule(&mut self.scheduler);
        let batch = &self.scheduler.batch;
        if let Some(recorder) = &mut self.recorder {
            recorder.push(TraceEntry::BeginAhead(batch.clone()));
        }
        Some(self.executor.execute(batch))
    }

    /// Forgets the steps in flight, whose results will never come. They are run again.
    pub(crate) fn abandon_steps(&mut self) {
        self.scheduler.abandon();
    }

    /// The second half of a step: takes its result and returns everything that has happened since the last step.
    ///
    /// # Panics
    /// When no step is in flight.
    pub fn finish_step(&mut self, result: StepResult) -> Result<Vec<TokenEvent>, EngineError> {
        if let Some(recorder) = &mut self.recorder {
            recorder.push(TraceEntry::finish(&result));
        }
        #[cfg(test)]
        let result = self.planted.before_commit(&mut self.scheduler, result);
        if let Err(error) = result.and_then(|output| self.scheduler.commit(output)) {
            self.die(error);
        }
        #[cfg(test)]
        self.planted.after_commit(&mut self.scheduler);
        self.scheduler.audit_after_step();
        Ok(self.take_events())
    }

    /// Events that no step has returned yet, such as those of aborts.
    pub fn take_events(&mut self) -> Vec<TokenEvent> {
        std::mem::take(&mut self.scheduler.events)
    }

    fn die(&mut self, error: ExecuteError) {
        self.scheduler.abandon();
        self.scheduler.end_all(&FinishReason::Error(error.to_string()));
        self.scheduler.accepting = false;
        self.dead = Some(error);
    }

    /// Whether a step would have something to run or to tell.
    pub fn has_work(&self) -> bool {
        self.scheduler.has_live_requests() || !self.scheduler.events.is_empty()
    }

    /// Whether the device has failed; nothing can be run any more.
    pub fn is_dead(&self) -> bool {
        self.dead.is_some()
    }

    /// Whether new requests are taken.
    pub fn is_accepting(&self) -> bool {
        self.scheduler.accepting
    }

    /// Whether a step has begun and not finished.
    pub fn is_step_in_flight(&self) -> bool {
        self.num_steps_in_flight() > 0
    }

    /// Steps that have begun and not finished: 2 at most.
    pub fn num_steps_in_flight(&self) -> usize {
        self.scheduler.in_flight.len()
    }

    /// Whose rows the last step that was begun has, in the order of the batch, while it is in flight.
    pub fn sequences_in_flight(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.scheduler.sequences_in_flight()
    }

    /// What the oldest step in flight reports of prompts.
    pub(crate) fn prompt_rows_in_flight(&self) -> &[PromptRows] {
        self.scheduler.in_flight.front().map_or(&[], |step| &step.prompt_rows)
    }

    /// The batch of the last step that had one.
    pub fn last_batch(&self) -> Option<&Batch> {
        (self.scheduler.batch.num_tokens() > 0).then_some(&self.scheduler.batch)
    }

    /// The requests whose sequences have been preempted by the last step that was not begun ahead, once per sequence; some
    /// of them may have ended since. The next call has only what comes after this one.
    pub fn take_preempted(&mut self) -> Vec<RequestId> {
        std::mem::take(&mut self.scheduler.preempted)
    }

    /// Tokens in the batch of the step that has finished since the last call, `None` if none has. While steps are begun
    /// ahead, [`EngineStats::last_step_tokens`] is that of a later one.
    pub fn take_finished_tokens(&mut self) -> Option<u32> {
        self.scheduler.finished_tokens.take()
    }

    /// Counters and gauges, without scanning anything.
    pub fn stats(&self) -> EngineStats {
        self.scheduler.stats()
    }

    /// The whole state, for people to look at; scans all blocks and sequences. While a step is in flight it has its rows.
    pub fn snapshot(&self) -> EngineSnapshot {
        self.scheduler.snapshot(SnapshotLimits::NONE)
    }

    /// As much of the state as the limits allow, for engines too large to be shown whole.
    pub fn snapshot_within(&self, limits: SnapshotLimits) -> EngineSnapshot {
        self.scheduler.snapshot(limits)
    }

    /// The rows of the step in flight, in the order of the batch; none between steps.
    pub fn rows_in_flight(&self) -> Vec<RowSnapshot> {
        self.scheduler.rows_in_flight()
    }

    /// The tokens whose keys and values a block holds, first to last; none for a block that holds nothing of use.
    pub fn tokens_in_block(&self, block: BlockId) -> Vec<TokenId> {
        self.scheduler.tokens_in_block(block)
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &EngineConfig {
        &self.scheduler.config
    }

    /// The executor.
    pub fn executor(&self) -> &E {
        &self.executor
    }

    /// Proves every invariant that can be proved from the engine's own state, however long it takes.
    ///
    /// # Panics
    /// When one does not hold, which is a bug of the engine.
    pub fn audit(&self) {
        self.scheduler.audit_all();
    }

    /// Records every input and every decision from here on, `entries_max` of them at most.
    ///
    /// # Panics
    /// When a request has been taken already: a recording replays only from the start.
    pub fn start_recording(&mut self, entries_max: usize) {
        assert_eq!(self.scheduler.last_request, 0, "a recording begins with the first request");
        let trace = Trace::new(self.config().clone(), self.executor.kv_blocks());
        self.recorder = Some(Recorder::new(trace, entries_max));
    }

    /// Takes what was recorded since the last call, for recordings that are written down as they grow. The limit of
    /// entries then holds between two calls.
    pub fn take_recorded(&mut self) -> Vec<TraceEntry> {
        self.recorder.as_mut().map(Recorder::take_entries).unwrap_or_default()
    }

    /// Ends the recording and returns it.
    pub fn take_trace(&mut self) -> Option<Trace> {
        self.recorder.take().map(Recorder::into_trace)
    }
}

#[cfg(test)]
impl<E: Executor> Engine<E> {
    /// Puts a bug into an engine that has done nothing yet.
    pub(crate) fn plant(&mut self, bug: crate::planted_bugs::PlantedBug) {
        self.planted.at_start(&mut self.scheduler, bug);
    }

    /// Makes collisions in the prefix cache likely.
    pub(crate) fn cut_hashes(&mut self, mask: u128) {
        self.scheduler.pool.parts_mut().cache.cut_hashes(mask);
    }
}
