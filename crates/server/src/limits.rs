//! Every limit of the server, set once at start and checked before anything is allocated.

use std::time::Duration;

/// What one request, connection or stream may take.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Size of a request body.
    pub body_bytes_max: usize,
    /// Time for a request's headers to arrive.
    pub header_timeout: Duration,
    /// Longest pause within a request body.
    pub body_idle_timeout: Duration,
    /// Longest time that a client may take nothing of what is written to it.
    pub write_timeout: Duration,
    /// Open connections; further ones wait in the listener's backlog.
    pub connections_max: usize,
    /// Headers of one request.
    pub headers_max: usize,
    /// Bytes buffered for one connection before its headers are whole.
    pub connection_buffer_bytes: usize,
    /// Prompts in one completion request.
    pub prompts_max: usize,
    /// Choices of all prompts of one request together.
    pub sequences_max: usize,
    /// Messages in one chat request.
    pub messages_max: usize,
    /// Choices (`n`) of one prompt.
    pub choices_max: u32,
    /// Stop strings.
    pub stops_max: usize,
    /// Length of one stop string.
    pub stop_bytes_max: usize,
    /// Stop token ids.
    pub stop_token_ids_max: usize,
    /// Entries of `logit_bias`.
    pub logit_bias_max: usize,
    /// `logprobs` and `top_logprobs`.
    pub logprobs_max: u32,
    /// Length of `cache_salt`.
    pub cache_salt_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 8 << 20,
            header_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            connections_max: 10_000,
            headers_max: 64,
            connection_buffer_bytes: 32 << 10,
            prompts_max: 1024,
            sequences_max: 1024,
            messages_max: 4096,
            choices_max: 128,
            stops_max: 16,
            stop_bytes_max: 256,
            stop_token_ids_max: 128,
            logit_bias_max: 1024,
            logprobs_max: 20,
            cache_salt_bytes_max: 256,
        }
    }
}
