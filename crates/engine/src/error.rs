//! Expected trouble, as values that carry the facts.

use thiserror::Error;

/// A request that is refused at the door; nothing was allocated for it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Rejected {
    /// The prompt has no tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// Prompt plus requested tokens exceed the model's length.
    #[error("prompt has {prompt} tokens and {max_tokens} more were requested, the model allows {max_model_len} in all")]
    TooLong {
        /// Prompt tokens.
        prompt: u32,
        /// Requested tokens, at least 1.
        max_tokens: u32,
        /// The model's length.
        max_model_len: u32,
    },
    /// The request could never fit the block pool, even alone.
    #[error("request needs {needed} KV blocks, the pool has {total}")]
    LargerThanPool {
        /// Blocks needed at its longest.
        needed: u32,
        /// Blocks in the pool.
        total: u32,
    },
    /// Without chunked prefill a prompt must fit one step.
    #[error("prompt has {prompt} tokens, one step takes {max_num_batched_tokens} and chunked prefill is off")]
    LargerThanStep {
        /// Prompt tokens.
        prompt: u32,
        /// The step's budget.
        max_num_batched_tokens: u32,
    },
    /// A token id outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: u32,
    },
    /// `n` is 0 or above the limit.
    #[error("n is {n}, allowed are 1 to {max}")]
    Choices {
        /// The requested number.
        n: u32,
        /// The limit.
        max: u32,
    },
    /// A sampling parameter is out of range or not finite.
    #[error("{name} is {value}, allowed is {allowed}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// Its value as text.
        value: String,
        /// The allowed range as text.
        allowed: &'static str,
    },
    /// The waiting queue is full.
    #[error("{waiting} requests are waiting, which is the limit")]
    QueueFull {
        /// Requests waiting.
        waiting: u32,
    },
    /// The engine is draining or dead.
    #[error("the engine accepts no new requests")]
    NotAccepting,
}

/// A configuration that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{name} is {value}: {reason}")]
pub struct ConfigError {
    /// The field.
    pub name: &'static str,
    /// Its value as text.
    pub value: String,
    /// Why it cannot work, and what would.
    pub reason: String,
}

/// The executor could not run a batch.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("device error: {0}")]
pub struct ExecuteError(pub String);

/// The engine cannot go on; every running request has ended with an error event.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EngineError {
    /// The device failed.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
}
