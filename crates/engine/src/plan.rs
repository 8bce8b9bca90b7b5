//! The first half of a step: who gets how many tokens, and blocks for them.
//!
//! Running sequences come first, then waiting ones, in service order. Each gets as much of its gap as the step's token
//! budget allows; no other rule tells prefill from decode. Two rules guarantee progress:
//!
//! - a sequence is admitted only with blocks for all its known tokens, so from then on it needs at most one block a
//!   step, and when there is none the last in service order is preempted, never an earlier one;
//! - every running sequence gets at least one token in every step (the budget is at least `max_num_seqs`), so a long
//!   prompt never stops those that are already generating.
//!
//! A step may be planned while the one before it runs. The tokens that are being chosen then stand in the batch as
//! *carried*: the device fills them in. Only what is certain is planned so: nobody is preempted, and no draw depends on
//! more than the position of the token before it. Sequences that turn out to have ended have a row in vain.

use std::ops::Range;

use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use crate::sequence_table::SequenceKey;
use crate::{Batch, CarriedToken, EventKind, PromptOutput, PromptRows, PromptWanted, SequenceId};

/// One sequence's part of a planned step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlannedRow {
    pub(crate) key: SequenceKey,
    /// Position of the first token.
    pub(crate) start: u32,
    pub(crate) num_tokens: u32,
    /// Whether the step closes the gap, so that a token is sampled.
    pub(crate) samples: bool,
    /// Where the positions end whose results the step reports.
    pub(crate) reports_to: Option<u32>,
}

/// A step that was planned and whose results are not there.
pub(crate) struct PlannedStep {
    pub(crate) rows: Vec<PlannedRow>,
    pub(crate) num_tokens: u32,
    pub(crate) num_samples: usize,
    /// What is reported of prompts.
    pub(crate) prompt_rows: Vec<PromptRows>,
}

impl Scheduler {
    /// Plans a step into `batch` and takes the blocks for it; false when no sequence can use a step. The plan is in
    /// flight until `commit` or `abandon`.
    pub(crate) fn schedule(&mut self) -> bool {
        assert!(self.in_flight.is_empty(), "a step is in flight: the next one is planned ahead of its results");
        // Only here somebody can be preempted.
        self.preempted.clear();
        self.plan()
    }

    /// The same while one step is in flight; false also when the next one depends on its results.
    pub(crate) fn schedule_ahead(&mut self) -> bool {
        self.in_flight.len() == 1 && self.is_next_step_certain() && self.plan()
    }

    /// Whether the next step can be planned without the results of the one in flight.
    fn is_next_step_certain(&self) -> bool {
        let running = || self.running.iter().map(|(_, key)| &self.sequences[*key]);
        let going_on = || running().filter(|sequence| !self.sits_out(sequence));
        let missing = |sequence: &Sequence| {
            let needed = sequence.len_planned().div_ceil(self.config.block_size);
            needed.saturating_sub(sequence.table.blocks().len() as u32)
        };
        // Choices that the step brings forth come before everybody who waits behind their request.
        self.num_unborn == 0
            && !running().any(Sequence::is_reporting)
            && !going_on().any(|sequence| sequence.num_unknown > 0 && sequence.draws_by_tokens())
            && going_on().map(missing).sum::<u32>() <= self.pool.num_available()
    }

    /// Whether a running sequence has nothing left to do once the step in flight returns, as far as that is known.
    fn sits_out(&self, sequence: &Sequence) -> bool {
        sequence.num_pending() == 0 || sequence.ends_in_flight() || self.is_leaving(sequence.id())
    }

    fn plan(&mut self) -> bool {
        self.batch.clear();
        let mut rows = Vec::with_capacity(self.running.len() + 1);
        let mut budget = self.config.max_num_batched_tokens;
        let preempted = self.plan_running(&mut rows, &mut budget);
        // Blocks that a preemption has just freed belong to the running sequences' next tokens.
        if !preempted {
            self.admit_waiting(&mut rows, &mut budget);
        }
        if rows.is_empty() {
            return false;
        }
        self.fill_block_tables(&rows);
        self.counters.steps += 1;
        self.batch.step = self.counters.steps;
        self.counters.last_step_tokens = self.batch.num_tokens() as u32;
        self.counters.last_step_sequences = rows.len() as u32;
        let Batch { samples, prompt_rows, .. } = &self.batch;
        let num_tokens = self.counters.last_step_tokens;
        let step = PlannedStep { rows, num_tokens, num_samples: samples.len(), prompt_rows: prompt_rows.clone() };
        self.in_flight.push_back(step);
        true
    }

