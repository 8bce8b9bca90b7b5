//! One run: arrivals, aborts, steps and faults, in an order that the seed decides.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use firebrick_engine::{
    Engine, EngineConfig, EventKind, FinishReason, HistoryHash, Rejected, Request, SampleOutcome, Script,
    ScriptedExecutor, SequenceId, StepResult, TokenEvent,
};

use super::batch_checks::{BatchChecks, ExpectedRow};
use super::book::{Book, Place};
use super::knobs::Knobs;
use super::random::Random;
use super::{Cuts, Prepare, Report, Trace, Violation, ensure};

const STEPS_MAX: u64 = 200_000;
const TRACE_ENTRIES_MAX: usize = 2_000;

/// The engine and everything around it.
pub struct World<'a> {
    cuts: &'a Cuts,
    knobs: Knobs,
    random: Random,
    engine: Engine<ScriptedExecutor>,
    book: Book,
    checks: BatchChecks,
    requests_left: u32,
    draining: bool,
    dead: bool,
    hash: HistoryHash,
    /// The step that was planned ahead of the results of the one before.
    ahead: Option<Running>,
}

/// A step that was checked, and what it yields.
struct Running {
    expected: Vec<ExpectedRow>,
    result: StepResult,
}

impl<'a> World<'a> {
    pub fn new(seed: u64, prepare: Prepare<'_>, cuts: &'a Cuts) -> Self {
        let mut random = Random::new(seed);
        let mut knobs = Knobs::new(&mut random);
        cuts.limit(&mut knobs);
        let script = Script::Hash { vocab_size: knobs.config.vocab_size };
        let mut executor = ScriptedExecutor::new(knobs.kv_blocks, knobs.config.block_size, script);
        if knobs.not_finite_one_in > 0 {
            executor = executor.with_not_finite(u64::from(knobs.not_finite_one_in));
        }
        if let Some(step) = knobs.fail_at_step {
            executor = executor.failing_at(step);
        }
        let mut engine = Engine::new(knobs.config.clone(), executor).expect("drawn to be valid");
        prepare(&mut engine);
        Self {
            cuts,
            book: Book::new(&knobs),
            checks: BatchChecks::new(&knobs),
            requests_left: knobs.num_requests,
            draining: false,
            dead: false,
            hash: HistoryHash::default(),
            ahead: None,
            knobs,
            random,
            engine,
        }
    }

    pub fn record(&mut self) {
        self.engine.start_recording(TRACE_ENTRIES_MAX);
    }

    pub fn into_report(mut self) -> (Report, Trace) {
        let stats = self.engine.stats();
        let report = Report {
            steps: stats.steps,
            generated_tokens: stats.generated_tokens,
            preemptions: stats.preemptions,
            prefix_cache_hits: stats.prefix_cache_hits,
            hash: self.hash.value(),
        };
        (report, self.engine.take_trace())
    }

    /// Runs until every request has ended, then once more alone what can be compared.
    pub fn run(&mut self) -> Result<(), Violation> {
        while !self.dead && (self.requests_left > 0 || self.engine.has_work() || self.ahead.is_some()) {
            self.arrivals()?;
            if self.random.once_in(self.knobs.abort_one_in) {
                self.abort_any();
            }
            if !self.draining && self.random.once_in(self.knobs.drain_one_in) {
                self.cuts.count();
                self.engine.stop_accepting();
                self.draining = true;
            }
            self.step()?;
            ensure(self.book.expected.steps < STEPS_MAX, 13, || "the run does not end".into())?;
        }
        ensure(self.book.live.is_empty(), 3, || format!("no work, but {:?} live", self.book.live))?;
        self.engine.audit();
        self.compare_alone()
    }

    fn arrivals(&mut self) -> Result<(), Violation> {
        while self.requests_left > 0 && (self.knobs.arrival_gap == 0 || self.random.once_in(self.knobs.arrival_gap)) {
            self.requests_left -= 1;
            let request = self.knobs.draw_request(&mut self.random);
            if let Some(request) = self.cuts.apply(self.knobs.num_requests - self.requests_left - 1, request) {
                self.cuts.count();
                self.add(request)?;
            }
        }
        Ok(())
    }

