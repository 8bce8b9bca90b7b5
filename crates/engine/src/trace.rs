//! Recording what came in and what was decided, and proving that the same comes out again.
//!
//! The engine is a pure function of its inputs: requests, aborts, and outcomes of steps. A [`Trace`] holds these in
//! order, with the batch that each step decided on; [`Trace::replay`] feeds them to a fresh engine and compares.

use std::future::Future;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::engine::StepResult;
use crate::{
    Batch, Constraint, Engine, EngineConfig, ExecuteError, Executor, PromptRows, Request, RequestId, SampleOutcome,
    SampledToken, SequenceId, StepOutput, TokenId,
};

/// A recording of an engine's life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// The configuration, without the key of the prefix cache's hash.
    pub config: EngineConfig,
    /// Blocks of the executor.
    pub kv_blocks: u32,
    /// What happened, in order.
    pub entries: Vec<TraceEntry>,
    /// Whether the limit of entries was reached and the rest is missing.
    pub truncated: bool,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TraceEntry {
    /// A request came; it may have been refused.
    Add(Request),
    /// A request was aborted.
    Abort(RequestId),
    /// One choice of a request was aborted.
    AbortChoice(SequenceId),
    /// New requests were refused from here on.
    StopAccepting,
    /// A step was planned, or nothing was there to be planned.
    Begin(Option<Batch>),
    /// A step was planned before the results of the one before it came back.
    BeginAhead(Batch),
    /// The oldest step's tokens came back, `None` where the logits were not finite. Log-probabilities and results of
    /// prompts decide nothing and are left out.
    Finish(Vec<Option<TokenId>>),
    /// The oldest step failed.
    Fail(String),
}

impl TraceEntry {
    pub(crate) fn finish(result: &StepResult) -> Self {
        match result {
            Ok(output) => Self::Finish(
                output
                    .samples
                    .iter()
                    .map(|outcome| match outcome {
                        SampleOutcome::Token(sampled) => Some(sampled.token),
                        SampleOutcome::NotFinite => None,
                    })
                    .collect(),
            ),
            Err(ExecuteError(message)) => Self::Fail(message.clone()),
        }
    }
}

/// Where a replay decided otherwise.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("entry {entry} of the trace: {difference}")]
pub struct Divergence {
    /// Index in [`Trace::entries`].
    pub entry: usize,
    /// What differs.
    pub difference: String,
}

impl Trace {
    pub(crate) fn new(config: EngineConfig, kv_blocks: u32) -> Self {
        Self { config, kv_blocks, entries: Vec::new(), truncated: false }
    }

    /// Runs the recorded inputs through a fresh engine and compares every decision.
    pub fn replay(&self) -> Result<(), Divergence> {
        let mut replay = Replay::new(self.config.clone(), self.kv_blocks)?;
        self.entries.iter().try_for_each(|entry| replay.feed(entry))
    }
}

/// A replay that is fed entry by entry, so that a long recording need not fit into memory.
pub struct Replay {
    engine: Engine<Recorded>,
    num_entries: usize,
}

impl Replay {
    /// A fresh engine with the configuration and the blocks of the recorded one.
    pub fn new(config: EngineConfig, kv_blocks: u32) -> Result<Self, Divergence> {
        let engine = Engine::new(config, Recorded { kv_blocks });
        let engine = engine.map_err(|error| Divergence { entry: 0, difference: error.to_string() })?;
        Ok(Self { engine, num_entries: 0 })
    }

    /// Repeats what the entry tells and compares the decision.
    pub fn feed(&mut self, entry: &TraceEntry) -> Result<(), Divergence> {
        let index = self.num_entries;
        self.num_entries += 1;
        replay_entry(&mut self.engine, entry).map_err(|difference| Divergence { entry: index, difference })
    }
}

