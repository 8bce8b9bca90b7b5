//! Bugs put into the engine on purpose, to prove that the simulation finds them. Compiled into unit tests only.
//!
//! Each one imitates a mistake that a change of the scheduler could make, by doing to its state, its batch or its
//! events what the mistaken code would have done. Every invariant has at least one.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::StepResult;
use crate::prefix_cache::Parent;
use crate::scheduler::Scheduler;
use crate::sequence_table::SequenceKey;
use crate::{BlockId, EventKind, FinishReason, RequestId, SchedulingPolicy};

/// Generates the list of bugs beside the enum, so that no bug is left out of the test.
macro_rules! planted_bugs {
    ($($(#[doc = $doc:literal])* $bug:ident => $invariants:expr,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum PlantedBug {
            $($(#[doc = $doc])* $bug,)*
        }

        impl PlantedBug {
            const ALL: &[Self] = &[$(Self::$bug,)*];

            /// The invariants by any of which it may be found; the first is the one that it breaks.
            fn invariants(self) -> &'static [u32] {
                match self {
                    $(Self::$bug => &$invariants,)*
                }
            }
        }
    };
}

planted_bugs! {
    /// A free block is dropped.
    LosesFreeBlock => [1],
    /// A block in use is put on the free list.
    FreesBlockInUse => [1],
    /// A shared block is given back once too often.
    ReleasesTooOften => [2],
    /// A block is counted for a table that does not name it.
    ReleasesTooSeldom => [2],
    /// The last sequence leaves a block behind.
    KeepsBlocksAtTheEnd => [3],
    /// A choice that was never born is still counted after its request.
    KeepsUnbornChoices => [3],
    /// A choice shares its sibling's half-full block without a copy.
    SharesPartialBlock => [4],
    /// A row is told to write into a block of another row.
    WritesToSharedBlock => [4, 11],
    /// A block is published under tokens that it does not hold.
    PublishesOtherTokens => [5],
    /// A hit is believed without comparing tokens and parent.
    TrustsTheHash => [5, 6, 10, 11],
    /// A prefix is evicted before its continuation.
    EvictsParentFirst => [5],
    /// The salt of a request is lost.
    IgnoresSalt => [6],
    /// A token is not delivered.
    DropsToken => [7],
    /// The end is told twice.
    TellsEndTwice => [7],
    /// The end is told before the last token.
    TellsEndTooEarly => [7],
    /// An admitted sequence stays in the queue.
    StaysInQueue => [8],
    /// Choices are made before the first has computed the prompt.
    MakesChoicesTooEarly => [8],
    /// Two rows have each other's parameters.
    SwapsParams => [9],
    /// A row keeps the suppressed tokens of another.
    SuppressesForNeighbour => [9],
    /// All draws have the same seed.
    SharesSeed => [9, 10],
    /// The penalties miss the last token.
    ForgetsHistory => [9],
    /// Two rows get each other's tokens.
    SwapsOutcomes => [10],
    /// A row's table names a block of another row.
    MixesBlockTables => [10, 4, 6, 11],
    /// Logits that are not finite are taken for a token.
    OverlooksNotFinite => [10, 7],
    /// A step takes one token too many.
    ExceedsBudget => [11],
    /// A position is counted as computed and never written.
    SkipsPosition => [11],
    /// Two tokens go to one slot.
    WritesSlotTwice => [11],
    /// The second in the queue is served before the first.
    ServesSecondFirst => [12],
    /// Priorities are ignored.
    IgnoresPriority => [12, 13],
    /// The first in service order is preempted instead of the last.
    PreemptsFirst => [13],
    /// Nothing is planned though sequences wait.
    StopsPlanning => [13],
    /// Hits in the prefix cache are counted twice.
    MiscountsHits => [14],
    /// Tokens are not counted.
    MiscountsTokens => [14],
    /// The drain is forgotten.
    AcceptsWhileDraining => [15],
    /// An abort during a step is lost.
    LosesAbort => [15, 7],
    /// The queue has no limit.
    IgnoresQueueLimit => [16],
    /// A decision depends on something that is not an input.
    DependsOnProcess => [17],
}

/// A bug that may be planted, and what it remembers from one place to the next.
#[derive(Default)]
pub(crate) struct Planted {
    pub(crate) bug: Option<PlantedBug>,
    aside: Vec<(crate::policy::ServiceOrder, SequenceKey)>,
}

static PROCESS: AtomicU64 = AtomicU64::new(0);

impl Planted {
    /// Changes an engine that has done nothing yet.
    pub(crate) fn at_start(&mut self, scheduler: &mut Scheduler, bug: PlantedBug) {
        self.bug = Some(bug);
        match bug {
            PlantedBug::TrustsTheHash => {
                let cache = scheduler.pool.parts_mut().cache;
                cache.trusts_the_hash = true;
                cache.cut_hashes(0x3f);
            }
            PlantedBug::IgnoresPriority => scheduler.config.policy = SchedulingPolicy::Fcfs,
            PlantedBug::IgnoresQueueLimit => scheduler.config.max_waiting = u32::MAX,
            _ => {}
        }
    }

    pub(crate) fn on_request(&self, scheduler: &mut Scheduler, mut request: crate::Request) -> crate::Request {
        match self.bug {
            Some(PlantedBug::IgnoresSalt) => request.cache_salt = None,
            Some(PlantedBug::AcceptsWhileDraining) => scheduler.accepting = true,
            _ => {}
        }
        request
    }

    pub(crate) fn after_request(&self, scheduler: &mut Scheduler) {
        let id = RequestId(scheduler.last_request);
        if self.bug == Some(PlantedBug::MakesChoicesTooEarly) && scheduler.requests.contains_key(&id) {
            scheduler.bring_forth_choices(id);
        }
    }

    pub(crate) fn before_schedule(&mut self, scheduler: &mut Scheduler) {
        match self.bug {
            Some(PlantedBug::ExceedsBudget) => {
                let rows = scheduler.running.len() as u32;
                scheduler.config.max_num_batched_tokens += u32::from(rows > 1);
            }
            Some(PlantedBug::ServesSecondFirst) if scheduler.waiting.len() > 1 => {
                self.aside.extend(scheduler.waiting.pop_first());
            }
            Some(PlantedBug::StopsPlanning) if scheduler.running.is_empty() => {
                self.aside.extend(std::mem::take(&mut scheduler.waiting));
            }
            Some(PlantedBug::PreemptsFirst) if scheduler.running.len() > 1 => {
                let (order, key) = scheduler.running.remove(0);
                scheduler.release_blocks(key);
                self.aside.push((order, key));
            }
            Some(PlantedBug::DependsOnProcess)
                if !scheduler.running.is_empty() && PROCESS.fetch_add(1, Ordering::Relaxed).is_multiple_of(7) =>
            {
                self.aside.extend(std::mem::take(&mut scheduler.waiting));
            }
            _ => {}
        }
    }

    pub(crate) fn after_schedule(&mut self, scheduler: &mut Scheduler) {
        scheduler.waiting.extend(self.aside.drain(..));
        let block_size = scheduler.config.block_size;
        let batch = &mut scheduler.batch;
        match (self.bug, &mut batch.samples[..]) {
            (Some(PlantedBug::SwapsParams), [a, b, ..]) => std::mem::swap(&mut a.params, &mut b.params),
            (Some(PlantedBug::SuppressesForNeighbour), [a, b, ..]) => b.suppressed = a.suppressed.clone(),
            (Some(PlantedBug::SharesSeed), samples) => samples.iter_mut().for_each(|sample| sample.seed = 42),
            (Some(PlantedBug::ForgetsHistory), samples) => {
                samples.iter_mut().filter_map(|sample| sample.history.as_mut()).for_each(|history| {
                    history.output.pop();
                });
            }
            _ => {}
        }
        match self.bug {
            Some(PlantedBug::WritesSlotTwice) if batch.num_tokens() > 1 => {
                batch.slot_mapping[1] = batch.slot_mapping[0]
            }
            Some(PlantedBug::MixesBlockTables) if batch.num_sequences() > 1 => {
                batch.block_tables[0] = batch.block_tables[batch.blocks_per_row];
            }
            Some(PlantedBug::WritesToSharedBlock) if batch.num_sequences() > 1 => {
                let written = batch.positions[0] / block_size;
                if batch.context_lens[1] > written * block_size {
                    let victim = batch.block_tables[batch.blocks_per_row + written as usize];
                    batch.block_tables[written as usize] = victim;
                    let tokens = batch.slot_mapping.iter_mut().zip(&batch.positions);
                    for (slot, position) in tokens.take(batch.query_starts[1] as usize) {
                        if position / block_size == written {
                            *slot = victim * block_size + position % block_size;
                        }
                    }
                }
            }
            _ => {}
        }
    }

    pub(crate) fn before_commit(&self, scheduler: &mut Scheduler, mut result: StepResult) -> StepResult {
        let Ok(output) = &mut result else { return result };
        match (self.bug, &mut output.samples[..]) {
            (Some(PlantedBug::SwapsOutcomes), [a, b, ..]) => std::mem::swap(a, b),
            (Some(PlantedBug::LosesAbort), _) => scheduler.deferred_aborts.clear(),
            (Some(PlantedBug::OverlooksNotFinite), outcomes) => {
                let not_finite = outcomes.iter_mut().filter(|outcome| **outcome == crate::SampleOutcome::NotFinite);
                not_finite.for_each(|outcome| {
                    *outcome = crate::SampleOutcome::Token(crate::SampledToken { token: 0, logprobs: None });
                });
            }
            _ => {}
        }
        result
    }

    pub(crate) fn after_commit(&self, scheduler: &mut Scheduler) {
        match self.bug {
            Some(PlantedBug::KeepsBlocksAtTheEnd) if scheduler.running.is_empty() => {
                scheduler.pool.allocate();
            }
            Some(PlantedBug::KeepsUnbornChoices) if scheduler.requests.is_empty() => scheduler.num_unborn += 1,
            Some(PlantedBug::StaysInQueue) => {
                scheduler.waiting.extend(scheduler.running.first().copied());
            }
            Some(PlantedBug::MiscountsHits) if scheduler.counters.prefix_cache_hits > 0 => {
                scheduler.counters.prefix_cache_hits += 1;
            }
            Some(PlantedBug::MiscountsTokens) if scheduler.running.len() > 1 => {
                scheduler.counters.generated_tokens = scheduler.counters.generated_tokens.saturating_sub(1);
            }
            Some(PlantedBug::SkipsPosition) => {
                let keys: Vec<SequenceKey> = scheduler.running.iter().map(|(_, key)| *key).collect();
                if let Some(key) = keys.into_iter().find(|key| scheduler.sequences[*key].num_pending() > 1) {
                    let sequence = &mut scheduler.sequences[key];
                    sequence.num_computed_tokens += 1;
                    sequence.num_planned_tokens += 1;
                }
            }
            Some(bug) => {
                spoil_events(bug, scheduler);
                spoil_blocks(bug, scheduler);
            }
            None => {}
        }
    }
}

fn spoil_events(bug: PlantedBug, scheduler: &mut Scheduler) {
    let events = &mut scheduler.events;
    let end = events.iter().rposition(|event| matches!(event.kind, EventKind::Finished { .. }));
    let token = events.iter().rposition(|event| matches!(event.kind, EventKind::Token { .. }));
    match (bug, end, token) {
        (PlantedBug::DropsToken, _, Some(token)) => drop(events.remove(token)),
        (PlantedBug::TellsEndTwice, Some(end), _) => events.push(events[end].clone()),
        (PlantedBug::TellsEndTooEarly, Some(end), Some(token)) if token + 1 == end => {
            let error = matches!(&events[end].kind, EventKind::Finished { reason: FinishReason::Error(_) });
            if !error && events[end].request == events[token].request {
                events.swap(token, end);
            }
        }
        _ => {}
    }
}

fn spoil_blocks(bug: PlantedBug, scheduler: &mut Scheduler) {
    let block_size = scheduler.config.block_size;
    let running = scheduler.running.first().map(|(_, key)| &scheduler.sequences[*key]);
    let in_use = running.and_then(|sequence| sequence.table.blocks().last().copied());
    let partial = running.filter(|sequence| sequence.num_computed_tokens % block_size > 0).and(in_use);
    let pool = &mut scheduler.pool;
    let shared = (0..pool.num_blocks()).map(BlockId).find(|block| pool.references(*block) > 1);
    match (bug, in_use) {
        (PlantedBug::SharesPartialBlock, _) => {
            if let Some(block) = partial {
                pool.share(block);
            }
        }
        (PlantedBug::LosesFreeBlock, _) => drop(pool.parts_mut().free.pop()),
        (PlantedBug::FreesBlockInUse, Some(block)) => pool.parts_mut().free.push(block),
        (PlantedBug::ReleasesTooSeldom, Some(block)) => pool.parts_mut().references[block.0 as usize] += 1,
        (PlantedBug::ReleasesTooOften, _) => {
            if let Some(block) = shared {
                pool.release(block);
            }
        }
        (PlantedBug::PublishesOtherTokens, _) => {
            let cached = (0..pool.num_blocks()).map(BlockId).find(|block| pool.cache().contains(*block));
            if let Some(block) = cached {
                pool.parts_mut().cache.tokens_mut(block)[0] ^= 1;
            }
        }
        (PlantedBug::EvictsParentFirst, _) => {
            let parents = (0..pool.num_blocks()).filter_map(|block| match pool.cache().entry(BlockId(block))?.parent {
                Parent::Block(parent) => Some(parent),
                Parent::Root(_) => None,
            });
            let evictable = parents.filter(|parent| pool.is_evictable(*parent)).min();
            if let Some(block) = evictable {
                let parts = pool.parts_mut();
                parts.cache.remove(block);
                parts.evictable.remove(block);
                parts.free.push(block);
            }
        }
        _ => {}
    }
}

mod tests {
    use super::*;
    use crate::simulation::{Violation, shrink, simulate};
    use crate::{Engine, ScriptedExecutor};

    const SEEDS_MAX: u64 = 3000;

    fn find(bug: PlantedBug) -> Option<(u64, Violation)> {
        let plant = |engine: &mut Engine<ScriptedExecutor>| engine.plant(bug);
        // Runs that are replayed compare with an engine without the bug; only one bug needs that.
        let mut seeds = (0..SEEDS_MAX).filter(|seed| seed % 16 > 0 || bug == PlantedBug::DependsOnProcess);
        seeds.find_map(|seed| Some((seed, simulate(seed, &plant).err()?)))
    }

    #[test]
    fn the_simulation_finds_every_planted_bug_and_names_the_invariant() {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let found: Vec<_> = PlantedBug::ALL.iter().map(|bug| (*bug, find(*bug))).collect();
        std::panic::set_hook(print);
        let mut missed = Vec::new();
        for (bug, violation) in &found {
            match violation {
                Some((seed, violation)) if bug.invariants().contains(&violation.invariant) => {
                    println!("{bug:?}: invariant {} at seed {seed}: {}", violation.invariant, violation.message);
                }
                other => missed.push(format!("{bug:?} breaks {:?}, found was {other:?}", bug.invariants())),
            }
        }
        assert!(missed.is_empty(), "{}", missed.join("\n"));
        println!("{} of {} planted bugs found", found.len(), PlantedBug::ALL.len());
    }

    #[test]
    fn nine_in_ten_planted_bugs_shrink_to_fifty_events() {
        const EVENTS_MAX: u32 = 50;
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let mut sizes: Vec<(u32, PlantedBug)> = Vec::new();
        for &bug in PlantedBug::ALL {
            let plant = |engine: &mut Engine<ScriptedExecutor>| engine.plant(bug);
            let (seed, violation) = find(bug).expect("the test above finds it");
            let shrunk = shrink(seed, &plant).expect("it was found with this seed");
            assert_eq!(shrunk.violation.invariant, violation.invariant);
            sizes.push((shrunk.events, bug));
        }
        std::panic::set_hook(print);
        sizes.sort_by_key(|(events, _)| *events);
        let short = sizes.iter().filter(|(events, _)| *events <= EVENTS_MAX).count();
        println!("{short} of {} planted bugs shrink to at most {EVENTS_MAX} events: {sizes:?}", sizes.len());
        assert!(10 * short >= 9 * sizes.len(), "{sizes:?}");
    }

    #[test]
    fn every_invariant_has_a_planted_bug() {
        for invariant in 1..=17 {
            let broken = PlantedBug::ALL.iter().any(|bug| bug.invariants()[0] == invariant);
            assert!(broken, "no planted bug breaks invariant {invariant}");
        }
    }

    #[test]
    fn hash_collisions_never_share_a_block() {
        let cut = |engine: &mut Engine<ScriptedExecutor>| engine.cut_hashes(0xf);
        let mut hits = 0;
        for seed in (0..400).filter(|seed| seed % 16 > 0) {
            let report = simulate(seed, &cut);
            hits += report.unwrap_or_else(|violation| panic!("seed {seed}: {violation:?}")).prefix_cache_hits;
        }
        assert!(hits > 0, "blocks are still shared");
    }
}
