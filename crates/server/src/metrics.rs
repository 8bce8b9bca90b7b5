//! `/metrics`: vLLM's families that have a meaning here, and the five of the `vllm_` family with underscores.
//!
//! Every label value comes from a fixed set or from the configuration, never from a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine_handle::EngineSnapshot;
use crate::engine_metrics::{Ended, EngineMetrics, Refused};
use crate::exposition::{Exposition, Labels};
use crate::histogram::{Histogram, REQUEST_SECONDS};
use crate::process_metrics::ProcessMetrics;
use crate::state::{AppState, Model};

/// How a generating request ended for its client: the closed set of values of the label `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A complete answer.
    Success,
    /// An error response or event.
    Error,
    /// The client left first.
    Aborted,
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Success, Self::Error, Self::Aborted];

    fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error => "error",
            Self::Aborted => "aborted",
        }
    }
}

/// Requests as clients see them, whatever happened inside.
pub struct HttpMetrics {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    seconds: Histogram,
}

impl HttpMetrics {
    /// Empty metrics.
    pub fn new() -> Self {
        Self { outcomes: Default::default(), seconds: Histogram::new(REQUEST_SECONDS) }
    }

    /// Counts a generating request that ended after `seconds`.
    pub fn count(&self, outcome: Outcome, seconds: f64) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
        self.seconds.observe(seconds);
    }
}

impl Default for HttpMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The text of `/metrics`; without a model only the families of the HTTP side.
pub fn render(state: &AppState) -> String {
    let mut out = Exposition::new();
    let models = state.served().with_metrics();
    for (model, _) in &models {
        let labels: Labels = &[("model_name", model.name()), ("engine", "0")];
        let snapshot = model.engine.snapshot();
        render_gauges(&mut out, labels, &snapshot);
        render_cache_info(&mut out, labels, &snapshot);
        render_counters(&mut out, labels, &snapshot, model.engine.metrics());
        render_histograms(&mut out, labels, model.engine.metrics());
        render_tokens(&mut out, model);
    }
    render_memory(&mut out, &models);
    for (model, http) in &models {
        render_http(&mut out, model.name(), http);
    }
    if models.is_empty() {
        render_http(&mut out, "", state.unserved());
    }
    let active: Labels = &[("model", models.first().map_or("", |(model, _)| model.name()))];
    out.gauge("vllm_active_requests", "Generating requests that are open.", active, state.num_active() as f64);
    render_process(&mut out, state);
    out.into_text()
}

fn render_gauges(out: &mut Exposition, labels: Labels, snapshot: &EngineSnapshot) {
    let running = snapshot.num_running as f64;
    let waiting = snapshot.num_waiting as f64;
    out.gauge("vllm:num_requests_running", "Sequences in execution batches.", labels, running);
    out.gauge("vllm:num_requests_waiting", "Requests waiting to be processed.", labels, waiting);
    // Nothing is ever deferred here: what waits, waits for room.
    let reasons = [("capacity", snapshot.num_waiting), ("deferred", 0)];
    let by_reason = Family("vllm:num_requests_waiting_by_reason", "gauge", "Waiting requests by reason.");
    labelled(out, by_reason, labels, ("reason", reasons));
    // There is no sleep mode.
    let states = [("awake", 1), ("weights_offloaded", 0), ("discard_all", 0)];
    let sleep = Family("vllm:engine_sleep_state", "gauge", "Whether the engine sleeps: it never does.");
    labelled(out, sleep, labels, ("sleep_state", states));
    let usage = snapshot.kv_usage();
    out.gauge("vllm:kv_cache_usage_perc", "KV cache usage, 1 means 100 percent.", labels, usage);
    out.gauge("vllm:gpu_cache_usage_perc", "Older name of vllm:kv_cache_usage_perc.", labels, usage);
}

fn render_cache_info(out: &mut Exposition, labels: Labels, snapshot: &EngineSnapshot) {
    let [block_size, blocks] = [snapshot.block_size, snapshot.blocks_total].map(|number| number.to_string());
    let info = [("block_size", block_size.as_str()), ("num_gpu_blocks", blocks.as_str())];
    let labels: Vec<_> = labels.iter().copied().chain(info).collect();
    out.gauge("vllm:cache_config_info", "Configuration of the KV cache.", &labels, 1.0);
}

fn render_counters(out: &mut Exposition, labels: Labels, snapshot: &EngineSnapshot, metrics: &EngineMetrics) {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let prompt = read(&metrics.prompt_tokens);
    let cached = read(&metrics.prompt_tokens_cached);
    let counters = [
        ("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", snapshot.prefix_queries),
        ("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", snapshot.prefix_hits),
        ("vllm:gpu_prefix_cache_queries_total", "Older name of prefix_cache_queries.", snapshot.prefix_queries),
        ("vllm:gpu_prefix_cache_hits_total", "Older name of prefix_cache_hits.", snapshot.prefix_hits),
        ("vllm:num_preemptions_total", "Sequences preempted.", snapshot.num_preemptions),
        ("vllm:prompt_tokens_total", "Prompt tokens processed.", prompt),
        ("vllm:prompt_tokens_cached_total", "Prompt tokens taken from the prefix cache.", cached),
        ("vllm:external_prefix_cache_queries_total", "Tokens looked up in an outside cache: there is none.", 0),
        ("vllm:external_prefix_cache_hits_total", "Tokens found in an outside cache: there is none.", 0),
        ("vllm:corrupted_requests_total", "Sequences whose logits were not finite.", read(&metrics.corrupted)),
        ("vllm:generation_tokens_total", "Tokens generated.", read(&metrics.generation_tokens)),
        ("firebrick:slow_readers_total", "Requests aborted because nobody read them.", read(&metrics.slow_readers)),
    ];
    for (name, help, value) in counters {
        out.counter(name, help, labels, value);
    }
    let sources = [("local_compute", prompt.saturating_sub(cached)), ("local_cache_hit", cached)];
    let by_source = Family("vllm:prompt_tokens_by_source_total", "counter", "Prompt tokens by source.");
    labelled(out, by_source, labels, ("source", sources));
    let ended = Ended::ALL.map(|ended| (ended.label(), metrics.num_ended(ended)));
    let success = Family("vllm:request_success_total", "counter", "Sequences that ended.");
    labelled(out, success, labels, ("finished_reason", ended));
    let refused = Refused::ALL.map(|refused| (refused.label(), metrics.num_refused(refused)));
    let rejections = Family("vllm:admission_rejections_total", "counter", "Requests refused.");
    labelled(out, rejections, labels, ("reason", refused));
}

