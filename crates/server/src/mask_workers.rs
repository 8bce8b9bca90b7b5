//! Threads that compute which tokens may come next, while the device computes logits.
//!
//! They start with the first grammar, wait without using the processor, and end with the model.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};

/// More threads would not make a batch's masks any faster than the batch itself.
const WORKERS_MAX: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// The threads of one model. Dropping it ends them after their current job; what is queued is dropped.
pub(crate) struct MaskWorkers {
    queue: Arc<Queue>,
    started: Once,
}

impl Default for MaskWorkers {
    fn default() -> Self {
        Self { queue: Arc::default(), started: Once::new() }
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a job; `None` once there will be no more.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl MaskWorkers {
    /// Runs a job on one of the threads, in the order of arrival. There is at most one for each running sequence.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.started.call_once(|| self.start());
        self.queue.lock().jobs.push_back(Box::new(job));
        self.queue.wake.notify_one();
    }

    fn start(&self) {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..processors.min(WORKERS_MAX) {
            let queue = self.queue.clone();
            let work = move || {
                while let Some(job) = queue.next() {
                    // A job that panics drops what it owes, and its sequence ends with an error; the thread goes on.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            };
            let started = std::thread::Builder::new().name("mask".to_owned()).spawn(work);
            if let Err(error) = started {
                tracing::error!(%error, "a thread for token masks cannot be started");
            }
        }
    }
}

impl Drop for MaskWorkers {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.closed = true;
        state.jobs.clear();
        drop(state);
        self.queue.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn jobs_run_also_after_one_has_panicked() {
        let workers = MaskWorkers::default();
        let (sender, receiver) = mpsc::channel();
        for number in 0..100 {
            let sender = sender.clone();
            workers.run(move || {
                assert!(number % 10 != 3, "a planned panic");
                sender.send(number).expect("the test waits");
            });
        }
        let mut numbers: Vec<i32> = (0..90).map(|_| receiver.recv_timeout(PATIENCE).expect("every job runs")).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..100).filter(|number| number % 10 != 3).collect::<Vec<_>>());
    }

    #[test]
    fn dropping_the_workers_drops_what_is_queued() {
        let workers = MaskWorkers::default();
        let (sender, receiver) = mpsc::channel::<()>();
        for _ in 0..1000 {
            let sender = sender.clone();
            workers.run(move || {
                std::thread::sleep(Duration::from_millis(1));
                drop(sender);
            });
        }
        drop((workers, sender));
        assert_eq!(receiver.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}
