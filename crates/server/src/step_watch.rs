//! What the engine did in each step, for those who watch (`/v1/trace`).
//!
//! The engine's thread makes a bounded snapshot only when a watcher has room for one, never waits for a watcher, and
//! does nothing at all while nobody watches. A watcher that is slow, or asked for fewer steps, misses some and is told
//! how many; once the engine has nothing to do, it is shown how things stand.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use firebrick_engine::{Engine, EngineSnapshot, Executor, RowSnapshot, SnapshotLimits};
use serde::Serialize;
use tokio::sync::mpsc;

/// What a snapshot shows at most: about 300 KB of JSON.
const LIMITS: SnapshotLimits = SnapshotLimits { blocks: 4096, sequences: 512, table_entries: 16 << 10 };
/// Watchers at the same time.
pub(crate) const WATCHERS_MAX: usize = 16;
/// Steps that a watcher may be behind before it misses some.
const STEPS_BEHIND_MAX: usize = 32;

/// One step.
#[derive(Serialize)]
pub(crate) struct WatchedStep {
    /// Seconds that it took; 0 where no step ran.
    seconds: f64,
    /// Milliseconds from the engine's start to the step's end.
    at_ms: u64,
    /// The rows of its batch.
    rows: Vec<RowSnapshot>,
    /// The engine's state after it.
    engine: EngineSnapshot,
    #[serde(skip)]
    json: OnceLock<Bytes>,
}

impl WatchedStep {
    /// The state now, after a step with these rows.
    pub fn new<E: Executor>(engine: &Engine<E>, rows: Vec<RowSnapshot>, begun: Instant, since: Instant) -> Self {
        let now = Instant::now();
        Self {
            seconds: if rows.is_empty() { 0.0 } else { now.duration_since(begun).as_secs_f64() },
            at_ms: now.duration_since(since).as_millis() as u64,
            rows,
            engine: engine.snapshot_within(LIMITS),
            json: OnceLock::new(),
        }
    }

    /// As JSON, which is written once for all watchers.
    pub fn json(&self) -> Bytes {
        self.json.get_or_init(|| serde_json::to_vec(self).expect("snapshots have no maps").into()).clone()
    }
}

/// A step on its way to a watcher.
pub(crate) struct Shown {
    /// Steps before it that this watcher was not shown.
    pub missed: u64,
    pub step: Arc<WatchedStep>,
}

/// A watcher's end of the line. Dropping it ends the watching.
pub(crate) struct Watching {
    pub steps: mpsc::Receiver<Shown>,
    missed: Arc<AtomicU64>,
}

impl Watching {
    /// Whether the engine has gone on without showing it to this watcher.
    pub fn is_behind(&self) -> bool {
        self.missed.load(Ordering::Acquire) > 0
    }
}

struct Watcher {
    steps: mpsc::Sender<Shown>,
    missed: Arc<AtomicU64>,
    interval: Duration,
    due: Instant,
}

impl Watcher {
    /// Whether it wants a step that has begun at this time.
    fn takes(&self, begun: Instant) -> bool {
        self.steps.capacity() > 0 && begun >= self.due
    }

    fn show(&mut self, step: &Arc<WatchedStep>, begun: Instant) {
        let missed = self.missed.swap(0, Ordering::AcqRel);
        // One that has just left is found before the next step.
        let _ = self.steps.try_send(Shown { missed, step: step.clone() });
        self.due = begun + self.interval;
    }

    fn miss(&self) {
        self.missed.fetch_add(1, Ordering::AcqRel);
    }
}

/// Everybody who watches an engine; lives on the engine's thread.
#[derive(Default)]
pub(crate) struct Watchers(Vec<Watcher>);

impl Watchers {
    /// A new watcher, which is shown the state at once; `None` when there are as many as there may be.
    pub fn add(&mut self, interval: Duration, now_stands: impl FnOnce() -> WatchedStep) -> Option<Watching> {
        self.0.retain(|watcher| !watcher.steps.is_closed());
        if self.0.len() >= WATCHERS_MAX {
            return None;
        }
        let (sender, receiver) = mpsc::channel(STEPS_BEHIND_MAX);
        let missed = Arc::<AtomicU64>::default();
        let now = Instant::now();
        let mut watcher = Watcher { steps: sender, missed: missed.clone(), interval, due: now };
        watcher.show(&Arc::new(now_stands()), now);
        watcher.due = now;
        self.0.push(watcher);
        Some(Watching { steps: receiver, missed })
    }

    /// Whether somebody has room for the step that begins now; if nobody has, all miss it.
    pub fn want_step(&mut self, begun: Instant) -> bool {
        if self.0.is_empty() {
            return false;
        }
        self.0.retain(|watcher| !watcher.steps.is_closed());
        let wanted = self.0.iter().any(|watcher| watcher.takes(begun));
        if !wanted {
            self.0.iter().for_each(Watcher::miss);
        }
        wanted
    }

    /// Shows a step to those who have room for it; the others miss it.
    pub fn show(&mut self, step: WatchedStep, begun: Instant) {
        let step = Arc::new(step);
        for watcher in &mut self.0 {
            if watcher.takes(begun) { watcher.show(&step, begun) } else { watcher.miss() }
        }
    }