/// Name, kind and help of a family.
struct Family<'a>(&'a str, &'a str, &'a str);

/// A family with one more label.
fn labelled<const N: usize>(
    out: &mut Exposition,
    Family(name, kind, help): Family,
    labels: Labels,
    (label, values): (&str, [(&str, u64); N]),
) {
    out.family(name, kind, help);
    for (value, count) in values {
        let labels: Vec<_> = labels.iter().copied().chain([(label, value)]).collect();
        out.sample(name, &labels, count);
    }
}

fn render_histograms(out: &mut Exposition, labels: Labels, metrics: &EngineMetrics) {
    let histograms: [(&str, &str, &Histogram); 17] = [
        ("time_to_first_token_seconds", "Time to the first token.", &metrics.first_token_seconds),
        ("inter_token_latency_seconds", "Time between tokens.", &metrics.inter_token_seconds),
        ("time_per_output_token_seconds", "Older name of inter_token_latency.", &metrics.inter_token_seconds),
        ("request_time_per_output_token_seconds", "Mean time per token.", &metrics.time_per_output_token_seconds),
        ("e2e_request_latency_seconds", "From arrival to the last token.", &metrics.e2e_seconds),
        ("request_queue_time_seconds", "From arrival to the first batch.", &metrics.queue_seconds),
        ("request_inference_time_seconds", "From the first batch to the end.", &metrics.inference_seconds),
        ("request_prefill_time_seconds", "From the first batch to the first token.", &metrics.prefill_seconds),
        ("request_decode_time_seconds", "From the first token to the last.", &metrics.decode_seconds),
        ("request_prompt_tokens", "Prompt tokens of a request.", &metrics.request_prompt_tokens),
        ("request_generation_tokens", "Tokens of a sequence.", &metrics.request_generation_tokens),
        ("request_max_num_generation_tokens", "Longest sequence of a request.", &metrics.request_max_generation_tokens),
        ("request_prefill_kv_computed_tokens", "Prompt tokens computed.", &metrics.prefill_kv_computed_tokens),
        ("request_num_preemptions", "Times that sequences of a request were preempted.", &metrics.num_preemptions),
        ("request_params_n", "The parameter n.", &metrics.params_n),
        ("request_params_max_tokens", "The parameter max_tokens.", &metrics.params_max_tokens),
        ("iteration_tokens_total", "Tokens in a step.", &metrics.step_tokens),
    ];
    for (name, help, histogram) in histograms {
        out.histogram(&format!("vllm:{name}"), help, labels, histogram);
    }
}

fn render_tokens(out: &mut Exposition, model: &Model) {
    let tokens = model.engine.metrics().generation_tokens.load(Ordering::Relaxed);
    out.counter("vllm_tokens_generated_total", "Tokens generated.", &[("model", model.name())], tokens);
}

/// All models run on one device.
fn render_memory(out: &mut Exposition, models: &[(Arc<Model>, Arc<HttpMetrics>)]) {
    if !models.is_empty() {
        let memory: u64 = models.iter().map(|(model, _)| model.device.memory_allocated_bytes).sum();
        out.gauge("vllm_gpu_memory_bytes", "Device memory in use.", &[("gpu_id", "0")], memory as f64);
    }
}

fn render_http(out: &mut Exposition, model: &str, http: &HttpMetrics) {
    let values = Outcome::ALL.map(|outcome| (outcome.label(), http.outcomes[outcome as usize].load(Ordering::Relaxed)));
    let requests = Family("vllm_requests_total", "counter", "Generating requests.");
    labelled(out, requests, &[("model", model)], ("status", values));
    let labels: Labels = &[("model", model)];
    out.histogram("vllm_request_duration_seconds", "Duration of generating requests.", labels, &http.seconds);
}

fn render_process(out: &mut Exposition, state: &AppState) {
    out.gauge("process_start_time_seconds", "When the process began, since 1970.", &[], state.created() as f64);
    if let Some(process) = ProcessMetrics::read() {
        out.gauge("process_resident_memory_bytes", "Memory in use.", &[], process.resident_bytes as f64);
        out.gauge("process_virtual_memory_bytes", "Address space.", &[], process.virtual_bytes as f64);
        out.gauge("process_open_fds", "Open files and sockets.", &[], process.open_fds as f64);
        out.family("process_cpu_seconds_total", "counter", "Processor time used.");
        out.sample("process_cpu_seconds_total", &[], process.cpu_seconds);
    }
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let tasks = runtime.metrics().num_alive_tasks();
        out.gauge("firebrick_tasks", "Tasks of connections and requests that are alive.", &[], tasks as f64);
    }
    if let Some(tracer) = state.tracer() {
        let counts = tracer.counts();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        out.counter("firebrick:traces_exported_total", "Traces sent.", &[], read(&counts.exported));
        out.counter("firebrick:traces_dropped_total", "Traces lost.", &[], read(&counts.dropped));
    }
}
