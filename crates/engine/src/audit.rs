//! The invariants of the scheduler, proved from its own state.
//!
//! The numbers are those of the simulation (`tests/simulation/`), which proves the rest from outside. The cheap checks
//! run after every step in every build; debug builds check all blocks and a rotating part of the prefix cache. A failed
//! check is a bug of the engine and panics with the invariant's number.

use crate::prefix_cache::Parent;
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use crate::sequence_table::SequenceKey;
use crate::{BlockId, SequenceId};

impl Scheduler {
    /// What every build checks, in constant time, and what debug builds check beside it, in time proportional to the
    /// pool and the batch.
    pub(crate) fn audit_after_step(&self) {
        self.audit_counts();
        if cfg!(debug_assertions) {
            self.audit_blocks();
            self.audit_places();
            let turn = self.counters.steps as usize;
            if let Some((_, key)) = self.running.get(turn % self.running.len().max(1)) {
                self.audit_content(&self.sequences[*key]);
            }
            self.audit_entry(BlockId((turn % self.pool.num_blocks() as usize) as u32));
        }
    }

    /// Everything, in time proportional to all tokens in the cache.
    pub(crate) fn audit_all(&self) {
        self.audit_counts();
        self.audit_blocks();
        self.audit_places();
        self.running.iter().for_each(|(_, key)| self.audit_content(&self.sequences[*key]));
        (0..self.pool.num_blocks()).for_each(|block| self.audit_entry(BlockId(block)));
        let unborn: usize = self.requests.values().map(|request| request.unborn.len()).sum();
        assert_eq!(unborn as u32, self.num_unborn, "invariant 14: unborn choices are miscounted");
        let unstarted = self.requests.values().filter(|request| !request.started).count();
        assert_eq!(unstarted as u32, self.num_unstarted, "invariant 14: unstarted requests are miscounted");
    }

    /// Invariants 1, 3, 11 and 16, as far as counters tell.
    pub(crate) fn audit_counts(&self) {
        let pool = &self.pool;
        let available = pool.num_available();
        let total = pool.num_blocks();
        assert_eq!(available + pool.num_referenced(), total, "invariant 1: the three sets of blocks are not the pool");
        if self.running.is_empty() {
            assert_eq!(pool.num_referenced(), 0, "invariant 3: blocks are owned though nothing runs");
        }
        if self.requests.is_empty() {
            let left = self.waiting.len() + self.sequences.len() + self.num_unborn as usize;
            assert_eq!(left, 0, "invariant 3: sequences are left of requests that have ended");
            assert_eq!(self.num_unstarted, 0, "invariant 3: unstarted requests are left");
        }
        let (tokens, sequences) = (self.batch.num_tokens(), self.batch.num_sequences());
        assert!(tokens as u32 <= self.config.max_num_batched_tokens, "invariant 11: {tokens} tokens in a step");
        assert!(sequences as u32 <= self.config.max_num_seqs, "invariant 11: {sequences} sequences in a step");
        assert!(self.running.len() as u32 <= self.config.max_num_seqs, "invariant 16: too many sequences run");
        assert!(self.num_unstarted <= self.config.max_waiting, "invariant 16: the waiting queue is over its limit");
    }

    /// Invariants 1, 2 and 4: every block is in one set, is counted right, and is shared only when cached.
    fn audit_blocks(&self) {
        let pool = &self.pool;
        let mut named = vec![0_u32; pool.num_blocks() as usize];
        for (_, key) in &self.running {
            let sequence = &self.sequences[*key];
            for (index, block) in sequence.table.blocks().iter().enumerate() {
                named[block.0 as usize] += 1;
                let published = (index as u32) < sequence.num_published;
                let id = sequence.id();
                assert_eq!(
                    pool.cache().contains(*block),
                    published,
                    "invariant 4: {id:?} may write to block {index} exactly when it is not in the prefix cache"
                );
            }
        }
        for (index, named) in named.iter().enumerate() {
            let block = BlockId(index as u32);
            let references = pool.references(block);
            assert_eq!(
                references, *named,
                "invariant 2: {block:?} has {references} references, {named} tables name it"
            );
            assert!(
                references <= 1 || pool.cache().contains(block),
                "invariant 4: {block:?} is shared and not in the prefix cache, so it will be written"
            );
        }
        let mut available = vec![false; pool.num_blocks() as usize];
        let evictable = pool.evictable_blocks().iter().map(|block| (block, true));
        for (block, cached) in pool.free_blocks().iter().map(|block| (*block, false)).chain(evictable) {
            let twice = std::mem::replace(&mut available[block.0 as usize], true);
            assert!(!twice, "invariant 1: {block:?} is available twice");
            assert_eq!(pool.references(block), 0, "invariant 1: {block:?} is available and in use");
            assert_eq!(pool.cache().contains(block), cached, "invariant 1: {block:?} is in the wrong set");
        }
    }

