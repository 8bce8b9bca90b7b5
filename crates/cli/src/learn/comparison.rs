//! The same requests in the same memory with contiguous and with paged keys and values: the real scheduler with a
//! scripted model, since only the bookkeeping differs.

use firebrick_engine::{Engine, EngineConfig, Request, SamplingParams, SchedulingPolicy, Script, ScriptedExecutor};

/// What a way of keeping keys and values achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Sequences that ran at once, at most.
    pub running_max: u32,
    /// Steps until all had ended.
    pub steps: u64,
    /// Slots that were taken and never used, when most sequences ran.
    pub slots_wasted: u32,
    /// Slots that were taken then.
    pub slots_taken: u32,
}

/// Slots of the memory.
const SLOTS: u32 = 2048;
/// The longest request that must be possible.
const LONGEST: u32 = 512;

/// Twelve requests of different lengths, in blocks of `block_size`. A block as long as the longest request is
/// contiguous pre-allocation.
pub fn occupy(block_size: u32) -> Occupancy {
    let config = EngineConfig {
        block_size,
        max_model_len: LONGEST,
        max_num_seqs: 16,
        max_num_batched_tokens: 512,
        max_waiting: 64,
        max_choices: 1,
        vocab_size: 1000,
        enable_prefix_caching: false,
        enable_chunked_prefill: true,
        policy: SchedulingPolicy::Fcfs,
        seed: 1,
        hash_key: [0, 0],
    };
    // The scheduler keeps a block back for the growth of running sequences. A contiguous sequence never grows: the
    // comparison gives it that block on top.
    let num_blocks = SLOTS / block_size + u32::from(block_size == LONGEST);
    let executor = ScriptedExecutor::new(num_blocks, block_size, Script::Hash { vocab_size: 1000 });
    let mut engine = Engine::new(config, executor).expect("the sizes are valid");
    for number in 0..12 {
        let params = SamplingParams { max_tokens: Some(20 + 10 * (number % 5)), ..SamplingParams::default() };
        let prompt = (0..20 + 15 * (number % 4)).map(|token| (token + 31 * number) % 1000).collect();
        engine.add_request(Request::new(prompt, params)).expect("every request fits the pool");
    }
    let mut best = Occupancy { running_max: 0, steps: 0, slots_wasted: 0, slots_taken: 0 };
    while engine.has_work() {
        pollster::block_on(engine.step()).expect("a scripted device does not fail");
        let snapshot = engine.snapshot();
        if snapshot.stats.running > best.running_max {
            best.running_max = snapshot.stats.running;
            best.slots_taken = snapshot.stats.blocks_used * block_size;
            let used: u32 = snapshot.sequences.iter().map(|sequence| sequence.computed_tokens).sum();
            best.slots_wasted = best.slots_taken - used;
        }
        best.steps = snapshot.stats.steps;
    }
    best
}

/// Room for the longest request set aside for each.
pub fn contiguous() -> Occupancy {
    occupy(LONGEST)
}

/// Slots of the memory that is compared.
pub fn slots() -> u32 {
    SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paging_wastes_less_than_a_block_a_sequence() {
        let (paged, whole) = (occupy(16), contiguous());
        assert!(paged.slots_wasted <= 16 * paged.running_max);
        assert!(paged.running_max > 2 * whole.running_max && paged.steps < whole.steps);
        assert_eq!(whole.running_max, SLOTS / LONGEST);
    }
}
