//! Whether an engine moves, seen from outside its thread.
//!
//! An engine beats after every step, and owes no beat while it has nothing to do. A beat that is late means that a step
//! hangs, or that it is long: a long prompt on a slow or busy processor takes more than the seconds after which an
//! engine counts as dead. The two are told apart by what the process does. A late step is believed only while a thread
//! that could be computing it is running or waiting for a processor, and no longer than its number of tokens can
//! explain. Where the system does not show its threads (it is Linux that does), and where the device computes while
//! every thread waits, a late beat is a dead engine.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a token of a late step may take. A processor that is slower serves nobody.
const TOKEN_TIME_MAX: Duration = Duration::from_millis(100);
/// Threads that compute no steps: those of the runtime, and those that the server gives these names.
const OTHER_THREADS: [&str; 6] = ["tokio-", "traces", "mask", "grammar", "interrupts", "recording"];

/// An engine's sign of life.
pub(crate) struct Heartbeat {
    started: Instant,
    /// Milliseconds from the start to the last beat.
    beat_ms: AtomicU64,
    /// The engine waits for work, so that no beat is due.
    idle: AtomicBool,
    /// Tokens that the step under way has at most.
    step_tokens_max: AtomicU32,
}

impl Heartbeat {
    /// Counts time from this moment.
    pub fn new(started: Instant) -> Self {
        Self { started, beat_ms: AtomicU64::new(0), idle: AtomicBool::new(false), step_tokens_max: AtomicU32::new(0) }
    }

    /// The engine moves.
    pub fn beat(&self) {
        self.beat_ms.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// A step of at most so many tokens begins.
    pub fn step_begins(&self, tokens_max: u32) {
        self.step_tokens_max.store(tokens_max, Ordering::Relaxed);
    }

    /// The engine begins or ends to wait for work.
    pub fn set_idle(&self, idle: bool) {
        if !idle {
            self.beat();
        }
        self.idle.store(idle, Ordering::Release);
    }

    /// Whether the engine has beaten within `age_max`, owes no beat, or computes a long step.
    pub fn is_alive(&self, age_max: Duration) -> bool {
        let beat = Duration::from_millis(self.beat_ms.load(Ordering::Relaxed));
        let age = self.started.elapsed().saturating_sub(beat);
        let step_max = age_max + TOKEN_TIME_MAX * self.step_tokens_max.load(Ordering::Relaxed);
        self.idle.load(Ordering::Acquire) || age <= age_max || age <= step_max && is_computing()
    }
}

/// Whether a thread that may compute steps is running or waits for a processor only. While a step is computed there is
/// one at every moment, because whoever wakes another thread makes it runnable before going to sleep.
fn is_computing() -> bool {
    let own = fs::read_link("/proc/thread-self").ok();
    let own = own.as_ref().and_then(|path| path.file_name());
    let main = std::process::id().to_string();
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return false };
    threads
        .flatten()
        .filter(|thread| Some(thread.file_name().as_os_str()) != own && thread.file_name() != *main)
        .any(|thread| fs::read_to_string(thread.path().join("stat")).is_ok_and(|stat| is_computing_thread(&stat)))
}

/// Reads `NUMBER (NAME) STATE …`; a name may hold anything.
fn is_computing_thread(stat: &str) -> bool {
    let Some((begin, rest)) = stat.rsplit_once(") ") else { return false };
    let name = begin.split_once('(').map_or("", |(_, name)| name);
    rest.starts_with('R') && !OTHER_THREADS.iter().any(|other| name.starts_with(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_told_apart_by_state_and_name() {
        for (stat, computes) in [
            ("7 (engine) R 1 7", true),
            ("7 (fire) R brick) R 1", true),
            ("7 (engine) S 1 7", false),
            ("7 (engine) D 1 7", false),
            ("7 (tokio-rt-worker) R 1 7", false),
            ("7 (mask) R 1 7", false),
            ("nonsense", false),
        ] {
            assert_eq!(is_computing_thread(stat), computes, "{stat}");
        }
    }

    /// A heart whose last beat was so long ago, in a step of so many tokens.
    fn late(age: Duration, tokens: u32) -> Heartbeat {
        let started = Instant::now().checked_sub(age).expect("the machine has run for a minute");
        let heartbeat = Heartbeat::new(started);
        heartbeat.step_begins(tokens);
        heartbeat
    }

    #[test]
    fn an_idle_engine_owes_no_beat_and_a_late_one_is_dead() {
        let age_max = Duration::from_secs(5);
        let heartbeat = late(Duration::from_secs(20), 1);
        assert!(!heartbeat.is_alive(age_max), "a step of one token does not take so long, whatever it computes");
        heartbeat.set_idle(true);
        assert!(heartbeat.is_alive(age_max));
        heartbeat.set_idle(false);
        assert!(heartbeat.is_alive(age_max), "the end of waiting is a beat");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_long_step_is_believed_while_a_thread_computes_and_its_tokens_explain_it() {
        let (running, age_max) = (AtomicBool::new(true), Duration::from_secs(5));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while running.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            // It may not have begun yet.
            let deadline = Instant::now() + Duration::from_secs(10);
            let long = late(Duration::from_secs(20), 2000);
            while !long.is_alive(age_max) {
                assert!(Instant::now() < deadline, "a computing thread is not seen");
            }
            assert!(!late(Duration::from_secs(20), 100).is_alive(age_max), "100 tokens explain 10 s more");
            running.store(false, Ordering::Relaxed);
        });
    }
}
