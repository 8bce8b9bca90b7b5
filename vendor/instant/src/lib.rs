//! The clock that the grammar library asks for in a browser, as the rest of the program has it.
//!
//! The published crate expects the page to define a function `now`, or brings further browser bindings along; both are
//! unnecessary beside `web-time`, which Burn uses.

pub use web_time::{Duration, Instant, SystemTime};
