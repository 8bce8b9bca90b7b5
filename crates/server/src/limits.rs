//! Every limit of the server, set once at start and checked before anything is allocated.

use std::time::Duration;

use firebrick_engine::LOGPROBS_MAX;

/// What one request, connection or stream may take.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Size of a request body.
    pub body_bytes_max: usize,
    /// Time for a request's headers to arrive.
    pub header_timeout: Duration,
    /// Longest pause within a request body.
    pub body_idle_timeout: Duration,
    /// Time for a whole request body to arrive, however steadily it drips.
    pub body_timeout: Duration,
    /// Longest time that a client may take nothing of what is written to it.
    pub write_timeout: Duration,
    /// Open connections; further ones wait in the listener's backlog.
    pub connections_max: usize,
    /// Headers of one request.
    pub headers_max: usize,
    /// Bytes of a request's path and query.
    pub path_bytes_max: usize,
    /// Bytes of one header, its name included.
    pub header_line_bytes_max: usize,
    /// Bytes of path and headers together.
    pub head_bytes_max: usize,
    /// Bytes buffered for one connection before its headers are whole.
    pub connection_buffer_bytes: usize,
    /// Generating requests that are open at the same time; further ones are refused with 503.
    pub requests_max: usize,
    /// Tokens of prompts whose answers have not begun; a request that comes when there are so many is refused with 503.
    /// `None` is no limit.
    pub queued_tokens_max: Option<u64>,
    /// Time for a request from its arrival to its last token, waiting included; `None` is no limit.
    pub request_timeout: Option<Duration>,
    /// Silence after which an event stream gets a comment; `None` sends none.
    pub keep_alive_interval: Option<Duration>,
    /// Prompts in one completion request.
    pub prompts_max: usize,
    /// Choices of all prompts of one request together.
    pub sequences_max: usize,
    /// Messages in one chat request.
    pub messages_max: usize,
    /// Responses that are kept in memory for each API key.
    pub responses_max: usize,
    /// Bytes of all that are kept for a key, with their conversations.
    pub response_bytes_max: usize,
    /// Tools in one request, and calls in one message.
    pub tools_max: usize,
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
    /// `logprobs`, `top_logprobs` and `prompt_logprobs`; the engine takes no more than [`LOGPROBS_MAX`].
    pub logprobs_max: u32,
    /// Log-probabilities of all prompts' tokens together, alternatives counted.
    pub prompt_logprobs_max: usize,
    /// Time for a grammar to be compiled, waiting for a turn included.
    pub grammar_timeout: Duration,
    /// Entries of `bad_words`.
    pub bad_words_max: usize,
    /// Length of one bad word in bytes.
    pub bad_word_bytes_max: usize,
    /// Length of `cache_salt`.
    pub cache_salt_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 8 << 20,
            header_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(300),
            write_timeout: Duration::from_secs(60),
            connections_max: 10_000,
            headers_max: 64,
            path_bytes_max: 4 << 10,
            header_line_bytes_max: 8 << 10,
            head_bytes_max: 16 << 10,
            connection_buffer_bytes: 32 << 10,
            requests_max: usize::MAX,
            queued_tokens_max: None,
            request_timeout: None,
            keep_alive_interval: None,
            prompts_max: 1024,
            sequences_max: 1024,
            messages_max: 4096,
            responses_max: 1024,
            response_bytes_max: 64 << 20,
            tools_max: 128,
            choices_max: 128,
            stops_max: 16,
            stop_bytes_max: 256,
            stop_token_ids_max: 128,
            logit_bias_max: 1024,
            logprobs_max: LOGPROBS_MAX,
            prompt_logprobs_max: 1 << 18,
            grammar_timeout: Duration::from_secs(1),
            bad_words_max: 128,
            bad_word_bytes_max: 256,
            cache_salt_bytes_max: 256,
        }
    }
}
