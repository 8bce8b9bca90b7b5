//! Requests in, token events out: scheduling and block ownership of a continuously batched engine.
//!
//! A pure state machine: the same requests in the same order give the same decisions. It knows no tensors, text,
//! threads, clocks or sockets; a step's work is handed to an [`Executor`], and results come back as [`TokenEvent`]s.
//!
//! ```text
//! add_request ─ admission ─→ waiting ─┐
//!                               ↑     ├─ plan ─→ Batch ─→ Executor ─→ outcomes ─ commit ─→ TokenEvents
//!                    preempt ───┴─ running                                          │
//!                                     └──────────────── append token ←──────────────┘
//! ```
//!
//! How to read it: `request`, `batch`, `event` and `executor` are what goes in and out; `sequence` holds the two
//! counters that everything follows from; `plan` and `commit` are the two halves of a step on the state in `scheduler`;
//! `block_pool` and `prefix_cache` own the blocks; `audit` states the invariants; `tests/simulation/` tries to break
//! them.

// The simulation is an integration test. The tests of planted bugs run the same files inside the crate.
#[cfg(test)]
extern crate self as firebrick_engine;
#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;

mod admission;
mod audit;
mod batch;
mod block_pool;
mod block_table;
mod commit;
mod config;
mod constraint;
mod engine;
mod error;
mod event;
mod executor;
mod ids;
mod lru_list;
mod pipeline;
mod plan;
#[cfg(test)]
mod planted_bugs;
mod policy;
mod prefix_cache;
mod prompt_output;
mod request;
mod scheduler;
mod scripted;
mod sequence;
mod sequence_table;
mod snapshot;
mod stats;
mod token_span;
mod trace;

pub use admission::LOGPROBS_MAX;
pub use batch::{Batch, CarriedToken, SampleRow, TokenHistory};
pub use commit::NOT_FINITE;
pub use config::{EngineConfig, SchedulingPolicy};
pub use constraint::{Constraint, ConstraintState, MaskSender, NotFollowed, Progress, TokenConstraint, TokenMask};
pub use engine::{Engine, StepResult};
pub use error::{ConfigError, EngineError, ExecuteError, Rejected};
pub use event::{EventKind, FinishReason, SampleOutcome, SampledToken, StepOutput, TokenEvent, TokenLogprobs};
pub use executor::Executor;
pub use ids::{BlockId, RequestId, SequenceId, TokenId};
pub use pipeline::Pipeline;
pub use prompt_output::{Pooling, PromptOutput, PromptResult, PromptRows, PromptWanted};
pub use request::{Request, SamplingParams};
pub use scripted::{HistoryHash, Script, ScriptedExecutor};
pub use snapshot::{BlockSnapshot, EngineSnapshot, RowSnapshot, SequenceSnapshot, SequenceState, SnapshotLimits};
pub use stats::{EngineStats, FinishedStats};
pub use trace::{Divergence, Replay, Trace, TraceEntry};
