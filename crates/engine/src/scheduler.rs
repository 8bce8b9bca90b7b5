//! Every live request and every block: who is waiting, who is running, and how they leave.
//!
//! A step has two halves. [`schedule`](Scheduler::schedule) (in `plan.rs`) decides what to run and takes the blocks for
//! it; [`commit`](Scheduler::commit) (in `commit.rs`) takes the results. Between the two the plan is in flight:
//! requests may come, and aborts are noted but change nothing until the results are there.
//!
//! A sequence is in exactly one place: not yet born (a choice that waits for its sibling to compute the prompt),
//! waiting, or running. Only running sequences own blocks.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use crate::admission::Door;
use crate::block_pool::BlockPool;
use crate::plan::PlannedStep;
use crate::policy::ServiceOrder;
use crate::prefix_cache::ChainHasher;
use crate::sequence::{RequestFacts, Sequence};
use crate::sequence_table::{SequenceKey, SequenceTable};
use crate::stats::{EngineStats, FinishedStats};
use crate::{
    Batch, BlockId, EngineConfig, EventKind, FinishReason, Rejected, Request, RequestId, SequenceId, TokenEvent,
};

/// A request with at least one choice that has not ended.
#[derive(Debug)]
pub(crate) struct LiveRequest {
    pub(crate) facts: Arc<RequestFacts>,
    /// Its waiting and running sequences, by index.
    pub(crate) sequences: Vec<SequenceKey>,
    /// Choices that will be made when the first one has computed the prompt, so that they find its blocks.
    pub(crate) unborn: Range<u32>,
    /// Whether its first choice has been in a batch.
    pub(crate) started: bool,
}

/// The state of the engine without its executor.
pub(crate) struct Scheduler {
    pub(crate) config: EngineConfig,
    pub(crate) pool: BlockPool,
    pub(crate) sequences: SequenceTable,
    pub(crate) requests: BTreeMap<RequestId, LiveRequest>,
    pub(crate) waiting: BTreeMap<ServiceOrder, SequenceKey>,
    /// Sorted; the last is preempted first.
    pub(crate) running: Vec<(ServiceOrder, SequenceKey)>,
    /// The steps in flight, the oldest first: one, and perhaps one that was planned ahead of its results.
    pub(crate) in_flight: VecDeque<PlannedStep>,
    /// Aborts that wait for the oldest step in flight.
    pub(crate) deferred_aborts: Vec<RequestId>,
    /// Aborts of single choices that wait for the oldest step in flight.
    pub(crate) deferred_choice_aborts: Vec<SequenceId>,
    /// The last plan; its buffers are reused.
    pub(crate) batch: Batch,
    /// Whose sequences the last plan that could preempt has preempted, until somebody asks; once per sequence.
    pub(crate) preempted: Vec<RequestId>,
    /// Tokens of the last step whose results came, until somebody asks.
    pub(crate) finished_tokens: Option<u32>,
    /// What has happened and was not told yet.
    pub(crate) events: Vec<TokenEvent>,
    /// Counters; the gauges in it are filled in by [`stats`](Self::stats).
    pub(crate) counters: EngineStats,
    /// Requests that have not been in a batch; their number is limited.
    pub(crate) num_unstarted: u32,
    pub(crate) num_unborn: u32,
    pub(crate) accepting: bool,
    pub(crate) last_request: u64,
    /// Scratch: the blocks found for the sequence being admitted.
    pub(crate) found: Vec<BlockId>,
}

impl Scheduler {
    pub(crate) fn new(config: EngineConfig, num_blocks: u32) -> Self {
        Self {
            pool: BlockPool::new(num_blocks, config.block_size, ChainHasher::new(config.hash_key)),
            config,
            sequences: SequenceTable::default(),
            requests: BTreeMap::new(),
            waiting: BTreeMap::new(),
            running: Vec::new(),
            in_flight: VecDeque::new(),
            deferred_aborts: Vec::new(),
            deferred_choice_aborts: Vec::new(),
            batch: Batch::default(),
            preempted: Vec::new(),
            finished_tokens: None,
            events: Vec::new(),
            counters: EngineStats::default(),
            num_unstarted: 0,
            num_unborn: 0,
            accepting: true,
            last_request: 0,
            found: Vec::new(),
        }
    }

    /// Checks a request and puts it in the queue.
    pub(crate) fn add_request(&mut self, request: Request) -> Result<RequestId, Rejected> {
        if !self.accepting {
            return Err(Rejected::NotAccepting);
        }
        let door = Door { config: &self.config, num_blocks: self.pool.num_blocks() };
        door.check(&request)?;
        if self.num_unstarted >= self.config.max_waiting {
            return Err(Rejected::QueueFull { waiting: self.num_unstarted });
        }
        let id = RequestId(self.last_request + 1);
        let num_choices = request.n;
        let facts = Arc::new(door.facts(id, request, self.pool.cache().hasher()));
        self.last_request = id.0;
        let request = LiveRequest { facts, sequences: Vec::new(), unborn: 1..num_choices, started: false };
        self.requests.insert(id, request);
        self.num_unstarted += 1;
        self.num_unborn += num_choices - 1;
        self.enqueue(id, 0);
        Ok(id)
    }

    /// Makes a request's sequence and lets it wait.
    fn enqueue(&mut self, id: RequestId, index: u32) {
        let request = self.requests.get_mut(&id).expect("only live requests get sequences");
        let sequence = Sequence::new(request.facts.clone(), index, self.config.block_size);
        let order = sequence.order(self.config.policy);
        let key = self.sequences.insert(sequence);
        request.sequences.push(key);
        self.waiting.insert(order, key);
    }

