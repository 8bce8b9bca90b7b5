//! The engine's state at one moment, for people to look at: every block with its owners, every sequence with its block
//! table, and the rows of the step in flight.
//!
//! Made by scanning everything, so that it costs time in proportion to the pool; the engine itself never needs it.

use serde::{Deserialize, Serialize};

use crate::plan::PlannedRow;
use crate::scheduler::Scheduler;
use crate::{BlockId, EngineStats, SequenceId, TokenId};

/// Everything the scheduler knows, as plain values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineSnapshot {
    /// Tokens of a block.
    pub block_size: u32,
    /// Tokens that a step may have.
    pub max_num_batched_tokens: u32,
    /// `[blocks]` state of every block, by its id.
    pub blocks: Vec<BlockSnapshot>,
    /// Running sequences in service order, then waiting ones.
    pub sequences: Vec<SequenceSnapshot>,
    /// Rows of the step in flight, in the order of the batch; empty between steps.
    pub rows: Vec<RowSnapshot>,
    /// Counters and gauges.
    pub stats: EngineStats,
}

/// How much of the engine a snapshot shows. What is beyond is left out; the counters count it all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotLimits {
    /// Blocks of the pool, the lowest ids first.
    pub blocks: u32,
    /// Sequences, running ones first.
    pub sequences: usize,
    /// Entries of all block tables together.
    pub table_entries: usize,
}

impl SnapshotLimits {
    /// Everything.
    pub const NONE: Self = Self { blocks: u32::MAX, sequences: usize::MAX, table_entries: usize::MAX };
}

/// One block. Free: no references, not cached. Evictable: no references, cached. Shared: several references.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockSnapshot {
    /// Block tables that name it.
    pub references: u32,
    /// It is in the prefix cache.
    pub cached: bool,
}

/// Where a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SequenceState {
    /// Owns blocks and advances in every step.
    Running,
    /// Waits for its first step.
    Waiting,
    /// Lost its blocks and waits to begin again.
    Preempted,
}

/// One sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceSnapshot {
    /// Which.
    pub id: SequenceId,
    /// Where it is.
    pub state: SequenceState,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of prompt and output.
    pub tokens: u32,
    /// Tokens whose keys and values are in the cache.
    pub computed_tokens: u32,
    /// Blocks at the head of the table that are in the prefix cache.
    pub published_blocks: u32,
    /// Its block table, from the beginning.
    pub blocks: Vec<u32>,
    /// Entries at the table's end that are not shown.
    pub blocks_left_out: u32,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowSnapshot {
    /// Whose.
    pub sequence: SequenceId,
    /// Position of its first token in this step.
    pub position: u32,
    /// Its tokens in this step: 1 in decode, more in prefill.
    pub tokens: u32,
    /// A token is sampled at its end.
    pub samples: bool,
}

impl Scheduler {
    pub(crate) fn snapshot(&self, limits: SnapshotLimits) -> EngineSnapshot {
        let block = |id| BlockSnapshot {
            references: self.pool.references(BlockId(id)),
            cached: self.pool.cache().contains(BlockId(id)),
        };
        let running = self.running.iter().map(|(_, key)| (SequenceState::Running, *key));
        let waiting = self.waiting.values().map(|key| match self.sequences[*key].started {
            true => (SequenceState::Preempted, *key),
            false => (SequenceState::Waiting, *key),
        });
        let mut entries_left = limits.table_entries;
        let sequence = |(state, key)| {
            let sequence = &self.sequences[key];
            let table = sequence.table.blocks();
            let shown = table.len().min(entries_left);
            entries_left -= shown;
            SequenceSnapshot {
                id: sequence.id(),
                state,
                prompt_tokens: sequence.facts.prompt_len(),
                tokens: sequence.len(),
                computed_tokens: sequence.num_computed_tokens,
                published_blocks: sequence.num_published,
                blocks: table[..shown].iter().map(|block| block.0).collect(),
                blocks_left_out: (table.len() - shown) as u32,
            }
        };
        EngineSnapshot {
            block_size: self.config.block_size,
            max_num_batched_tokens: self.config.max_num_batched_tokens,
            blocks: (0..self.pool.num_blocks().min(limits.blocks)).map(block).collect(),
            sequences: running.chain(waiting).take(limits.sequences).map(sequence).collect(),
            rows: self.rows_in_flight(),
            stats: self.stats(),
        }
    }

    /// The rows of the oldest step in flight whose sequences live, in the order of the batch.
    pub(crate) fn rows_in_flight(&self) -> Vec<RowSnapshot> {
        let row = |row: &PlannedRow| {
            Some(RowSnapshot {
                sequence: self.sequences.get(row.key)?.id(),
                position: row.start,
                tokens: row.num_tokens,
                samples: row.samples,
            })
        };
        let rows = self.in_flight.front().into_iter().flat_map(|step| &step.rows);
        rows.filter_map(row).collect()
    }

