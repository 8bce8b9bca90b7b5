//! `firebrick bench throughput` and `latency`: the engine itself, without a server.

use std::collections::HashMap;
use std::time::Instant;

use clap::Args;
use firebrick::{Error, Loaded, Options, SamplingParams, TokenId};
use firebrick_engine::{EventKind, FinishReason, Pipeline, Request, RequestId};
use serde_json::{Map, Value, json};

use super::report::ReportArgs;
use super::statistics::Sample;
use super::workload::{Dataset, WorkloadArgs};
use crate::args::{DeviceArgs, ModelArgs, SchedulingArgs, quantity};
use crate::failure::Failure;
use crate::progress::Bars;
use crate::{loading, logging};

const THROUGHPUT_EXAMPLES: &str = "\
Examples:
  firebrick bench throughput ./model.gguf --num-prompts 64 --input-len 128 --output-len 128
  firebrick bench throughput ./model.gguf --dataset-name shared-prefix --random-prefix-len 1k --json";

const LATENCY_EXAMPLES: &str = "\
Examples:
  firebrick bench latency ./model.gguf --batch-size 1 --input-len 32 --output-len 128
  firebrick bench latency ./model.gguf --batch-size 8 --num-iters 30 --result-file latency.json";

/// Give the engine many requests at once and measure tokens per second.
#[derive(Args, Debug)]
#[command(after_help = THROUGHPUT_EXAMPLES)]
pub struct ThroughputArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    workload: WorkloadArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    scheduling: SchedulingArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Run one batch again and again and measure how long it takes.
#[derive(Args, Debug)]
#[command(after_help = LATENCY_EXAMPLES)]
pub struct LatencyArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// Requests in the batch
    #[arg(long, value_name = "REQUESTS", default_value = "1", value_parser = quantity, help_heading = "Workload")]
    batch_size: usize,

    /// Tokens of each prompt
    #[arg(long, value_name = "TOKENS", default_value = "32", value_parser = quantity, help_heading = "Workload")]
    input_len: usize,

    /// Tokens of each answer
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = quantity, help_heading = "Workload")]
    output_len: usize,

    /// Batches that are measured
    #[arg(long, value_name = "BATCHES", default_value = "10", help_heading = "Workload")]
    num_iters: usize,

    /// Batches before those
    #[arg(long, value_name = "BATCHES", default_value = "2", help_heading = "Workload")]
    num_iters_warmup: usize,

    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    scheduling: SchedulingArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// What a round of requests took, in seconds.
#[derive(Default)]
struct Round {
    seconds: f64,
    latencies: Vec<f64>,
    first_tokens: Vec<f64>,
    inter_tokens: Vec<f64>,
    input_tokens: usize,
    output_tokens: usize,
}

/// Runs `bench throughput`.
pub fn throughput(args: ThroughputArgs) -> Result<(), Failure> {
    let items = args.workload.items()?;
    let options = args.scheduling.apply(args.device.options()?);
    let mut loaded = load(&args.model, options, items.len())?;
    let vocab_size = loaded.config.vocab_size;
    let requests = items.iter().map(|item| (item.tokens(vocab_size), item.output_len)).collect();
    let bar = Bars::new().count("requests", items.len() as u64);
    let round = run(&mut loaded, requests, &mut || bar.inc(1))?;
    bar.finish_and_clear();
    let stats = loaded.engine.stats();
    let mut results = facts(&loaded);
    let total = (round.input_tokens + round.output_tokens) as f64;
    let mut put = |key: &str, value: Value| drop(results.insert(key.to_owned(), value));
    put("num_requests", json!(items.len()));
    put("duration_seconds", json!(round.seconds));
    put("elapsed_time", json!(round.seconds));
    put("total_input_tokens", json!(round.input_tokens));
    put("total_output_tokens", json!(round.output_tokens));
    put("total_num_tokens", json!(total));
    put("requests_per_second", json!(items.len() as f64 / round.seconds));
    put("tokens_per_second", json!(round.output_tokens as f64 / round.seconds));
    put("total_tokens_per_second", json!(total / round.seconds));
    put("average_latency_ms", json!(Sample::new(round.latencies.iter().copied()).mean() * 1e3));
    put("prefix_cache_hit_tokens", json!(stats.prefix_cache_hits));
    put("preemptions", json!(stats.preemptions));
    Sample::new(round.first_tokens).put_ms(&mut results, "ttft");
    Sample::new(round.inter_tokens).put_ms(&mut results, "itl");
    let lines = [
        ("Requests:", "num_requests", 0),
        ("Duration (s):", "duration_seconds", 2),
        ("Input tokens:", "total_input_tokens", 0),
        ("Output tokens:", "total_output_tokens", 0),
        ("Request throughput (req/s):", "requests_per_second", 2),
        ("Output token throughput (tok/s):", "tokens_per_second", 2),
        ("Total token throughput (tok/s):", "total_tokens_per_second", 2),
        ("Mean latency (ms):", "average_latency_ms", 2),
        ("Median inter-token latency (ms):", "median_itl_ms", 2),
        ("Prompt tokens from the prefix cache:", "prefix_cache_hit_tokens", 0),
        ("Preemptions:", "preemptions", 0),
    ];
    args.report.publish(" Offline throughput ", &lines, results)
}

