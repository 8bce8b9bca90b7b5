//! What the engine thread counts about the requests it serves.

use std::sync::atomic::{AtomicU64, Ordering};

use firebrick_engine::FinishReason;

use crate::histogram::{self, Histogram};

/// How a sequence ended: the closed set of values of the label `finished_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A stop token or stop string.
    Stop,
    /// `max_tokens` or the model's length.
    Length,
    /// The client left or fell too far behind.
    Abort,
    /// The model or the device failed.
    Error,
}

impl Ended {
    /// Every member, in the order of the counters.
    pub const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    /// The label's value.
    pub fn label(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

impl From<&FinishReason> for Ended {
    fn from(reason: &FinishReason) -> Self {
        match reason {
            FinishReason::Stop(_) => Self::Stop,
            FinishReason::Length => Self::Length,
            FinishReason::Abort => Self::Abort,
            FinishReason::Error(_) | FinishReason::Impossible => Self::Error,
        }
    }
}

/// Why a request was refused: the closed set of values of the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The waiting queue or the inbox was full.
    QueueFull,
    /// The request could not be served at all.
    Invalid,
}

impl Refused {
    /// Every member, in the order of the counters.
    pub const ALL: [Self; 2] = [Self::QueueFull, Self::Invalid];

    /// The label's value.
    pub fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Invalid => "invalid",
        }
    }
}

/// Counters and histograms; written by the engine thread, read by `/metrics`.
pub struct EngineMetrics {
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) prompt_tokens_cached: AtomicU64,
    pub(crate) generation_tokens: AtomicU64,
    pub(crate) ended: [AtomicU64; Ended::ALL.len()],
    pub(crate) refused: [AtomicU64; Refused::ALL.len()],
    pub(crate) slow_readers: AtomicU64,
    pub(crate) corrupted: AtomicU64,
    pub(crate) first_token_seconds: Histogram,
    pub(crate) inter_token_seconds: Histogram,
    pub(crate) time_per_output_token_seconds: Histogram,
    pub(crate) e2e_seconds: Histogram,
    pub(crate) queue_seconds: Histogram,
    pub(crate) inference_seconds: Histogram,
    pub(crate) prefill_seconds: Histogram,
    pub(crate) decode_seconds: Histogram,
    pub(crate) request_prompt_tokens: Histogram,
    pub(crate) request_generation_tokens: Histogram,
    pub(crate) request_max_generation_tokens: Histogram,
    pub(crate) prefill_kv_computed_tokens: Histogram,
    pub(crate) num_preemptions: Histogram,
    pub(crate) params_n: Histogram,
    pub(crate) params_max_tokens: Histogram,
    pub(crate) step_tokens: Histogram,
}

impl EngineMetrics {
    /// Empty metrics; token counts have buckets up to `max_model_len`.
    pub fn new(max_model_len: u32) -> Self {
        let request = || Histogram::new(histogram::REQUEST_SECONDS);
        let tokens = || Histogram::new(histogram::token_counts(max_model_len));
        Self {
            prompt_tokens: AtomicU64::new(0),
            prompt_tokens_cached: AtomicU64::new(0),
            generation_tokens: AtomicU64::new(0),
            ended: Default::default(),
            refused: Default::default(),
            slow_readers: AtomicU64::new(0),
            corrupted: AtomicU64::new(0),
            first_token_seconds: Histogram::new(histogram::FIRST_TOKEN_SECONDS),
            inter_token_seconds: Histogram::new(histogram::TOKEN_SECONDS),
            time_per_output_token_seconds: Histogram::new(histogram::TOKEN_SECONDS),
            e2e_seconds: request(),
            queue_seconds: request(),
            inference_seconds: request(),
            prefill_seconds: request(),
            decode_seconds: request(),
            request_prompt_tokens: tokens(),
            request_generation_tokens: tokens(),
            request_max_generation_tokens: tokens(),
            prefill_kv_computed_tokens: tokens(),
            num_preemptions: Histogram::new(histogram::PREEMPTIONS),
            params_n: Histogram::new(histogram::CHOICES),
            params_max_tokens: tokens(),
            step_tokens: Histogram::new(histogram::STEP_TOKENS),
        }
    }

    /// Counts a sequence that ended.
    pub fn count_ended(&self, ended: Ended) {
        self.ended[ended as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a refused request.
    pub fn count_refused(&self, refused: Refused) {
        self.refused[refused as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Sequences that ended in this way.
    pub fn num_ended(&self, ended: Ended) -> u64 {
        self.ended[ended as usize].load(Ordering::Relaxed)
    }

    /// Requests refused for this reason.
    pub fn num_refused(&self, refused: Refused) -> u64 {
        self.refused[refused as usize].load(Ordering::Relaxed)
    }

    /// Sequences that ended because their logits were not finite.
    pub fn num_corrupted(&self) -> u64 {
        self.corrupted.load(Ordering::Relaxed)
    }

    /// Requests aborted because their reader fell too far behind.
    pub fn num_slow_readers(&self) -> u64 {
        self.slow_readers.load(Ordering::Relaxed)
    }
}
