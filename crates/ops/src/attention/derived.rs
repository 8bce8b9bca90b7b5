//! What kernels make of a batch's lengths once, for all layers of its step.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Made by the first layer that asks, kept for the others of the same pass. It is forgotten where it could be out of date: once
/// this thread overwrites a tensor in place, and in each run of a computation that is being recorded, which must contain it.
#[derive(Clone, Default)]
pub struct Derived {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    pass: u64,
    values: Vec<(Key, Arc<dyn Any + Send + Sync>)>,
}

/// What tells apart the values that one batch has.
type Key = [usize; 4];

thread_local! {
    /// No number is that of two threads.
    static PASS: Cell<u64> = Cell::new(new_pass());
}

fn new_pass() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// Forgets what this thread has derived so far, of every batch.
pub(crate) fn forget_derived() {
    PASS.set(new_pass());
}

impl Derived {
    /// What `make` has made for `key`, which says all that it follows from besides the batch's tensors.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))] // other kernels need nothing of the kind
    pub(crate) fn get_or_make<T: Clone + Send + Sync + 'static>(&self, key: Key, make: impl FnOnce() -> T) -> T {
        let mut kept = self.kept.lock().expect("making a value does not panic while it is held");
        if kept.pass != PASS.get() {
            *kept = Kept { pass: PASS.get(), values: Vec::new() };
        }
        let found = kept.values.iter().find(|(other, _)| *other == key);
        if let Some(value) = found.and_then(|(_, value)| value.downcast_ref::<T>()) {
            return value.clone();
        }
        let value = make();
        kept.values.push((key, Arc::new(value.clone())));
        value
    }
}

impl fmt::Debug for Derived {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("Derived")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_made_once_for_each_key_and_anew_after_tensors_were_overwritten() {
        let derived = Derived::default();
        let again = derived.clone();
        assert_eq!(derived.get_or_make([1, 0, 0, 0], || 10), 10);
        assert_eq!(again.get_or_make([1, 0, 0, 0], || 20), 10);
        assert_eq!(derived.get_or_make([2, 0, 0, 0], || 30), 30);
        forget_derived();
        assert_eq!(derived.get_or_make([1, 0, 0, 0], || 40), 40);
    }

    #[test]
    fn another_thread_makes_its_own() {
        let derived = Derived::default();
        assert_eq!(derived.get_or_make([1, 0, 0, 0], || 10), 10);
        let of_other = std::thread::scope(|scope| scope.spawn(|| derived.get_or_make([1, 0, 0, 0], || 20)).join());
        assert_eq!(of_other.expect("the thread makes a value"), 20);
    }
}