fn replay_entry(engine: &mut Engine<Recorded>, entry: &TraceEntry) -> Result<(), String> {
    if matches!(entry, TraceEntry::Finish(_) | TraceEntry::Fail(_)) && !engine.is_step_in_flight() {
        return Err("results came back, but no step is in flight".into());
    }
    match entry {
        TraceEntry::Add(request) if request.constraint.as_ref().is_some_and(Constraint::is_lost) => {
            return Err("the request follows a grammar, and a stored trace does not hold grammars".into());
        }
        TraceEntry::Add(request) => drop(engine.add_request(request.clone())),
        TraceEntry::Abort(id) => engine.abort(*id),
        TraceEntry::AbortChoice(id) => engine.abort_choice(*id),
        TraceEntry::StopAccepting => engine.stop_accepting(),
        TraceEntry::Begin(batch) => {
            let running = engine.begin_step().map_err(|error| error.to_string())?.is_some();
            let planned = engine.last_batch().filter(|_| running);
            if let Some(difference) = difference(planned, batch.as_ref()) {
                return Err(difference);
            }
        }
        TraceEntry::BeginAhead(batch) => {
            let running = engine.begin_ahead().is_some();
            let planned = engine.last_batch().filter(|_| running);
            if let Some(difference) = difference(planned, Some(batch)) {
                return Err(difference);
            }
        }
        TraceEntry::Finish(tokens) => {
            let prompts = engine.prompt_rows_in_flight().iter().map(PromptRows::nothing).collect();
            let samples = tokens.iter().map(|token| match token {
                Some(token) => SampleOutcome::Token(SampledToken { token: *token, logprobs: None }),
                None => SampleOutcome::NotFinite,
            });
            let output = StepOutput { samples: samples.collect(), prompts };
            engine.finish_step(Ok(output)).map_err(|error| error.to_string())?;
        }
        TraceEntry::Fail(message) => {
            engine.finish_step(Err(ExecuteError(message.clone()))).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// The first thing in which two decisions differ.
fn difference(planned: Option<&Batch>, recorded: Option<&Batch>) -> Option<String> {
    let (planned, recorded) = match (planned, recorded) {
        (None, None) => return None,
        (Some(_), None) => return Some("a batch was planned, recorded is none".into()),
        (None, Some(_)) => return Some("no batch was planned, recorded is one".into()),
        (Some(planned), Some(recorded)) => (planned, recorded),
    };
    let arrays = [
        ("tokens", &planned.tokens, &recorded.tokens),
        ("positions", &planned.positions, &recorded.positions),
        ("slot_mapping", &planned.slot_mapping, &recorded.slot_mapping),
        ("query_starts", &planned.query_starts, &recorded.query_starts),
        ("context_lens", &planned.context_lens, &recorded.context_lens),
        ("block_tables", &planned.block_tables, &recorded.block_tables),
    ];
    for (name, planned, recorded) in arrays {
        if planned.len() != recorded.len() {
            return Some(format!("{} {name} were planned, recorded are {}", planned.len(), recorded.len()));
        }
        if let Some(at) = planned.iter().zip(recorded).position(|(planned, recorded)| planned != recorded) {
            return Some(format!("{name}[{at}] was planned as {}, recorded is {}", planned[at], recorded[at]));
        }
    }
    (planned != recorded).then(|| "the draws differ".into())
}

/// The executor of a replay: results come from the trace, so there is nothing to run.
struct Recorded {
    kv_blocks: u32,
}

impl Executor for Recorded {
    fn kv_blocks(&self) -> u32 {
        self.kv_blocks
    }

    fn execute(&mut self, _: &Batch) -> impl Future<Output = StepResult> + 'static {
        std::future::ready(Ok(StepOutput::default()))
    }

    fn can_run_ahead(&self) -> bool {
        true
    }
}

/// Collects entries up to a limit.
pub(crate) struct Recorder {
    trace: Trace,
    entries_max: usize,
}

impl Recorder {
    pub(crate) fn new(trace: Trace, entries_max: usize) -> Self {
        Self { trace, entries_max }
    }

    pub(crate) fn push(&mut self, entry: TraceEntry) {
        if self.trace.entries.len() < self.entries_max {
            self.trace.entries.push(entry);
        } else {
            self.trace.truncated = true;
        }
    }

    /// The entries so far; room for as many again.
    pub(crate) fn take_entries(&mut self) -> Vec<TraceEntry> {
        std::mem::take(&mut self.trace.entries)
    }

    pub(crate) fn into_trace(self) -> Trace {
        self.trace
    }
}
