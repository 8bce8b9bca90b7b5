//! The simulation's own account of every request, kept beside the engine's and by other means.
//!
//! What a request must yield is a pure function of the request: the script's hash of its tokens. The book computes it
//! token by token and never looks into the engine.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use firebrick_engine::{
    EngineStats, EventKind, FinishReason, HistoryHash, Pooling, PromptOutput, PromptResult, Request, RequestId,
    SequenceId, TokenEvent, TokenId,
};

use super::knobs::Knobs;
use super::{Violation, ensure};

/// Service order: priority (0 under first come first served), arrival, choice.
pub type Order = (i32, u64, u32);

/// Where a choice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Unborn,
    Waiting,
    Running,
    Over,
}

/// Results of a prompt that a step must deliver.
#[derive(Clone, Debug)]
pub struct DuePrompt {
    pub positions: Range<u32>,
    /// The token after each, where log-probabilities are wanted.
    pub next: Option<Vec<TokenId>>,
}

/// One choice as the client sees it.
#[derive(Debug)]
pub struct Choice {
    pub place: Place,
    /// Tokens whose keys and values are in the cache while it runs.
    pub computed: u32,
    pub history: HistoryHash,
    pub output: Vec<TokenId>,
    /// Seen in its first draw; all others must have the same.
    pub seed: Option<u64>,
    /// Whether it has been in a batch.
    pub started: bool,
    /// Events that the engine owes.
    pub due_start: Option<u32>,
    pub due_prompt: Option<DuePrompt>,
    pub due_token: Option<(TokenId, bool)>,
    pub due_end: Option<FinishReason>,
    pub told_start: bool,
    pub told_end: Option<FinishReason>,
}

/// A request and its choices.
#[derive(Debug)]
pub struct Entry {
    pub request: Request,
    /// Tokens at which its sequences end.
    pub max_len: u32,
    /// Who may share blocks with it.
    pub salt: u64,
    pub shares: bool,
    pub started: bool,
    /// Executed steps by which its first choice must have started, where that can be promised.
    pub deadline: Option<u64>,
    pub aborted: bool,
    /// Positions of the prompt whose results were delivered.
    pub reported: u32,
    pub choices: Vec<Choice>,
}

impl Entry {
    pub fn is_over(&self) -> bool {
        self.choices.iter().all(|choice| choice.place == Place::Over)
    }

    pub fn len(&self, index: u32) -> u32 {
        (self.request.prompt.len() + self.choices[index as usize].output.len()) as u32
    }

    pub fn token(&self, index: u32, position: u32) -> TokenId {
        let prompt = &self.request.prompt;
        match prompt.get(position as usize) {
            Some(token) => *token,
            None => self.choices[index as usize].output[position as usize - prompt.len()],
        }
    }

    /// The positions whose results are still wanted of a choice.
    fn unreported(&self, index: u32) -> Range<u32> {
        let len = self.request.prompt.len() as u32;
        let wanted = match self.request.prompt_output.filter(|_| index == 0) {
            None => 0..0,
            Some(PromptOutput::Logprobs(_)) => 0..len - 1,
            Some(PromptOutput::Pooled(Pooling::Mean)) => 0..len,
            Some(PromptOutput::Pooled(Pooling::Last)) => len - 1..len,
            Some(PromptOutput::Pooled(Pooling::Cls)) => 0..1,
        };
        wanted.start.max(self.reported)..wanted.end
    }

    /// What a step must report that computes a choice up to here.
    pub fn due_prompt(&self, index: u32, context_len: u32) -> Option<DuePrompt> {
        let left = self.unreported(index);
        let positions = left.start..left.end.min(context_len);
        if positions.is_empty() {
            return None;
        }
        let next = || positions.clone().map(|position| self.request.prompt[position as usize + 1]).collect();
        let next = matches!(self.request.prompt_output, Some(PromptOutput::Logprobs(_))).then(next);
        Some(DuePrompt { positions, next })
    }

    /// What `min_tokens` makes impossible for the next draw.
    pub fn suppressed(&self, index: u32) -> Vec<TokenId> {
        let params = &self.request.params;
        let mut tokens = Vec::new();
        if (self.choices[index as usize].output.len() as u32) < params.min_tokens {
            tokens.extend(self.request.eos_token_ids.iter().chain(&params.stop_token_ids));
            tokens.sort_unstable();
            tokens.dedup();
        }
        tokens
    }

