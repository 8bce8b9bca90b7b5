//! Panics as a process sees them: one that the code under test catches is no finding, one that leaves it is.

/// libFuzzer's own hook ends the process at any panic, also one that is caught. What leaves a target still ends it.
pub fn only_what_is_not_caught_counts() {
    std::panic::set_hook(Box::new(|info| eprintln!("{info}")));
}