    /// Gives every running sequence at least one token. Says whether one had to be preempted.
    fn plan_running(&mut self, rows: &mut Vec<PlannedRow>, budget: &mut u32) -> bool {
        let mut preempted = false;
        // Preemption takes from the end of `running`, behind this index: planned rows stay planned.
        let mut place = 0;
        while place < self.running.len() {
            let (_, key) = self.running[place];
            if self.sits_out(&self.sequences[key]) {
                place += 1;
                continue;
            }
            let mut fits = true;
            while fits && self.sequences[key].table.capacity() < self.sequences[key].len_planned() {
                match self.pool.allocate() {
                    Some(block) => self.sequences[key].table.push(block),
                    None => {
                        preempted = true;
                        fits = self.preempt_last() != key;
                    }
                }
            }
            if !fits {
                break;
            }
            let behind = (self.running.len() - place - 1) as u32;
            let num_tokens = self.sequences[key].num_pending().min(*budget - behind);
            *budget -= num_tokens;
            rows.push(self.plan_row(key, num_tokens));
            place += 1;
        }
        preempted
    }

    /// Takes all blocks from the last running sequence and lets it wait at its own place; it will compute its tokens
    /// again, as far as the prefix cache has not kept them.
    fn preempt_last(&mut self) -> SequenceKey {
        let (order, key) = self.running.pop().expect("the sequence that needs a block is running");
        self.release_blocks(key);
        self.waiting.insert(order, key);
        self.counters.preemptions += 1;
        let id = self.sequences[key].id().request;
        self.preempted.push(id);
        key
    }

    fn admit_waiting(&mut self, rows: &mut Vec<PlannedRow>, budget: &mut u32) {
        while *budget > 0 && (self.running.len() as u32) < self.config.max_num_seqs {
            let mut staying = self.waiting.iter().filter(|(_, key)| !self.is_leaving(self.sequences[**key].id()));
            let Some((&order, &key)) = staying.next() else { break };
            if !self.take_blocks(key, *budget) {
                break;
            }
            self.waiting.remove(&order);
            let place = self.running.partition_point(|entry| entry.0 < order);
            self.running.insert(place, (order, key));
            self.announce_start(key);
            let num_tokens = self.sequences[key].num_pending().min(*budget);
            *budget -= num_tokens;
            rows.push(self.plan_row(key, num_tokens));
        }
    }

    /// Gives a waiting sequence cached blocks for its beginning and new ones for the rest. False, and nothing has
    /// changed, when the pool or the step has no room.
    fn take_blocks(&mut self, key: SequenceKey, budget: u32) -> bool {
        if self.pool.num_available() == 0 {
            return false;
        }
        let block_size = self.config.block_size;
        self.find_cached_blocks(key);
        let sequence = &self.sequences[key];
        let cached_tokens = self.found.len() as u32 * block_size;
        let pending = sequence.len() - cached_tokens;
        // Without chunked prefill a prompt is computed whole. A resumed sequence may have outgrown the largest step;
        // it has no other way than in pieces.
        let whole = !self.config.enable_chunked_prefill && pending <= self.config.max_num_batched_tokens;
        if whole && pending > budget {
            return false;
        }
        let num_new = sequence.len().div_ceil(block_size) - self.found.len() as u32;
        let num_revived = self.found.iter().filter(|block| self.pool.is_evictable(**block)).count() as u32;
        if num_new + num_revived + self.num_spare_blocks() > self.pool.num_available() {
            return false;
        }
        let table = &mut self.sequences[key].table;
        for &block in &self.found {
            self.pool.share(block);
            table.push(block);
        }
        for _ in 0..num_new {
            table.push(self.pool.allocate().expect("counted above"));
        }
        let num_found = self.found.len() as u32;
        let sequence = &mut self.sequences[key];
        sequence.num_published = num_found;
        sequence.num_computed_tokens = cached_tokens;
        sequence.num_planned_tokens = cached_tokens;
        true
    }

    /// Blocks kept back for the growth of running sequences: a quarter of those that they will take in the next
    /// `block_size` steps. Admitting into the very last block would only preempt the newcomer a step later.
    fn num_spare_blocks(&self) -> u32 {
        (self.running.len() as u32).div_ceil(4)
    }

    /// Leaves in `found` the cached blocks that hold the beginning of a sequence. At least the last token is left to
    /// compute, because its logits are needed, and every position that is still to be reported.
    fn find_cached_blocks(&mut self, key: SequenceKey) {
        self.found.clear();
        let block_size = self.config.block_size;
        let sequence = &mut self.sequences[key];
        let num_blocks = (sequence.len() - 1).min(sequence.first_unreported()) / block_size;
        sequence.hash_blocks(num_blocks, block_size, self.pool.cache().hasher());
        for index in 0..num_blocks {
            let Some(key) = sequence.block_key(index, self.found.last().copied(), block_size) else { break };
            let Some(block) = self.pool.find(&key) else { break };
            self.found.push(block);
        }
    }

