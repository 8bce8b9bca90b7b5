//! What the engine has done and is doing, in numbers.

use serde::{Deserialize, Serialize};

/// A snapshot; counters count from the engine's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineStats {
    /// Sequences that hold blocks and advance in every step.
    pub running: u32,
    /// Sequences that wait for their first step, for blocks after a preemption, or for a sibling's prompt.
    pub waiting: u32,
    /// Blocks in the pool.
    pub blocks_total: u32,
    /// Blocks that sequences use.
    pub blocks_used: u32,
    /// Blocks that no sequence uses but the prefix cache keeps until their memory is needed.
    pub blocks_cached: u32,
    /// Steps handed to the executor.
    pub steps: u64,
    /// Prompt tokens that were looked up in the prefix cache, once per sequence.
    pub prefix_cache_queries: u64,
    /// Those of them that were found.
    pub prefix_cache_hits: u64,
    /// Times a running sequence lost its blocks and had to begin again.
    pub preemptions: u64,
    /// Prompt tokens of requests that have started; a request's choices share one prompt.
    pub prompt_tokens: u64,
    /// Tokens sampled, stop tokens included.
    pub generated_tokens: u64,
    /// Tokens whose keys and values were computed, recomputed ones included.
    pub computed_tokens: u64,
    /// Sequences that ended.
    pub finished: FinishedStats,
    /// Tokens in the batch of the last step that was planned, which may not have run yet.
    pub last_step_tokens: u32,
    /// Sequences in the same batch.
    pub last_step_sequences: u32,
}

/// Sequences that ended, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedStats {
    /// At an end-of-sequence or stop token.
    pub stop: u64,
    /// At `max_tokens` or the model's length.
    pub length: u64,
    /// Because the client asked or left.
    pub abort: u64,
    /// Because the model's output or the device failed.
    pub error: u64,
}

impl FinishedStats {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.stop + self.length + self.abort + self.error
    }
}
