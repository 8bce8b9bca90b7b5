//! Identifiers that must not be confused with each other.

use serde::{Deserialize, Serialize};

/// A vocabulary index. A plain alias because it goes straight into tensors.
pub type TokenId = u32;

/// One client request, numbered by the engine in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// One of the `n` sequences generated for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SequenceId {
    /// The request that the sequence answers.
    pub request: RequestId,
    /// Its number among the request's `n` choices, from 0.
    pub index: u32,
}

/// A fixed run of KV slots in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockId(pub u32);