    /// The tokens whose keys and values a block holds, first to last; none for a block that holds nothing of use.
    pub(crate) fn tokens_in_block(&self, block: BlockId) -> Vec<TokenId> {
        if block.0 >= self.pool.num_blocks() {
            return Vec::new();
        }
        if self.pool.cache().contains(block) {
            return self.pool.cache().tokens_of(block).to_vec();
        }
        let owner = self.running.iter().map(|(_, key)| &self.sequences[*key]).find_map(|sequence| {
            let place = sequence.table.blocks().iter().position(|owned| *owned == block)?;
            Some((sequence, place as u32 * self.config.block_size))
        });
        let Some((sequence, start)) = owner else { return Vec::new() };
        let end = (start + self.config.block_size).min(sequence.num_computed_tokens);
        sequence.span(start.min(end)..end).iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::{Engine, EngineConfig, Request, SamplingParams, SchedulingPolicy, Script, ScriptedExecutor};

    fn ready<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("scripted steps do not wait"),
        }
    }

    /// Eight requests with a common beginning, in a pool that is too small for all of them.
    fn crowded() -> Engine<ScriptedExecutor> {
        let config = EngineConfig {
            block_size: 4,
            max_model_len: 200,
            max_num_seqs: 8,
            max_num_batched_tokens: 32,
            max_waiting: 100,
            max_choices: 8,
            vocab_size: 1000,
            enable_prefix_caching: true,
            enable_chunked_prefill: true,
            policy: SchedulingPolicy::Fcfs,
            seed: 1,
            hash_key: [3, 4],
        };
        let executor = ScriptedExecutor::new(20, config.block_size, Script::Hash { vocab_size: 1000 });
        let mut engine = Engine::new(config, executor).expect("a valid configuration");
        for number in 0..8 {
            let params = SamplingParams { max_tokens: Some(24), ..SamplingParams::default() };
            let prompt: Vec<TokenId> = (1..9).chain(100 * number..100 * number + 3).collect();
            engine.add_request(Request::new(prompt, params)).expect("accepted");
        }
        engine
    }

    #[test]
    fn a_block_has_as_many_references_as_block_tables_name_it() {
        let mut engine = crowded();
        let (mut shared, mut preempted) = (false, false);
        while engine.has_work() {
            ready(engine.step()).expect("the device works");
            engine.audit();
            let snapshot = engine.snapshot();
            let mut named: BTreeMap<u32, u32> = BTreeMap::new();
            for block in snapshot.sequences.iter().flat_map(|sequence| &sequence.blocks) {
                *named.entry(*block).or_default() += 1;
            }
            for (id, block) in (0..).zip(&snapshot.blocks) {
                assert_eq!(block.references, named.get(&id).copied().unwrap_or(0), "block {id}");
                shared |= block.references > 1;
            }
            let used = snapshot.blocks.iter().filter(|block| block.references > 0).count();
            let cached = snapshot.blocks.iter().filter(|block| block.references == 0 && block.cached).count();
            assert_eq!((used as u32, cached as u32), (snapshot.stats.blocks_used, snapshot.stats.blocks_cached));
            preempted |= snapshot.sequences.iter().any(|sequence| sequence.state == SequenceState::Preempted);
        }
        assert!(shared && preempted, "the pool was meant to be shared and too small");
    }

    #[test]
    fn the_rows_of_a_step_are_shown_while_it_runs() {
        let mut engine = crowded();
        let running = engine.begin_step().expect("alive").expect("there is work");
        let snapshot = engine.snapshot();
        let batch = engine.last_batch().expect("a step is in flight");
        let tokens: u32 = snapshot.rows.iter().map(|row| row.tokens).sum();
        assert_eq!((snapshot.rows.len(), tokens as usize), (batch.num_sequences(), batch.num_tokens()));
        assert!(tokens <= snapshot.max_num_batched_tokens);
        let result = ready(running);
        engine.finish_step(result).expect("the device works");
        assert!(engine.snapshot().rows.is_empty());
    }

    #[test]
    fn a_limited_snapshot_leaves_out_and_says_how_much() {
        let mut engine = crowded();
        let running = engine.begin_step().expect("alive").expect("there is work");
        let whole = engine.snapshot();
        let limits = SnapshotLimits { blocks: 5, sequences: 2, table_entries: 4 };
        let cut = engine.snapshot_within(limits);
        assert_eq!(cut.blocks, whole.blocks[..5]);
        assert_eq!((&cut.rows, &cut.stats), (&whole.rows, &whole.stats));
        let tables: Vec<(usize, u32)> =
            cut.sequences.iter().map(|sequence| (sequence.blocks.len(), sequence.blocks_left_out)).collect();
        let lengths: Vec<usize> = whole.sequences.iter().map(|sequence| sequence.blocks.len()).collect();
        assert_eq!(lengths[..2], [3, 3], "eleven tokens in blocks of four");
        assert_eq!(tables, [(3, 0), (1, 2)]);
        let result = ready(running);
        engine.finish_step(result).expect("the device works");
    }

    #[test]
    fn a_block_shows_the_tokens_that_were_computed() {
        let mut engine = crowded();
        ready(engine.step()).expect("the device works");
        let snapshot = engine.snapshot();
        let first = &snapshot.sequences[0];
        assert_eq!(engine.tokens_in_block(BlockId(first.blocks[0])), [1, 2, 3, 4]);
        assert_eq!(engine.tokens_in_block(BlockId(first.blocks[2])), [0, 1, 2]);
        let free = snapshot.blocks.iter().position(|block| block.references == 0).expect("some are free");
        assert!(engine.tokens_in_block(BlockId(free as u32)).is_empty());
        assert!(engine.tokens_in_block(BlockId(20)).is_empty());
    }
}