    /// Invariants 15 and 16: a request is refused exactly when it must be.
    fn add(&mut self, request: Request) -> Result<(), Violation> {
        let closed = self.draining || self.dead;
        let fits = fits(&request, &self.knobs);
        let full = self.book.num_unstarted >= self.knobs.config.max_waiting;
        match self.engine.add_request(request.clone()) {
            Ok(id) => {
                ensure(!closed, 15, || format!("{id:?} was accepted after the drain"))?;
                ensure(fits, 16, || format!("{id:?} was accepted and can never fit"))?;
                ensure(!full, 16, || format!("{id:?} was accepted into a full queue"))?;
                self.book.add(id, request, &self.knobs);
                Ok(())
            }
            Err(Rejected::NotAccepting) => ensure(closed, 15, || "refused without a drain".into()),
            Err(Rejected::QueueFull { .. }) => ensure(full && !closed, 16, || "refused, but the queue has room".into()),
            Err(Rejected::LargerThanPool { .. } | Rejected::LargerThanStep { .. }) => {
                ensure(!fits && !closed, 16, || format!("refused, but it fits: {request:?}"))
            }
            Err(other) => Err(Violation::new(16, format!("refused with {other:?}: {request:?}"))),
        }
    }

    fn abort_any(&mut self) {
        if !self.book.live.is_empty() {
            self.cuts.count();
            let id = *self.random.pick(&self.book.live);
            self.engine.abort(firebrick_engine::RequestId(id));
            self.book.abort(id);
        }
    }

    fn step(&mut self) -> Result<(), Violation> {
        let running = match self.ahead.take() {
            Some(running) => running,
            None => match self.engine.begin_step().map_err(|error| Violation::new(7, error.to_string()))? {
                Some(running) => self.check(ready(running), &[])?,
                None => {
                    let idle = self.book.waiting.is_empty() && self.book.running.is_empty();
                    ensure(idle, 13, || "nothing is planned though sequences wait".into())?;
                    let events = self.engine.take_events();
                    return self.after_step(&events);
                }
            },
        };
        if self.random.once_in(self.knobs.dropped_step_one_in) {
            return Ok(());
        }
        self.finish(running)
    }

    /// Checks the batch that was planned last, given the outcomes of the one before.
    fn check(&mut self, result: StepResult, before: &[SampleOutcome]) -> Result<Running, Violation> {
        let ids: Vec<SequenceId> = self.engine.sequences_in_flight().collect();
        let mut batch = self.engine.last_batch().expect("something was planned").clone();
        for carried in &batch.carried {
            let outcome = before.get(carried.sample as usize);
            let outcome = outcome.ok_or_else(|| Violation::new(11, "a token is carried from nowhere".into()))?;
            batch.tokens[carried.token as usize] = match outcome {
                SampleOutcome::Token(sampled) => sampled.token,
                SampleOutcome::NotFinite => 0,
            };
        }
        let expected = self.checks.check(&batch, &ids, &mut self.book, &self.knobs)?;
        self.cuts.count();
        let counters = &mut self.book.expected;
        counters.steps += 1;
        counters.last_step_tokens = batch.num_tokens() as u32;
        counters.last_step_sequences = batch.num_sequences() as u32;
        let words = [&batch.tokens, &batch.slot_mapping, &batch.context_lens, &batch.block_tables];
        self.hash = words.into_iter().flatten().fold(self.hash, |hash, word| hash.then(*word));
        Ok(Running { expected, result })
    }

    fn finish(&mut self, Running { expected, result }: Running) -> Result<(), Violation> {
        // Requests and aborts come while the step is in flight, too.
        self.arrivals()?;
        if self.random.once_in(self.knobs.abort_one_in) {
            self.abort_any();
        }
        match result {
            Ok(outcomes) => {
                expected.into_iter().for_each(|row| self.expect_row(row));
                self.book.committed_steps += 1;
                // The book knows the results already; the engine plans without them.
                if self.random.once_in(self.knobs.ahead_one_in)
                    && let Some(running) = self.engine.begin_ahead()
                {
                    self.ahead = Some(self.check(ready(running), &outcomes.samples)?);
                }
                let events = self.engine.finish_step(Ok(outcomes)).expect("this step still returns its events");
                self.after_step(&events)
            }
            Err(error) => {
                for id in self.book.live.clone() {
                    self.book.end_request(id, &FinishReason::Error(String::new()));
                }
                self.dead = true;
                let events = self.engine.finish_step(Err(error)).expect("the failed step still returns its events");
                self.after_step(&events)?;
                self.check_dead()
            }
        }
    }

