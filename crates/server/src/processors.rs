//! Threads for what computes for long (templates, tokenizers), away from those that do I/O: as many as there are
//! processors.
//!
//! Work keeps its turn until it has ended, also when its client has left meanwhile, so that there is never more of it
//! than turns; work whose client has left before its turn does not begin.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::{ApiError, ErrorKind};

/// What work is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A request that will reach the engine.
    Generation,
    /// Tokens or texts alone. It takes half of the turns at most, so that generation never waits behind a flood of it.
    Counting,
}

/// Turns of work that computes.
pub(crate) struct Processors {
    turns: Arc<Semaphore>,
    counting: Arc<Semaphore>,
}

impl Processors {
    /// As many turns as there are processors.
    pub fn new() -> Self {
        Self::with(std::thread::available_parallelism().map_or(1, usize::from))
    }

    fn with(num_turns: usize) -> Self {
        let counting = (num_turns / 2).max(1);
        Self { turns: Arc::new(Semaphore::new(num_turns)), counting: Arc::new(Semaphore::new(counting)) }
    }

    /// Runs `work` on a thread of its own when it is its turn. A panic ends this request only: it is a 500.
    pub async fn run<T: Send + 'static>(
        &self,
        purpose: Purpose,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let internal = || ApiError::new(ErrorKind::Internal, "internal error");
        let turn = self.turn(purpose).await.map_err(|_| internal())?;
        let (reply, answer) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            // Dropped at the end of the work and not with the future that waits for it.
            let _turn = turn;
            if !reply.is_closed() {
                // A client that left meanwhile wants no answer.
                let _ = reply.send(work());
            }
        });
        answer.await.map_err(|_| internal())?
    }

    async fn turn(
        &self,
        purpose: Purpose,
    ) -> Result<(Option<OwnedSemaphorePermit>, OwnedSemaphorePermit), AcquireError> {
        // Turns are given in the order in which they are asked for, so work that only counts asks late.
        let counting = match purpose {
            Purpose::Generation => None,
            Purpose::Counting => Some(self.counting.clone().acquire_owned().await?),
        };
        Ok((counting, self.turns.clone().acquire_owned().await?))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Work that ends when it is told to, and says that it has begun.
    fn held(begun: &Arc<AtomicUsize>) -> (mpsc::Sender<()>, impl FnOnce() -> Result<(), ApiError> + Send + 'static) {
        let (release, released) = mpsc::channel();
        let begun = begun.clone();
        let work = move || {
            begun.fetch_add(1, Ordering::AcqRel);
            let _ = released.recv();
            Ok(())
        };
        (release, work)
    }

    async fn wait_for(begun: &AtomicUsize, count: usize) {
        while begun.load(Ordering::Acquire) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn work_whose_client_left_keeps_its_turn_and_what_waits_does_not_begin() {
        let processors = Arc::new(Processors::with(1));
        let begun = Arc::new(AtomicUsize::new(0));
        let start = |work| {
            let processors = processors.clone();
            tokio::spawn(async move { processors.run(Purpose::Generation, work).await })
        };
        let (release, work) = held(&begun);
        let first = start(work);
        wait_for(&begun, 1).await;
        first.abort();
        assert!(first.await.expect_err("aborted").is_cancelled());
        assert_eq!(processors.turns.available_permits(), 0, "the work still computes");
        let (_second_release, work) = held(&begun);
        let second = start(work);
        tokio::time::sleep(Duration::from_millis(20)).await;
        second.abort();
        release.send(()).expect("the work waits");
        assert_eq!(processors.run(Purpose::Generation, || Ok(7)).await, Ok(7));
        assert_eq!(begun.load(Ordering::Acquire), 1);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_gives_the_turn_back() {
        let processors = Processors::with(1);
        let panicked: Result<(), _> = processors.run(Purpose::Counting, || panic!("planned")).await;
        assert_eq!(panicked.expect_err("a panic").kind, ErrorKind::Internal);
        assert_eq!(processors.run(Purpose::Counting, || Ok(1)).await, Ok(1));
    }

    #[tokio::test]
    async fn counting_leaves_turns_to_generation() {
        let processors = Arc::new(Processors::with(4));
        let begun = Arc::new(AtomicUsize::new(0));
        let mut releases = Vec::new();
        for _ in 0..10 {
            let (release, work) = held(&begun);
            releases.push(release);
            let processors = processors.clone();
            tokio::spawn(async move { processors.run(Purpose::Counting, work).await });
        }
        wait_for(&begun, 2).await;
        let generated = processors.run(Purpose::Generation, || Ok(()));
        let generated = tokio::time::timeout(Duration::from_secs(10), generated).await;
        assert_eq!(generated.expect("a turn of its own"), Ok(()));
        assert_eq!(begun.load(Ordering::Acquire), 2);
    }
}
