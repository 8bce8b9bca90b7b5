//! Makes a run that breaks an invariant as short as it can.
//!
//! A run follows from its seed, so it cannot be edited; what can be cut is what the seed brings: requests, their lengths,
//! and kinds of faults. Each cut is kept when the same invariant still breaks in fewer events.

use std::cell::Cell;
use std::collections::BTreeSet;

use firebrick_engine::Request;

use super::knobs::Knobs;
use super::{Prepare, Violation, simulate_cut};

/// What is left out of a run; by default nothing.
#[derive(Clone, Debug, Default)]
pub struct Cuts {
    /// Requests that never come, by their number.
    skipped: BTreeSet<u32>,
    /// Only so many come.
    requests_max: Option<u32>,
    prompt_max: Option<usize>,
    tokens_max: Option<u32>,
    single: bool,
    at_once: bool,
    without_aborts: bool,
    without_drops: bool,
    without_ahead: bool,
    without_not_finite: bool,
    without_failure: bool,
    without_drain: bool,
    /// Requests, aborts, drains and steps of the last run.
    events: Cell<u32>,
}

impl Cuts {
    /// Switches off what is left out.
    pub fn limit(&self, knobs: &mut Knobs) {
        self.events.set(0);
        let off = |knob: &mut u32, is_off: bool| *knob = if is_off { 0 } else { *knob };
        off(&mut knobs.arrival_gap, self.at_once);
        off(&mut knobs.abort_one_in, self.without_aborts);
        off(&mut knobs.dropped_step_one_in, self.without_drops);
        off(&mut knobs.ahead_one_in, self.without_ahead);
        off(&mut knobs.not_finite_one_in, self.without_not_finite);
        off(&mut knobs.drain_one_in, self.without_drain);
        knobs.fail_at_step = knobs.fail_at_step.filter(|_| !self.without_failure);
        knobs.num_requests = knobs.num_requests.min(self.requests_max.unwrap_or(u32::MAX));
    }

    /// A request as it comes, if it does; `number` counts from 0.
    pub fn apply(&self, number: u32, mut request: Request) -> Option<Request> {
        if self.skipped.contains(&number) {
            return None;
        }
        request.prompt.truncate(self.prompt_max.unwrap_or(usize::MAX));
        if let Some(max) = self.tokens_max {
            let limit = request.params.max_tokens.map_or(max, |tokens| tokens.min(max));
            request.params.max_tokens = Some(limit);
            request.params.min_tokens = request.params.min_tokens.min(limit);
        }
        request.n = if self.single { 1 } else { request.n };
        Some(request)
    }

    /// Something has happened.
    pub fn count(&self) {
        self.events.set(self.events.get() + 1);
    }
}

/// The shortest run found.
#[derive(Debug)]
pub struct Shrunk {
    /// How many events lead to the violation.
    pub events: u32,
    pub cuts: Cuts,
    pub violation: Violation,
}

/// Cuts a run of this seed, which breaks an invariant, until no cut makes it shorter.
pub fn shrink(seed: u64, prepare: Prepare<'_>) -> Option<Shrunk> {
    let cuts = Cuts::default();
    let violation = simulate_cut(seed, prepare, &cuts).err()?;
    let mut best = Shrunk { events: cuts.events.get(), cuts, violation };
    loop {
        let before = best.events;
        for cut in shorter(&best) {
            let violation = simulate_cut(seed, prepare, &cut).err();
            let Some(violation) = violation.filter(|other| other.invariant == best.violation.invariant) else {
                continue;
            };
            let events = cut.events.get();
            if events < best.events {
                best = Shrunk { events, cuts: cut, violation };
            }
        }
        if best.events == before {
            return Some(best);
        }
    }
}

/// Runs that could be shorter, the most promising first.
fn shorter(best: &Shrunk) -> Vec<Cuts> {
    const LENGTHS: [u32; 9] = [1, 2, 3, 5, 8, 12, 20, 40, 80];
    let switches: [fn(&mut Cuts); 8] = [
        |cuts| cuts.at_once = true,
        |cuts| cuts.without_aborts = true,
        |cuts| cuts.without_drops = true,
        |cuts| cuts.without_ahead = true,
        |cuts| cuts.without_not_finite = true,
        |cuts| cuts.without_failure = true,
        |cuts| cuts.without_drain = true,
        |cuts| cuts.single = true,
    ];
    let with = |change: &dyn Fn(&mut Cuts)| {
        let mut cuts = best.cuts.clone();
        change(&mut cuts);
        cuts
    };
    let mut found: Vec<Cuts> = LENGTHS.iter().map(|&max| with(&|cuts| cuts.requests_max = Some(max))).collect();
    found.extend(LENGTHS.iter().map(|&max| with(&|cuts| cuts.tokens_max = Some(max))));
    found.extend(LENGTHS.iter().map(|&max| with(&|cuts| cuts.prompt_max = Some(max as usize))));
    found.extend(switches.iter().map(|switch| with(switch)));
    // Runs of requests, long ones first, then one by one.
    let requests = best.cuts.requests_max.unwrap_or(128);
    for length in [32, 8, 1] {
        let starts = (0..requests).step_by(length as usize);
        found.extend(starts.map(|start| with(&|cuts| cuts.skipped.extend(start..start + length))));
    }
    found
}