    /// What a row's result does, unless its request was aborted meanwhile.
    fn expect_row(&mut self, row: ExpectedRow) {
        let entry = self.book.entries.get_mut(&row.id.request.0).expect("checked");
        let choice = &mut entry.choices[row.id.index as usize];
        if choice.place == Place::Over {
            return;
        }
        self.book.expected.computed_tokens += u64::from(row.context_len - choice.computed);
        choice.computed = row.context_len;
        if let Some(due) = row.prompt {
            self.book.expect_prompt(row.id, due);
        }
        let Some(outcome) = row.outcome else {
            let entry = &self.book.entries[&row.id.request.0];
            if entry.request.params.max_tokens == Some(0) && row.context_len == entry.len(row.id.index) {
                self.book.expect_computed(row.id);
            }
            return;
        };
        if row.id.index == 0 {
            self.book.bring_forth(row.id.request);
        }
        match outcome {
            Some(token) => self.book.expect_token(row.id, token),
            None => self.book.end_choice(row.id, FinishReason::Error(String::new())),
        }
    }

    fn after_step(&mut self, events: &[TokenEvent]) -> Result<(), Violation> {
        for event in events {
            self.book.take_event(event)?;
            let word = match &event.kind {
                EventKind::Scheduled { cached_tokens } => *cached_tokens,
                EventKind::Prompt(_) => 1,
                EventKind::Token { token, .. } => *token,
                EventKind::Finished { .. } => u32::MAX,
            };
            self.hash = self.hash.then(event.request.0 as u32).then(event.index).then(word);
        }
        let stats = self.engine.stats();
        if stats.steps.is_multiple_of(64) || self.book.live.is_empty() {
            self.engine.audit();
        }
        self.book.check_totals(&stats)
    }

    /// After a device error: nothing is accepted, nothing runs, and every step says why.
    fn check_dead(&mut self) -> Result<(), Violation> {
        ensure(self.engine.is_dead() && !self.engine.has_work(), 7, || "alive after a device error".into())?;
        let request = self.knobs.draw_request(&mut self.random);
        self.add(request)?;
        ensure(self.engine.begin_step().is_err(), 7, || "a dead engine runs a step".into())
    }

    /// Invariant 10: a request that ended by itself yields the same alone, in an engine with other limits.
    fn compare_alone(&mut self) -> Result<(), Violation> {
        let comparable = self.book.entries.values().rev().find(|entry| {
            let ended = !entry.aborted && entry.request.params.seed.is_some() && !self.dead;
            ended && entry.request.params.max_tokens.is_some()
        });
        let Some(entry) = comparable else { return Ok(()) };
        let config = EngineConfig {
            block_size: 16,
            max_num_seqs: 8,
            max_num_batched_tokens: 1000,
            enable_prefix_caching: false,
            enable_chunked_prefill: true,
            ..self.knobs.config.clone()
        };
        let mut executor = ScriptedExecutor::new(1000, 16, Script::Hash { vocab_size: config.vocab_size });
        if self.knobs.not_finite_one_in > 0 {
            executor = executor.with_not_finite(u64::from(self.knobs.not_finite_one_in));
        }
        let mut engine = Engine::new(config, executor).expect("valid");
        engine.add_request(entry.request.clone()).expect("accepted before");
        let mut outputs = vec![Vec::new(); entry.choices.len()];
        while engine.has_work() {
            for event in ready(engine.step()).expect("the device works") {
                if let EventKind::Token { token, .. } = event.kind {
                    outputs[event.index as usize].push(token);
                }
            }
        }
        let before = entry.choices.iter().map(|choice| &choice.output);
        ensure(outputs.iter().eq(before), 10, || "alone, a request yields other tokens".into())
    }
}

/// Whether the pool and the steps can ever take a request.
fn fits(request: &Request, knobs: &Knobs) -> bool {
    let (prompt, config) = (request.prompt.len() as u32, &knobs.config);
    let computed = request.params.max_tokens.map_or(prompt, |max_tokens| prompt + max_tokens.max(1) - 1);
    let in_pool = computed.div_ceil(config.block_size) <= knobs.kv_blocks;
    in_pool && (config.enable_chunked_prefill || prompt <= config.max_num_batched_tokens)
}

/// Runs a future that never waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("scripted steps do not wait"),
    }
}