    /// Invariant 8: every live sequence is in one queue, in its place, and only running ones own blocks.
    fn audit_places(&self) {
        let (waiting, running) = (self.waiting.len(), self.running.len());
        assert_eq!(waiting + running, self.sequences.len(), "invariant 8: a sequence is in two queues or in none");
        assert!(
            self.running.is_sorted_by_key(|(order, _)| *order),
            "invariant 8: running sequences are not in service order"
        );
        let queues = self.waiting.iter().map(|(order, key)| (*order, *key)).chain(self.running.iter().copied());
        for (order, key) in queues {
            let sequence = &self.sequences[key];
            let id = sequence.id();
            assert_eq!(sequence.order(self.config.policy), order, "invariant 8: {id:?} is in another's place");
            assert!(self.owns(id, key), "invariant 8: {id:?} does not belong to its request");
            assert!(sequence.num_computed_tokens < sequence.len(), "invariant 8: {id:?} has nothing left to do");
            let covered = sequence.num_computed_tokens <= sequence.table.capacity();
            assert!(covered, "invariant 11: {id:?} has computed tokens without blocks");
        }
        for key in self.waiting.values() {
            let id = self.sequences[*key].id();
            assert!(self.sequences[*key].table.blocks().is_empty(), "invariant 8: {id:?} waits and owns blocks");
        }
    }

    fn owns(&self, id: SequenceId, key: SequenceKey) -> bool {
        self.requests.get(&id.request).is_some_and(|request| request.sequences.contains(&key))
    }

    /// Invariants 5 and 6: the published blocks of a sequence hold its own tokens under its own salt.
    fn audit_content(&self, sequence: &Sequence) {
        let id = sequence.id();
        let block_size = self.config.block_size;
        let mut parent = None;
        for (index, block) in (0..sequence.num_published).zip(sequence.table.blocks()) {
            let entry = self.pool.cache().entry(*block).expect("checked by invariant 4");
            let expected =
                sequence.block_key(index, parent, block_size).expect("a sequence with published blocks shares");
            let salted = matches!(entry.parent, Parent::Block(_)) || entry.parent == expected.parent;
            assert!(salted, "invariant 6: {id:?} uses a block of another salt");
            assert_eq!(entry.parent, expected.parent, "invariant 5: block {index} of {id:?} continues another prefix");
            let equal = expected.tokens == *self.pool.cache().tokens_of(*block);
            assert!(equal, "invariant 5: block {index} of {id:?} holds other tokens");
            parent = Some(*block);
        }
    }

    /// Invariant 5: a cached block is found under the hash of what it holds, and so is its parent.
    fn audit_entry(&self, block: BlockId) {
        let cache = self.pool.cache();
        let Some(entry) = cache.entry(block) else { return };
        let parent = match &entry.parent {
            Parent::Root(salt) => cache.hasher().root(salt),
            Parent::Block(parent) => {
                let entry = cache.entry(*parent);
                entry.unwrap_or_else(|| panic!("invariant 5: {block:?} outlived its parent {parent:?}")).hash
            }
        };
        let tokens = crate::token_span::TokenSpan { prompt: cache.tokens_of(block), output: &[] };
        assert_eq!(cache.hasher().block(parent, tokens), entry.hash, "invariant 5: {block:?} has a wrong hash");
        assert_eq!(cache.block_at(entry.hash), Some(block), "invariant 5: {block:?} is not found under its hash");
    }
}
