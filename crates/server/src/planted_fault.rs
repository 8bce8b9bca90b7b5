//! Faults that tests of the real process ask a debug build for; a release build has none of them.
//!
//! `FIREBRICK_PLANTED_FAULT=KIND@NUMBER`: `panic@9` panics in the engine's ninth step, `hang@9` never ends it, `spin@9`
//! never ends it and computes for ever, `slow@9` computes for eight seconds before it, `fail@9` fails it as a lost device
//! does, `handler@9` panics while the ninth generating request is read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The fault of this process, if one was asked for, and how near it is.
pub(crate) struct PlantedFault {
    kind: Kind,
    at: u64,
    seen: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Panic,
    Hang,
    Spin,
    Slow,
    Fail,
    Handler,
}

impl PlantedFault {
    /// Reads the environment, in debug builds.
    pub fn from_environment() -> Self {
        let text = if cfg!(debug_assertions) { std::env::var("FIREBRICK_PLANTED_FAULT").ok() } else { None };
        let (kind, at) = text.as_deref().and_then(parse).unwrap_or((Kind::None, 0));
        Self { kind, at, seen: AtomicU64::new(0) }
    }

    /// Called before every step of the engine; an error is to be taken for the device's.
    pub fn before_step(&self) -> Result<(), String> {
        if !self.is_due(&[Kind::Panic, Kind::Hang, Kind::Spin, Kind::Slow, Kind::Fail]) {
            return Ok(());
        }
        match self.kind {
            Kind::Panic => panic!("a planted panic"),
            Kind::Hang => loop {
                std::thread::park();
            },
            Kind::Spin => compute_for(Duration::MAX),
            Kind::Slow => compute_for(Duration::from_secs(8)),
            _ => return Err("a planted failure of the device".to_owned()),
        }
        Ok(())
    }

    /// Called when a generating request has come.
    pub fn before_request(&self) {
        assert!(!self.is_due(&[Kind::Handler]), "a planted panic");
    }

    fn is_due(&self, kinds: &[Kind]) -> bool {
        kinds.contains(&self.kind) && self.seen.fetch_add(1, Ordering::Relaxed) + 1 == self.at
    }
}

fn compute_for(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

fn parse(text: &str) -> Option<(Kind, u64)> {
    let (kind, at) = text.split_once('@')?;
    let kind = match kind {
        "panic" => Kind::Panic,
        "hang" => Kind::Hang,
        "spin" => Kind::Spin,
        "slow" => Kind::Slow,
        "fail" => Kind::Fail,
        "handler" => Kind::Handler,
        _ => return None,
    };
    Some((kind, at.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_once_and_only_where_it_was_planted() {
        let fault = PlantedFault { kind: Kind::Fail, at: 2, seen: AtomicU64::new(0) };
        fault.before_request();
        assert_eq!(
            [fault.before_step().is_err(), fault.before_step().is_err(), fault.before_step().is_err()],
            [false, true, false]
        );
    }

    #[test]
    fn what_is_not_a_fault_plants_none() {
        assert!(["", "panic", "panic@", "panic@x", "quake@1"].iter().all(|text| parse(text).is_none()));
    }
}
