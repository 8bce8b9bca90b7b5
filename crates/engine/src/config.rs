//! Every limit of the engine, set once at start.

use serde::{Deserialize, Serialize};

use crate::ConfigError;

/// Which waiting request runs first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchedulingPolicy {
    /// In order of arrival.
    Fcfs,
    /// Lower `priority` first, then order of arrival.
    Priority,
}

/// Limits and policies. The number of blocks comes from the executor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineConfig {
    /// Tokens per KV block.
    pub block_size: u32,
    /// Prompt and output together, at most.
    pub max_model_len: u32,
    /// Sequences in one batch, at most.
    pub max_num_seqs: u32,
    /// Tokens in one batch, at most.
    pub max_num_batched_tokens: u32,
    /// Requests waiting for their first step, at most; more are rejected.
    pub max_waiting: u32,
    /// Choices per request (`n`), at most.
    pub max_choices: u32,
    /// Vocabulary size; tokens at or above it are rejected.
    pub vocab_size: u32,
    /// Share blocks between requests with equal prefixes.
    pub enable_prefix_caching: bool,
    /// Cut prompts larger than the step's budget into several steps. Off: a prompt must fit a step.
    pub enable_chunked_prefill: bool,
    /// Which waiting request runs first.
    pub policy: SchedulingPolicy,
    /// Seeds of requests that bring none derive from this.
    pub seed: u64,
    /// Key of the prefix cache's hash, random per process, so that no client can construct a collision.
    ///
    /// Left out of recordings: decisions do not depend on it, and it is a secret.
    #[serde(skip)]
    pub hash_key: [u64; 2],
}

impl EngineConfig {
    /// Refuses a configuration that could serve nothing or overflow a slot number.
    pub(crate) fn check(&self, num_blocks: u32) -> Result<(), ConfigError> {
        for (name, value) in [
            ("block_size", self.block_size),
            ("max_num_seqs", self.max_num_seqs),
            ("max_waiting", self.max_waiting),
            ("max_choices", self.max_choices),
            ("vocab_size", self.vocab_size),
            ("KV blocks", num_blocks),
        ] {
            require(value > 0, name, value, "must be at least 1")?;
        }
        require(self.max_model_len >= 2, "max_model_len", self.max_model_len, "must hold a prompt and a token")?;
        let budget = self.max_num_batched_tokens;
        let reason = "must be at least max_num_seqs, so that every running sequence advances in every step";
        require(budget >= self.max_num_seqs, "max_num_batched_tokens", budget, reason)?;
        let slots = num_blocks.checked_mul(self.block_size);
        let reason = "must give fewer than 2^32 slots with this block size";
        require(slots.is_some_and(|slots| slots < u32::MAX), "KV blocks", num_blocks, reason)
    }
}

fn require(holds: bool, name: &'static str, value: u32, reason: &str) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError { name, value: value.to_string(), reason: reason.into() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> EngineConfig {
        EngineConfig {
            block_size: 16,
            max_model_len: 100,
            max_num_seqs: 8,
            max_num_batched_tokens: 100,
            max_waiting: 10,
            max_choices: 4,
            vocab_size: 1000,
            enable_prefix_caching: true,
            enable_chunked_prefill: true,
            policy: SchedulingPolicy::Fcfs,
            seed: 0,
            hash_key: [0, 0],
        }
    }

    #[test]
    fn a_budget_below_the_number_of_sequences_is_refused() {
        let config = EngineConfig { max_num_batched_tokens: 7, ..config() };
        let error = config.check(10).expect_err("too small");
        assert_eq!((error.name, error.value.as_str()), ("max_num_batched_tokens", "7"));
    }

    #[test]
    fn slot_numbers_do_not_overflow() {
        assert_eq!(config().check(1 << 27), Ok(()));
        assert!(config().check(1 << 28).is_err());
        assert!(config().check(0).is_err());
    }
}
