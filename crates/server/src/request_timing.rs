//! When things happened to one request, measured where its events pass: the engine itself knows no clock.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use firebrick_engine::{EventKind, FinishReason, NOT_FINITE, Request, TokenEvent};

use crate::engine_metrics::{Ended, EngineMetrics};
use crate::request_trace::Phases;

/// The clock readings of one request, turned into metrics as its sequences end.
pub(crate) struct RequestTiming {
    arrived: Instant,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    prompt_tokens: u32,
    max_tokens: Option<u32>,
    choices: Vec<ChoiceTiming>,
    phases: Arc<Phases>,
    num_preemptions: u32,
}

#[derive(Clone, Copy, Default)]
struct ChoiceTiming {
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    num_tokens: u32,
    finished: bool,
}

impl RequestTiming {
    pub fn new(request: &Request, arrived: Instant, phases: Arc<Phases>) -> Self {
        Self {
            arrived,
            scheduled: None,
            first_token: None,
            prompt_tokens: request.prompt.len() as u32,
            max_tokens: request.params.max_tokens,
            choices: vec![ChoiceTiming::default(); request.n as usize],
            phases,
            num_preemptions: 0,
        }
    }

    /// One of its sequences lost its blocks and will begin again.
    pub fn preempted(&mut self) {
        self.num_preemptions += 1;
    }

    /// Whether every choice has ended.
    pub fn is_finished(&self) -> bool {
        self.choices.iter().all(|choice| choice.finished)
    }

    /// The choices that have not ended.
    pub fn open_choices(&self) -> Vec<u32> {
        (0..).zip(&self.choices).filter(|(_, choice)| !choice.finished).map(|(index, _)| index).collect()
    }

    /// Takes note of an event that happened `now`.
    pub fn observe(&mut self, event: &TokenEvent, now: Instant, metrics: &EngineMetrics) {
        match &event.kind {
            EventKind::Scheduled { cached_tokens } => self.on_scheduled(*cached_tokens, now, metrics),
            EventKind::Prompt(_) => {}
            EventKind::Token { .. } => self.on_token(event.index, now, metrics),
            EventKind::Finished { reason } => {
                if *reason == FinishReason::Error(NOT_FINITE.to_owned()) {
                    metrics.corrupted.fetch_add(1, Ordering::Relaxed);
                }
                self.on_finished(event.index, reason.into(), now, metrics);
            }
        }
    }

    /// Ends what is still open: the client left, or the engine did.
    pub fn end(&mut self, reason: &FinishReason, now: Instant, metrics: &EngineMetrics) {
        for index in 0..self.choices.len() as u32 {
            self.on_finished(index, reason.into(), now, metrics);
        }
    }

    /// One choice's text is complete before the engine ends it.
    pub fn stop_choice(&mut self, index: u32, now: Instant, metrics: &EngineMetrics) {
        self.on_finished(index, (&FinishReason::Stop(None)).into(), now, metrics);
    }

    fn on_scheduled(&mut self, cached_tokens: u32, now: Instant, metrics: &EngineMetrics) {
        if self.scheduled.is_some() {
            return;
        }
        self.scheduled = Some(now);
        self.phases.scheduled.get_or_init(|| now);
        metrics.queue_seconds.observe(seconds(self.arrived, now));
        metrics.prompt_tokens.fetch_add(self.prompt_tokens.into(), Ordering::Relaxed);
        metrics.prompt_tokens_cached.fetch_add(cached_tokens.into(), Ordering::Relaxed);
        let computed = self.prompt_tokens.saturating_sub(cached_tokens);
        metrics.prefill_kv_computed_tokens.observe(computed.into());
    }

    fn on_token(&mut self, index: u32, now: Instant, metrics: &EngineMetrics) {
        metrics.generation_tokens.fetch_add(1, Ordering::Relaxed);
        self.phases.tokens.fetch_add(1, Ordering::Relaxed);
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.phases.first_token.get_or_init(|| now);
            metrics.first_token_seconds.observe(seconds(self.arrived, now));
            metrics.prefill_seconds.observe(seconds(self.scheduled.unwrap_or(self.arrived), now));
        }
        let Some(choice) = self.choices.get_mut(index as usize) else { return };
        if let Some(last) = choice.last_token {
            metrics.inter_token_seconds.observe(seconds(last, now));
        }
        choice.first_token.get_or_insert(now);
        choice.last_token = Some(now);
        choice.num_tokens += 1;
    }

    fn on_finished(&mut self, index: u32, ended: Ended, now: Instant, metrics: &EngineMetrics) {
        let Some(choice) = self.choices.get_mut(index as usize) else { return };
        if std::mem::replace(&mut choice.finished, true) {
            return;
        }
        metrics.count_ended(ended);
        metrics.request_generation_tokens.observe(choice.num_tokens.into());
        if let (Some(first), Some(last)) = (choice.first_token, choice.last_token) {
            metrics.decode_seconds.observe(seconds(first, last));
            if choice.num_tokens > 1 {
                let per_token = seconds(first, last) / f64::from(choice.num_tokens - 1);
                metrics.time_per_output_token_seconds.observe(per_token);
            }
        }
        if self.is_finished() {
            self.on_all_finished(now, metrics);
        }
    }

    fn on_all_finished(&self, now: Instant, metrics: &EngineMetrics) {
        metrics.e2e_seconds.observe(seconds(self.arrived, now));
        metrics.request_prompt_tokens.observe(self.prompt_tokens.into());
        metrics.num_preemptions.observe(self.num_preemptions.into());
        metrics.params_n.observe(self.choices.len() as f64);
        if let Some(max_tokens) = self.max_tokens {
            metrics.params_max_tokens.observe(max_tokens.into());
        }
        if let Some(scheduled) = self.scheduled {
            metrics.inference_seconds.observe(seconds(scheduled, now));
        }
        let longest = self.choices.iter().map(|choice| choice.num_tokens).max().unwrap_or(0);
        metrics.request_max_generation_tokens.observe(longest.into());
    }
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64()
}