/// Runs `bench latency`.
pub fn latency(args: LatencyArgs) -> Result<(), Failure> {
    let workload = WorkloadArgs {
        dataset_name: Dataset::Random,
        num_prompts: args.batch_size * (args.num_iters + args.num_iters_warmup),
        random_input_len: args.input_len,
        random_output_len: args.output_len,
        random_range_ratio: 0.0,
        random_prefix_len: Some(0),
        num_prefixes: 1,
        seed: 0,
    };
    if args.num_iters == 0 {
        return Err(Failure::Usage("--num-iters must be at least 1".into()));
    }
    let items = workload.items()?;
    let options = args.scheduling.apply(args.device.options()?);
    let mut loaded = load(&args.model, options, args.batch_size)?;
    let vocab_size = loaded.config.vocab_size;
    let bar = Bars::new().count("batches", (args.num_iters + args.num_iters_warmup) as u64);
    let (mut latencies, mut first_tokens, mut inter_tokens) = (Vec::new(), Vec::new(), Vec::new());
    for (iteration, batch) in items.chunks(args.batch_size).enumerate() {
        // New prompts each time: equal ones would come from the prefix cache.
        let requests = batch.iter().map(|item| (item.tokens(vocab_size), item.output_len)).collect();
        let round = run(&mut loaded, requests, &mut || ())?;
        if iteration >= args.num_iters_warmup {
            latencies.push(round.seconds);
            first_tokens.extend(round.first_tokens);
            inter_tokens.extend(round.inter_tokens);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut results = facts(&loaded);
    let sample = Sample::new(latencies.iter().copied());
    let mut put = |key: &str, value: Value| drop(results.insert(key.to_owned(), value));
    put("batch_size", json!(args.batch_size));
    put("input_len", json!(args.input_len));
    put("output_len", json!(args.output_len));
    put("num_iters", json!(args.num_iters));
    put("avg_latency", json!(sample.mean()));
    put("latencies", json!(latencies));
    let decoded = (args.batch_size * args.output_len) as f64;
    put("tokens_per_second", json!(decoded / sample.mean().max(f64::MIN_POSITIVE)));
    sample.put_latency_ms(&mut results);
    Sample::new(first_tokens).put_ms(&mut results, "ttft");
    Sample::new(inter_tokens).put_ms(&mut results, "itl");
    let lines = [
        ("Batches:", "num_iters", 0),
        ("Mean latency (ms):", "mean_latency_ms", 2),
        ("Median latency (ms):", "median_latency_ms", 2),
        ("P95 latency (ms):", "p95_latency_ms", 2),
        ("P99 latency (ms):", "p99_latency_ms", 2),
        ("Smallest latency (ms):", "min_latency_ms", 2),
        ("Largest latency (ms):", "max_latency_ms", 2),
        ("Median time to first token (ms):", "median_ttft_ms", 2),
        ("Median inter-token latency (ms):", "median_itl_ms", 2),
        ("Output token throughput (tok/s):", "tokens_per_second", 2),
    ];
    args.report.publish(" Offline latency ", &lines, results)
}

fn load(model: &ModelArgs, options: Options, num_requests: usize) -> Result<Loaded, Failure> {
    let bars = Bars::new();
    logging::start_quiet(&bars)?;
    let source = loading::find(&model.required()?, &model.source_options(), &bars)?;
    let waiting = u32::try_from(num_requests).unwrap_or(u32::MAX);
    loading::load(&source.path, &Options { max_waiting: options.max_waiting.max(waiting), ..options }, &bars)
}

/// What was measured on what.
fn facts(loaded: &Loaded) -> Map<String, Value> {
    let report = &loaded.report;
    let mut facts = Map::new();
    facts.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
    facts.insert("model".to_owned(), json!(report.plan.model));
    facts.insert("device".to_owned(), json!(report.backend.name()));
    facts.insert("dtype".to_owned(), json!(report.dtype.to_string()));
    facts.insert("load_seconds".to_owned(), json!(report.duration.as_secs_f64()));
    facts
}

/// A request on its way.
struct Open {
    first: Option<f64>,
    last: f64,
}

/// Gives the engine all requests at once and waits for all; `on_end` is called at each end.
fn run(loaded: &mut Loaded, requests: Vec<(Vec<TokenId>, usize)>, on_end: &mut dyn FnMut()) -> Result<Round, Failure> {
    let engine = &mut loaded.engine;
    let mut round = Round::default();
    let mut open: HashMap<RequestId, Open> = HashMap::new();
    let started = Instant::now();
    for (tokens, output_len) in requests {
        round.input_tokens += tokens.len();
        let max_tokens = u32::try_from(output_len).unwrap_or(u32::MAX);
        let params = SamplingParams { max_tokens: Some(max_tokens), ignore_eos: true, ..SamplingParams::greedy() };
        let id = engine.add_request(Request::new(tokens, params)).map_err(Error::from)?;
        open.insert(id, Open { first: None, last: 0.0 });
    }
    let mut pipeline = Pipeline::new();
    while engine.has_work() {
        let events = pollster::block_on(pipeline.step(engine)).map_err(Error::from)?;
        let now = started.elapsed().as_secs_f64();
        for event in events {
            let Some(request) = open.get_mut(&event.request) else { continue };
            match event.kind {
                EventKind::Scheduled { .. } | EventKind::Prompt(_) => {}
                EventKind::Token { .. } => {
                    round.output_tokens += 1;
                    match request.first {
                        None => request.first = Some(now),
                        Some(_) => round.inter_tokens.push(now - request.last),
                    }
                    request.last = now;
                }
                EventKind::Finished { reason: FinishReason::Error(reason) } => return Err(Failure::Run(reason)),
                EventKind::Finished { .. } => {
                    round.latencies.push(now);
                    round.first_tokens.extend(request.first);
                    on_end();
                }
            }
        }
    }
    round.seconds = started.elapsed().as_secs_f64();
    Ok(round)
}