    /// How a token just appended ends the choice.
    fn end(&self, index: u32, token: TokenId) -> Option<FinishReason> {
        let params = &self.request.params;
        if self.choices[index as usize].output.len() as u32 > params.min_tokens {
            if !params.ignore_eos && self.request.eos_token_ids.contains(&token) {
                return Some(FinishReason::Stop(None));
            }
            if params.stop_token_ids.contains(&token) {
                return Some(FinishReason::Stop(Some(token)));
            }
        }
        (self.len(index) == self.max_len).then_some(FinishReason::Length)
    }
}

/// All requests, and what the engine's counters must say.
pub struct Book {
    pub entries: BTreeMap<u64, Entry>,
    pub waiting: BTreeSet<Order>,
    pub running: BTreeSet<Order>,
    pub live: Vec<u64>,
    pub num_unborn: u32,
    pub num_unstarted: u32,
    /// Events owed and not delivered yet.
    pub num_due: u32,
    pub expected: EngineStats,
    /// Steps whose results came back.
    pub committed_steps: u64,
    priority_counts: bool,
    can_promise_start: bool,
}

impl Book {
    pub fn new(knobs: &Knobs) -> Self {
        let fcfs = knobs.config.policy == firebrick_engine::SchedulingPolicy::Fcfs;
        Self {
            entries: BTreeMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            live: Vec::new(),
            num_unborn: 0,
            num_unstarted: 0,
            num_due: 0,
            expected: EngineStats { blocks_total: knobs.kv_blocks, ..EngineStats::default() },
            committed_steps: 0,
            priority_counts: !fcfs,
            can_promise_start: fcfs,
        }
    }

    pub fn order(&self, id: SequenceId) -> Order {
        let priority = if self.priority_counts { self.entries[&id.request.0].request.priority } else { 0 };
        (priority, id.request.0, id.index)
    }

    /// Where a choice is, if its request was ever accepted.
    pub fn place(&self, id: SequenceId) -> Option<Place> {
        Some(self.entries.get(&id.request.0)?.choices.get(id.index as usize)?.place)
    }

    /// A request was accepted.
    pub fn add(&mut self, id: RequestId, request: Request, knobs: &Knobs) {
        let slots = knobs.kv_blocks * knobs.config.block_size;
        let max_len = match request.params.max_tokens {
            Some(max_tokens) => request.prompt.len() as u32 + max_tokens,
            None => knobs.config.max_model_len.min(slots + 1),
        };
        let history = HistoryHash::of(request.prompt.iter().copied());
        let choice = |index| Choice {
            place: if index == 0 { Place::Waiting } else { Place::Unborn },
            computed: 0,
            history,
            output: Vec::new(),
            seed: None,
            started: false,
            due_start: None,
            due_prompt: None,
            due_token: None,
            due_end: None,
            told_start: false,
            told_end: None,
        };
        let caching = knobs.config.enable_prefix_caching;
        let public_salt = knobs.salts.iter().position(|salt| *salt == request.cache_salt).expect("drawn from them");
        let entry = Entry {
            max_len,
            salt: if caching { public_salt as u64 } else { 1000 + id.0 },
            shares: caching || request.n > 1,
            started: false,
            deadline: self.can_promise_start.then(|| self.committed_steps + self.work_ahead()),
            aborted: false,
            reported: 0,
            choices: (0..request.n).map(choice).collect(),
            request,
        };
        self.num_unborn += entry.request.n - 1;
        self.num_unstarted += 1;
        self.entries.insert(id.0, entry);
        self.live.push(id.0);
        let order = self.order(SequenceId { request: id, index: 0 });
        self.waiting.insert(order);
    }

    /// Steps after which everybody who is ahead of a newcomer has ended. In each step the first of the running
    /// sequences gets at least one token and keeps its blocks; only a sibling that is born late can be ahead of it
    /// and cost it its blocks, hence twice the tokens.
    fn work_ahead(&self) -> u64 {
        let work = |id: &u64| {
            let entry = &self.entries[id];
            let live = entry.choices.iter().filter(|choice| choice.place != Place::Over).count();
            u64::from(entry.max_len) * live as u64
        };
        2 * self.live.iter().map(work).sum::<u64>() + 2
    }

    /// A request was aborted and owes its ends.
    pub fn abort(&mut self, id: u64) {
        self.entries.get_mut(&id).expect("only live requests are aborted").aborted = true;
        self.end_request(id, &FinishReason::Abort);
    }