    /// Lets the other choices of a request wait for their turn, now that they can share the prompt's blocks.
    pub(crate) fn bring_forth_choices(&mut self, id: RequestId) {
        let request = self.requests.get_mut(&id).expect("a request with unborn choices is alive");
        let unborn = std::mem::take(&mut request.unborn);
        self.num_unborn -= unborn.len() as u32;
        unborn.for_each(|index| self.enqueue(id, index));
    }

    /// Ends all sequences of a request: at once, or, if it has been in a batch, when the oldest step in flight returns. Unknown requests are ignored,
    /// because a request may have ended by itself while the abort was on its way.
    pub(crate) fn abort(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(&id) else { return };
        if request.started && !self.in_flight.is_empty() {
            self.deferred_aborts.push(id);
        } else {
            self.end_request(id, &FinishReason::Abort);
        }
    }

    /// Ends one choice of a request: at once, or when the oldest step in flight returns. Unknown and ended ones are ignored.
    pub(crate) fn abort_choice(&mut self, id: SequenceId) {
        if !self.in_flight.is_empty() {
            if self.requests.contains_key(&id.request) {
                self.deferred_choice_aborts.push(id);
            }
        } else {
            self.end_choice(id);
        }
    }

    /// Whether the steps in flight change nothing for a sequence any more.
    pub(crate) fn is_leaving(&self, id: SequenceId) -> bool {
        self.deferred_aborts.contains(&id.request) || self.deferred_choice_aborts.contains(&id)
    }

    pub(crate) fn apply_deferred_aborts(&mut self) {
        for id in std::mem::take(&mut self.deferred_aborts) {
            self.end_request(id, &FinishReason::Abort);
        }
        for id in std::mem::take(&mut self.deferred_choice_aborts) {
            self.end_choice(id);
        }
    }

    fn end_choice(&mut self, id: SequenceId) {
        let Some(request) = self.requests.get(&id.request) else { return };
        // Nobody waits for a first choice that leaves, and a choice must be born to end alone.
        if !request.unborn.is_empty() && (id.index == 0 || request.unborn.contains(&id.index)) {
            self.bring_forth_choices(id.request);
        }
        let sequences = &self.requests[&id.request].sequences;
        let key = sequences.iter().copied().find(|key| self.sequences[*key].id() == id);
        if let Some(key) = key {
            self.finish(key, FinishReason::Abort);
        }
    }

    /// Ends every request for the same reason.
    pub(crate) fn end_all(&mut self, reason: &FinishReason) {
        let ids: Vec<RequestId> = self.requests.keys().copied().collect();
        ids.into_iter().for_each(|id| self.end_request(id, reason));
    }

    fn end_request(&mut self, id: RequestId, reason: &FinishReason) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let unborn = std::mem::take(&mut request.unborn);
        let sequences = request.sequences.clone();
        self.num_unborn -= unborn.len() as u32;
        sequences.into_iter().for_each(|key| self.finish(key, reason.clone()));
        for index in unborn {
            self.announce_end(SequenceId { request: id, index }, reason.clone());
        }
    }

    /// Ends one sequence: it leaves its queue, gives its blocks back, and says why.
    pub(crate) fn finish(&mut self, key: SequenceKey, reason: FinishReason) {
        let order = self.sequences[key].order(self.config.policy);
        if self.waiting.remove(&order).is_none() {
            let place = self.running.binary_search_by_key(&order, |entry| entry.0);
            self.running.remove(place.expect("a live sequence is waiting or running"));
        }
        self.release_blocks(key);
        let sequence = self.sequences.remove(key);
        let id = sequence.id();
        let request = self.requests.get_mut(&id.request).expect("a live sequence has a live request");
        request.sequences.retain(|other| *other != key);
        if request.sequences.is_empty() && request.unborn.is_empty() {
            self.num_unstarted -= u32::from(!request.started);
            self.requests.remove(&id.request);
        }
        self.announce_end(id, reason);
    }

    /// Gives a sequence's blocks back, last first: the head of a prefix is worth keeping longest.
    pub(crate) fn release_blocks(&mut self, key: SequenceKey) {
        for block in self.sequences[key].table.take_reversed() {
            self.pool.release(block);
        }
        self.sequences[key].forget_computed();
    }

    fn announce_end(&mut self, id: SequenceId, reason: FinishReason) {
        let FinishedStats { stop, length, abort, error } = &mut self.counters.finished;
        *match reason {
            FinishReason::Stop(_) => stop,
            FinishReason::Length => length,
            FinishReason::Abort => abort,
            FinishReason::Error(_) | FinishReason::Impossible => error,
        } += 1;
        self.tell(id, EventKind::Finished { reason });
    }

    pub(crate) fn tell(&mut self, id: SequenceId, kind: EventKind) {
        self.events.push(TokenEvent { request: id.request, index: id.index, kind });
    }

    pub(crate) fn has_live_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    pub(crate) fn stats(&self) -> EngineStats {
        EngineStats {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32 + self.num_unborn,
            blocks_total: self.pool.num_blocks(),
            blocks_used: self.pool.num_blocks() - self.pool.num_available(),
            blocks_cached: self.pool.num_evictable(),
            ..self.counters.clone()
        }
    }
}