    /// Before the engine waits for work: shows those who missed something how things stand, where they have room.
    pub fn catch_up(&mut self, now_stands: impl FnOnce() -> WatchedStep) {
        let behind = |watcher: &Watcher| watcher.missed.load(Ordering::Acquire) > 0 && watcher.steps.capacity() > 0;
        if !self.0.iter().any(behind) {
            return;
        }
        let (step, now) = (Arc::new(now_stands()), Instant::now());
        self.0.iter_mut().filter(|watcher| behind(watcher)).for_each(|watcher| watcher.show(&step, now));
    }
}

#[cfg(test)]
mod tests {
    use firebrick_engine::{EngineConfig, Request, SamplingParams, SchedulingPolicy, Script, ScriptedExecutor};

    use super::*;

    fn engine() -> Engine<ScriptedExecutor> {
        let config = EngineConfig {
            block_size: 4,
            max_model_len: 64,
            max_num_seqs: 2,
            max_num_batched_tokens: 16,
            max_waiting: 8,
            max_choices: 1,
            vocab_size: 100,
            enable_prefix_caching: false,
            enable_chunked_prefill: true,
            policy: SchedulingPolicy::Fcfs,
            seed: 1,
            hash_key: [1, 2],
        };
        let mut engine = Engine::new(config, ScriptedExecutor::new(16, 4, Script::Tokens(vec![7]))).expect("valid");
        let params = SamplingParams { max_tokens: Some(50), ..SamplingParams::default() };
        engine.add_request(Request::new(vec![1, 2, 3], params)).expect("accepted");
        engine
    }

    fn step(engine: &mut Engine<ScriptedExecutor>, watchers: &mut Watchers) {
        let begun = Instant::now();
        let wanted = watchers.want_step(begun);
        let running = engine.begin_step().expect("alive").expect("there is work");
        let rows = engine.rows_in_flight();
        let result = pollster::block_on(running);
        engine.finish_step(result).expect("the device works");
        if wanted {
            watchers.show(WatchedStep::new(engine, rows, begun, begun), begun);
        }
    }

    fn stands(engine: &Engine<ScriptedExecutor>) -> WatchedStep {
        WatchedStep::new(engine, Vec::new(), Instant::now(), Instant::now())
    }

    #[test]
    fn a_watcher_with_room_is_shown_every_step() {
        let (mut engine, mut watchers) = (engine(), Watchers::default());
        assert!(!watchers.want_step(Instant::now()), "nobody watches yet");
        let mut watching = watchers.add(Duration::ZERO, || stands(&engine)).expect("there is room");
        for _ in 0..5 {
            step(&mut engine, &mut watchers);
        }
        for expected in 0..6 {
            let shown = watching.steps.try_recv().expect("a step");
            assert_eq!((shown.missed, shown.step.engine.stats.steps), (0, expected));
            assert_eq!(shown.step.rows.len(), usize::from(expected > 0));
        }
        drop(watching);
        assert!(!watchers.want_step(Instant::now()), "the only one has left");
    }

    #[test]
    fn a_slow_watcher_misses_steps_is_told_and_catches_up() {
        let (mut engine, mut watchers) = (engine(), Watchers::default());
        let mut slow = watchers.add(Duration::ZERO, || stands(&engine)).expect("there is room");
        for _ in 0..40 {
            step(&mut engine, &mut watchers);
        }
        assert!(
            slow.is_behind() && !watchers.want_step(Instant::now()),
            "its line is full, so that no snapshot is made"
        );
        for _ in 0..STEPS_BEHIND_MAX {
            assert_eq!(slow.steps.try_recv().expect("a step").missed, 0);
        }
        watchers.catch_up(|| stands(&engine));
        let shown = slow.steps.try_recv().expect("the state");
        // Of 40 steps 31 stood in the line behind the first state; asking above counted as one more.
        assert_eq!((shown.missed, shown.step.engine.stats.steps), (10, 40));
        watchers.catch_up(|| panic!("nobody is behind"));
    }

    #[test]
    fn a_watcher_that_wants_few_steps_gets_few() {
        let (mut engine, mut watchers) = (engine(), Watchers::default());
        let mut watching = watchers.add(Duration::from_secs(3600), || stands(&engine)).expect("there is room");
        for _ in 0..5 {
            step(&mut engine, &mut watchers);
        }
        let shown: Vec<u64> =
            std::iter::from_fn(|| watching.steps.try_recv().ok()).map(|shown| shown.step.engine.stats.steps).collect();
        assert_eq!(shown, [0, 1]);
        assert!(watching.is_behind());
    }

    #[test]
    fn there_is_room_for_so_many_watchers() {
        let (engine, mut watchers) = (engine(), Watchers::default());
        let mut all: Vec<Watching> =
            std::iter::from_fn(|| watchers.add(Duration::ZERO, || stands(&engine))).take(100).collect();
        assert_eq!(all.len(), WATCHERS_MAX);
        all.pop();
        assert!(watchers.add(Duration::ZERO, || stands(&engine)).is_some(), "one has left");
    }
}