    /// Tells of a sequence's first admission and counts it.
    fn announce_start(&mut self, key: SequenceKey) {
        let sequence = &mut self.sequences[key];
        if std::mem::replace(&mut sequence.started, true) {
            return;
        }
        let (id, cached_tokens) = (sequence.id(), sequence.num_computed_tokens);
        let prompt_len = sequence.facts.prompt_len();
        if sequence.facts.sharing.is_some() {
            self.counters.prefix_cache_queries += u64::from(prompt_len);
            self.counters.prefix_cache_hits += u64::from(cached_tokens);
        }
        let request = self.requests.get_mut(&id.request).expect("a live sequence has a live request");
        if !std::mem::replace(&mut request.started, true) {
            self.num_unstarted -= 1;
            self.counters.prompt_tokens += u64::from(prompt_len);
        }
        self.tell(id, EventKind::Scheduled { cached_tokens });
    }

    /// Writes a sequence's next tokens into the batch.
    fn plan_row(&mut self, key: SequenceKey, num_tokens: u32) -> PlannedRow {
        let Self { batch, sequences, .. } = self;
        let sequence = &mut sequences[key];
        let start = sequence.num_planned_tokens;
        let end = start + num_tokens;
        batch.tokens.extend(sequence.span(start..end.min(sequence.len())).iter());
        if end > sequence.len() {
            batch.carried.push(CarriedToken { token: batch.tokens.len() as u32, sample: sequence.last_sample });
            batch.tokens.push(0);
        }
        batch.positions.extend(start..end);
        batch.slot_mapping.extend((start..end).map(|position| sequence.table.slot(position)));
        batch.query_starts.push(batch.tokens.len() as u32);
        batch.context_lens.push(end);
        let samples = end == sequence.len_planned() && sequence.facts.generates();
        sequence.num_planned_tokens = end;
        if samples {
            let sample = sequence.sample_row(batch.context_lens.len() as u32 - 1);
            sequence.last_sample = batch.samples.len() as u32;
            sequence.num_unknown += 1;
            batch.samples.push(sample);
        }
        let reports_to = self.plan_report(key, start..end);
        PlannedRow { key, start, num_tokens, samples, reports_to }
    }

    /// Writes into the batch what is reported of a sequence's tokens at these positions, the last ones of the batch. Says
    /// where the reported ones end.
    fn plan_report(&mut self, key: SequenceKey, computed: Range<u32>) -> Option<u32> {
        let Self { batch, sequences, .. } = self;
        let sequence = &sequences[key];
        let output = sequence.facts.prompt_output?;
        let wanted = output.positions(sequence.facts.prompt_len());
        let reported = wanted.start.max(sequence.first_unreported()).max(computed.start)..wanted.end.min(computed.end);
        if reported.is_empty() {
            return None;
        }
        let place = |position: u32| batch.tokens.len() as u32 - (computed.end - position);
        let tokens = place(reported.start)..place(reported.end);
        let wanted = match output {
            PromptOutput::Logprobs(count) => {
                let next = sequence.span(reported.start + 1..reported.end + 1).iter().collect();
                PromptWanted::Logprobs { next, count }
            }
            PromptOutput::Pooled(_) => PromptWanted::HiddenSum,
        };
        batch.prompt_rows.push(PromptRows { sequence: sequence.id(), tokens, wanted });
        Some(reported.end)
    }

    /// Writes the block tables, as wide as the longest context needs.
    fn fill_block_tables(&mut self, rows: &[PlannedRow]) {
        let Self { batch, sequences, config, .. } = self;
        let longest = batch.context_lens.iter().copied().max().unwrap_or(0);
        batch.blocks_per_row = longest.div_ceil(config.block_size) as usize;
        for (row, context_len) in rows.iter().zip(&batch.context_lens) {
            let used = context_len.div_ceil(config.block_size) as usize;
            let blocks = &sequences[row.key].table.blocks()[..used];
            batch.block_tables.extend(blocks.iter().map(|block| block.0));
            batch.block_tables.extend(std::iter::repeat_n(0, batch.blocks_per_row - used));
        }
    }

    /// Whose rows the last step that was planned has, if it is in flight and they live.
    pub(crate) fn sequences_in_flight(&self) -> impl Iterator<Item = SequenceId> + '_ {
        let rows = self.in_flight.back().into_iter().flat_map(|step| &step.rows);
        rows.filter_map(|row| self.sequences.get(row.key).map(Sequence::id))
    }
}
