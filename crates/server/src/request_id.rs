//! Names of requests: unique and not guessable, but nothing depends on them.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes request ids from two randomly keyed hashes of a counter.
pub(crate) struct IdSource {
    keys: [RandomState; 2],
    counter: AtomicU64,
}

impl IdSource {
    pub fn new() -> Self {
        Self { keys: [RandomState::new(), RandomState::new()], counter: AtomicU64::new(0) }
    }

    /// 32 hexadecimal digits.
    pub fn next(&self) -> String {
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        let [high, low] = [&self.keys[0], &self.keys[1]].map(|key| key.hash_one(count));
        format!("{high:016x}{low:016x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ() {
        let source = IdSource::new();
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| source.next()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 32));
    }
}