    pub fn end_request(&mut self, id: u64, reason: &FinishReason) {
        for index in 0..self.entries[&id].request.n {
            if self.entries[&id].choices[index as usize].place != Place::Over {
                self.end_choice(SequenceId { request: RequestId(id), index }, reason.clone());
            }
        }
    }

    pub fn end_choice(&mut self, id: SequenceId, reason: FinishReason) {
        let order = self.order(id);
        let entry = self.entries.get_mut(&id.request.0).expect("known");
        let choice = &mut entry.choices[id.index as usize];
        match choice.place {
            Place::Unborn => self.num_unborn -= 1,
            Place::Waiting => assert!(self.waiting.remove(&order)),
            Place::Running => assert!(self.running.remove(&order)),
            Place::Over => unreachable!("a choice ends once"),
        }
        choice.place = Place::Over;
        let finished = &mut self.expected.finished;
        *match reason {
            FinishReason::Stop(_) => &mut finished.stop,
            FinishReason::Length => &mut finished.length,
            FinishReason::Abort => &mut finished.abort,
            FinishReason::Error(_) | FinishReason::Impossible => &mut finished.error,
        } += 1;
        choice.due_end = Some(reason);
        self.num_due += 1;
        if entry.is_over() {
            self.num_unstarted -= u32::from(!entry.started);
            self.live.retain(|live| *live != id.request.0);
        }
    }

    /// The first choice has computed the prompt.
    pub fn bring_forth(&mut self, id: RequestId) {
        for index in 1..self.entries[&id.0].request.n {
            let choice = &mut self.entries.get_mut(&id.0).expect("known").choices[index as usize];
            if choice.place == Place::Unborn {
                choice.place = Place::Waiting;
                self.num_unborn -= 1;
                let order = self.order(SequenceId { request: id, index });
                self.waiting.insert(order);
            }
        }
    }

    /// A waiting choice came into a batch, with this many tokens out of the prefix cache.
    pub fn admit(&mut self, id: SequenceId, cached: u32, block_size: u32) -> Result<(), Violation> {
        let order = self.order(id);
        self.running.insert(order);
        let entry = self.entries.get_mut(&id.request.0).expect("known");
        let allowed = if entry.shares { cached.is_multiple_of(block_size) } else { cached == 0 };
        let left = entry.unreported(id.index);
        let skips = !left.is_empty() && cached > left.start;
        ensure(allowed && !skips && cached < entry.len(id.index), 11, || {
            format!("{id:?} begins with {cached} cached tokens")
        })?;
        let choice = &mut entry.choices[id.index as usize];
        (choice.place, choice.computed) = (Place::Running, cached);
        if !std::mem::replace(&mut choice.started, true) {
            choice.due_start = Some(cached);
            self.num_due += 1;
            if entry.shares {
                self.expected.prefix_cache_queries += entry.request.prompt.len() as u64;
                self.expected.prefix_cache_hits += u64::from(cached);
            }
        }
        if !std::mem::replace(&mut entry.started, true) {
            self.num_unstarted -= 1;
            self.expected.prompt_tokens += entry.request.prompt.len() as u64;
        }
        Ok(())
    }

    /// Results of a prompt that the engine must deliver now.
    pub fn expect_prompt(&mut self, id: SequenceId, due: DuePrompt) {
        let entry = self.entries.get_mut(&id.request.0).expect("known");
        entry.reported = due.positions.end;
        entry.choices[id.index as usize].due_prompt = Some(due);
        self.num_due += 1;
    }

    /// A choice whose prompt is computed and that generates nothing.
    pub fn expect_computed(&mut self, id: SequenceId) {
        let output = self.entries[&id.request.0].request.prompt_output;
        let is_pooled = matches!(output, Some(PromptOutput::Pooled(_)));
        self.end_choice(id, if is_pooled { FinishReason::Stop(None) } else { FinishReason::Length });
    }

    /// A token that the engine must deliver now.
    pub fn expect_token(&mut self, id: SequenceId, token: TokenId) {
        let entry = self.entries.get_mut(&id.request.0).expect("known");
        let choice = &mut entry.choices[id.index as usize];
        choice.output.push(token);
        choice.history = choice.history.then(token);
        let end = entry.end(id.index, token);
        let is_stop = matches!(end, Some(FinishReason::Stop(_)));
        entry.choices[id.index as usize].due_token = Some((token, is_stop));
        self.num_due += 1;
        self.expected.generated_tokens += 1;
        if let Some(reason) = end {
            self.end_choice(id, reason);
        }
    }

