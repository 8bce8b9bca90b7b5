//! The simulation, as much of it as one CI run takes.
//!
//! `FIREBRICK_SIM_STEPS` sets the number of steps (10 million by default, shared by the tests of this file), and
//! `FIREBRICK_SIM_SEED` replays one seed.

#[path = "simulation/mod.rs"]
mod harness;

use harness::{Report, shrink, simulate};

/// Each test is a process of its own under nextest, so all cores are used.
const NUM_SHARDS: u64 = 4;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name} is {text:?}, expected a number")))
}

fn run_shard(shard: u64) {
    if let Some(seed) = number("FIREBRICK_SIM_SEED") {
        if shard == 0 {
            println!("seed {seed}: {:?}", check(seed));
        }
        return;
    }
    let steps = number("FIREBRICK_SIM_STEPS").unwrap_or(10_000_000) / NUM_SHARDS;
    let (mut total, mut seeds) = (Report::default(), 0);
    let start = std::time::Instant::now();
    while total.steps < steps {
        let report = check(shard + NUM_SHARDS * seeds);
        total.steps += report.steps;
        total.generated_tokens += report.generated_tokens;
        total.preemptions += report.preemptions;
        total.prefix_cache_hits += report.prefix_cache_hits;
        seeds += 1;
    }
    println!("{seeds} seeds, {total:?}, {:.0} steps/s", total.steps as f64 / start.elapsed().as_secs_f64());
}

fn check(seed: u64) -> Report {
    simulate(seed, &|_| ()).unwrap_or_else(|violation| {
        if let Some(shrunk) = shrink(seed, &|_| ()) {
            println!("{} events are enough: {shrunk:?}", shrunk.events);
        }
        panic!(
            "seed {seed}: invariant {} does not hold: {}\nreplay: FIREBRICK_SIM_SEED={seed} \
             cargo nextest run -p firebrick-engine --test simulation --no-capture shard_0",
            violation.invariant, violation.message
        )
    })
}

#[test]
fn every_invariant_holds_shard_0() {
    run_shard(0);
}

#[test]
fn every_invariant_holds_shard_1() {
    run_shard(1);
}

#[test]
fn every_invariant_holds_shard_2() {
    run_shard(2);
}

#[test]
fn every_invariant_holds_shard_3() {
    run_shard(3);
}
