//! Deterministic simulation of the engine: random engines, clients and faults from one seed.
//!
//! The simulation owns time, arrivals, aborts, the device and its failures. Beside the engine it keeps a [`Book`] of
//! what must come out, computed from the requests alone, and compares after every step. The invariants, by the numbers
//! used in messages and in the engine's own audit:
//!
//! 1. Every block is free, evictable or referenced, and no block is in two of these sets.
//! 2. A block is referenced as often as block tables name it.
//! 3. When all requests have ended nothing is running, waiting or referenced.
//! 4. A block that two sequences reference is never written.
//! 5. A cached block holds what its hash says, and so do its ancestors.
//! 6. Requests of different salts never share a block.
//! 7. Every event comes once and in order; a sequence ends once.
//! 8. A sequence is in one queue and moves only as it may.
//! 9. A draw depends on nothing but its own request and tokens.
//! 10. The output is a function of the request: the same alone, batched, chunked, preempted, cached.
//! 11. The step's limits are kept, and positions are written in order without holes.
//! 12. Sequences start in service order, within a bound.
//! 13. Some sequence advances in every step, and the first in order is never preempted.
//! 14. The counters are exact.
//! 15. Nothing runs after an abort, nothing is accepted after a drain.
//! 16. Queues stay within their limits, and requests are refused exactly when they must be.
//! 17. The same seed gives the same run, and its recording replays.

mod batch_checks;
mod book;
mod knobs;
mod random;
mod shrink;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use firebrick_engine::{Engine, ScriptedExecutor};

pub use shrink::{Cuts, shrink};
use world::World;

/// An invariant that did not hold.
#[derive(Debug)]
pub struct Violation {
    /// Its number; 0 for a panic that names none.
    pub invariant: u32,
    pub message: String,
}

impl Violation {
    fn new(invariant: u32, message: String) -> Self {
        Self { invariant, message }
    }

    fn of_panic(panic: &(dyn std::any::Any + Send)) -> Self {
        let message = panic.downcast_ref::<String>().cloned();
        let message = message.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let message = message.unwrap_or_else(|| "a panic without a message".into());
        let number = message.split_once("invariant ").and_then(|(_, rest)| rest.split_once(':')?.0.parse().ok());
        Self { invariant: number.unwrap_or(0), message }
    }
}

fn ensure(holds: bool, invariant: u32, message: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation::new(invariant, message())) }
}

/// What a seed's run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub steps: u64,
    pub generated_tokens: u64,
    pub preemptions: u64,
    pub prefix_cache_hits: u64,
    /// Hash of every batch and event.
    pub hash: u64,
}

/// Changes an engine before its run, to plant a bug in it.
pub type Prepare<'a> = &'a dyn Fn(&mut Engine<ScriptedExecutor>);

/// Runs one seed to its end. Every sixteenth seed is run twice and its recording replayed (invariant 17).
pub fn simulate(seed: u64, prepare: Prepare<'_>) -> Result<Report, Violation> {
    simulate_cut(seed, prepare, &Cuts::default())
}

/// The same, without what is cut.
pub fn simulate_cut(seed: u64, prepare: Prepare<'_>, cuts: &Cuts) -> Result<Report, Violation> {
    let twice = seed.is_multiple_of(16);
    let (report, trace) = run(seed, prepare, cuts, twice)?;
    if let Some(trace) = trace {
        let again = run(seed, prepare, cuts, false)?.0;
        ensure(again == report, 17, || format!("the second run came to {again:?}, the first to {report:?}"))?;
        let replay = catch(|| Ok(trace.replay()))?;
        ensure(replay.is_ok(), 17, || format!("the recording does not replay: {replay:?}"))?;
    }
    Ok(report)
}

type Trace = Option<firebrick_engine::Trace>;

fn run(seed: u64, prepare: Prepare<'_>, cuts: &Cuts, record: bool) -> Result<(Report, Trace), Violation> {
    catch(|| {
        let mut world = World::new(seed, prepare, cuts);
        if record {
            world.record();
        }
        world.run()?;
        Ok(world.into_report())
    })
}

fn catch<T>(run: impl FnOnce() -> Result<T, Violation>) -> Result<T, Violation> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(Violation::of_panic(panic.as_ref())))
}