    /// Invariant 7 (and 10 for the tokens' values): what was delivered is what was owed, once and in order.
    pub fn take_event(&mut self, event: &TokenEvent) -> Result<(), Violation> {
        let name = format!("{:?} choice {}", event.request, event.index);
        let entry = self.entries.get_mut(&event.request.0);
        let choice = entry.and_then(|entry| entry.choices.get_mut(event.index as usize));
        let Some(choice) = choice else { return Err(Violation::new(7, format!("{name} does not exist"))) };
        ensure(choice.told_end.is_none(), 7, || format!("{name}: {:?} after the end", event.kind))?;
        self.num_due = self.num_due.saturating_sub(1);
        match &event.kind {
            EventKind::Scheduled { cached_tokens } => {
                let due = choice.due_start.take();
                ensure(due == Some(*cached_tokens), 7, || {
                    format!("{name}: scheduled with {cached_tokens}, due {due:?}")
                })?;
                choice.told_start = true;
            }
            EventKind::Prompt(result) => {
                let Some(due) = choice.due_prompt.take() else {
                    return Err(Violation::new(7, format!("{name}: results of its prompt that were not due")));
                };
                let right = match result {
                    PromptResult::Logprobs(tokens) => {
                        let tokens = tokens.iter().map(|(token, _)| *token);
                        due.next.is_some_and(|next| tokens.eq(next))
                    }
                    // The scripted model counts tokens in the first number.
                    PromptResult::HiddenSum { sum, count } => {
                        let right = due.positions.len();
                        due.next.is_none() && sum[0] == right as f32 && *count as usize == right
                    }
                };
                ensure(right && choice.told_start, 7, || format!("{name}: {result:?} for {:?}", due.positions))?;
            }
            EventKind::Token { token, is_stop, .. } => {
                ensure(choice.due_prompt.is_none(), 7, || format!("{name}: a token before its prompt"))?;
                ensure(choice.told_start, 7, || format!("{name}: a token before the start"))?;
                let Some(due) = choice.due_token.take() else {
                    return Err(Violation::new(7, format!("{name}: a token that was not due")));
                };
                ensure(due == (*token, *is_stop), 10, || {
                    format!("{name}: token {token} ({is_stop}), right is {due:?}")
                })?;
            }
            EventKind::Finished { reason } => {
                ensure(choice.due_token.is_none(), 7, || format!("{name}: the end before its last token"))?;
                let due = choice.due_end.take();
                let same = match (&due, reason) {
                    (Some(FinishReason::Error(_)), FinishReason::Error(_)) => true,
                    (due, reason) => due.as_ref() == Some(reason),
                };
                ensure(same, 7, || format!("{name}: ended with {reason:?}, due {due:?}"))?;
                choice.told_end = Some(reason.clone());
            }
        }
        Ok(())
    }

    /// Invariants 3, 7, 12 and 14 between steps.
    pub fn check_totals(&mut self, stats: &EngineStats) -> Result<(), Violation> {
        ensure(self.num_due == 0, 7, || format!("{} events were not delivered", self.num_due))?;
        self.expected.running = self.running.len() as u32;
        self.expected.waiting = self.waiting.len() as u32 + self.num_unborn;
        self.expected.blocks_used = stats.blocks_used;
        self.expected.blocks_cached = stats.blocks_cached;
        ensure(stats.blocks_used + stats.blocks_cached <= stats.blocks_total, 1, || {
            "more blocks than there are".into()
        })?;
        if self.live.is_empty() {
            let left = (stats.running, stats.waiting, stats.blocks_used);
            ensure(left == (0, 0, 0), 3, || {
                format!("running, waiting, used blocks are {left:?} though all have ended")
            })?;
        }
        ensure(*stats == self.expected, 14, || format!("counted {:?}, the engine says {stats:?}", self.expected))?;
        if let Some(id) = self.waiting.first().map(|order| order.1) {
            let entry = &self.entries[&id];
            let late = !entry.started && entry.deadline.is_some_and(|deadline| self.committed_steps > deadline);
            ensure(!late, 12, || format!("request {id} should have started by step {:?}", entry.deadline))?;
        }
        Ok(())
    }
}
