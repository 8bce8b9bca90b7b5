//! `firebrick bench suite`: a file of workloads on models of random weights, engine only.

mod workloads;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use firebrick::{DeviceChoice, KvCacheDtype, LoadReport, Options, load_engine};
use firebrick_checkpoint::Checkpoint;
use firebrick_engine::{Engine, EventKind, FinishReason, Pipeline, Request, RequestId, SamplingParams};
use firebrick_executor::LocalExecutor;
use serde_json::{Map, Value, json};

use super::statistics::Sample;
use crate::args::{DeviceArg, SchedulingArgs, kv_cache_dtype};
use crate::failure::Failure;
use crate::output::print;
use workloads::{Item, Kind, Model, Workload, Workloads};

const EXAMPLES: &str = "\
Examples:
  firebrick bench suite --workloads workloads.json --models smollm2-135m --result-file results.json
  firebrick bench suite --workloads workloads.json --only decode_b1,tp_c8

Every repetition has new prompts. A burst hands all requests over at once; a closed loop keeps a number of them in flight.";

/// Run a file of workloads on models of random weights: the same work for every engine.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct SuiteArgs {
    /// The file: models as config.json, workloads as request lengths, and the rule that makes the token ids
    #[arg(long, value_name = "FILE")]
    workloads: PathBuf,

    /// Models of the file [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    models: Vec<String>,

    /// Workloads of the file [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,

    /// What runs the models
    #[arg(long, value_enum, default_value = "auto", env = "FIREBRICK_DEVICE")]
    device: DeviceArg,

    /// Form of keys and values: auto (as the device computes), fp8 or fp8_e4m3 (8 bits)
    #[arg(long, value_name = "DTYPE", default_value = "auto", value_parser = kv_cache_dtype)]
    kv_cache_dtype: KvCacheDtype,

    /// Round linear layers to FP8 when they are loaded: fp8, on CUDA
    #[arg(long, value_name = "METHOD", value_parser = ["fp8"])]
    quantization: Option<String>,

    /// Share of the device's memory that may be used
    #[arg(long, value_name = "SHARE", default_value = "0.9")]
    gpu_memory_utilization: f32,

    /// Write every repetition to this file, as JSON
    #[arg(long, value_name = "FILE")]
    result_file: Option<PathBuf>,

    #[command(flatten)]
    scheduling: SchedulingArgs,
}

/// A model's engine and the sequence of its random requests.
struct Bench<'a> {
    workloads: &'a Workloads,
    engine: Engine<LocalExecutor>,
    pipeline: Pipeline,
    vocab_size: u32,
}

/// What one repetition took, in seconds.
#[derive(Default)]
struct Round {
    seconds: f64,
    input_tokens: usize,
    output_tokens: usize,
    first_tokens: Vec<f64>,
    per_token: Vec<f64>,
    cached_tokens: u64,
}

/// Runs the command.
pub fn suite(args: SuiteArgs) -> Result<(), Failure> {
    let workloads = Workloads::read(&args.workloads)?;
    let models = workloads.models(&args.models)?;
    let chosen = workloads.chosen(&args.only)?;
    let mut results = Map::new();
    for model in models {
        let (mut bench, facts) = Bench::open(&workloads, model, &args)?;
        let (mut rows, mut not_run) = (Map::new(), Map::new());
        for workload in &chosen {
            let (longest, most) = (workload.longest(), model.max_model_len);
            if longest > most {
                let reason = format!("has requests of {longest} tokens, and the model takes {most}");
                print(&format!("{:<14} {:<16} not run: it {reason}\n", model.name, workload.name));
                not_run.insert(workload.name.clone(), Value::from(reason));
                continue;
            }
            let result = bench.measure(workload)?;
            print(&line(model, workload, &result));
            rows.insert(workload.name.clone(), result);
        }
        results.insert(model.name.clone(), json!({ "engine": facts, "workloads": rows, "not_run": not_run }));
        if let Some(path) = &args.result_file {
            let text = format!("{:#}\n", Value::Object(results.clone()));
            std::fs::write(path, text).map_err(|error| {
                Failure::Run(format!("cannot write {}: {error}; check --result-file", path.display()))
            })?;
        }
    }
    Ok(())
}

fn line(model: &Model, workload: &Workload, result: &Value) -> String {
    let figure = |key: &str| result[key].as_f64().unwrap_or(0.0);
    format!(
        "{:<14} {:<16} {:>10.1} output tok/s {:>11.1} total tok/s  TTFT {:>8.2} ms  TPOT {:>7.3} ms  {:>8.3} s\n",
        model.name,
        workload.name,
        figure("output_tokens_per_second"),
        figure("total_tokens_per_second"),
        figure("mean_ttft_ms"),
        figure("mean_tpot_ms"),
        figure("seconds"),
    )
}

impl<'a> Bench<'a> {
    fn open(workloads: &'a Workloads, model: &Model, args: &SuiteArgs) -> Result<(Self, Value), Failure> {
        let started = Instant::now();
        let checkpoint = Checkpoint::dummy(&model.config).map_err(firebrick::Error::from)?;
        let options = Options {
            device: DeviceChoice::from(args.device),
            max_model_len: Some(model.max_model_len),
            kv_cache_dtype: args.kv_cache_dtype,
            quantization: args.quantization.clone(),
            gpu_memory_utilization: args.gpu_memory_utilization,
            max_waiting: 1 << 20,
            ..Options::default()
        };
        let options = Options { max_waiting: 1 << 20, ..args.scheduling.apply(options) };
        let (engine, report) = load_engine(&checkpoint, &options, &mut |_| ())?;
        let ready = started.elapsed().as_secs_f64();
        let weights = report.weights_form();
        let LoadReport { backend, num_blocks, .. } = report;
        let facts = json!({
            "version": env!("CARGO_PKG_VERSION"), "device": backend.name(), "dtype": weights,
            "num_blocks": num_blocks, "ready_seconds": ready, "max_num_seqs": engine.config().max_num_seqs,
            "max_num_batched_tokens": engine.config().max_num_batched_tokens, "deterministic": options.deterministic,
        });
        print(&format!("{}: ready after {ready:.2} s, {num_blocks} blocks\n", model.name));
        let vocab_size = checkpoint.config().vocab_size as u32;
        Ok((Self { workloads, engine, pipeline: Pipeline::new(), vocab_size }, facts))
    }

    /// Warms up, then runs every repetition; the median one is reported, all are kept.
    fn measure(&mut self, workload: &Workload) -> Result<Value, Failure> {
        if let Kind::Prefix { .. } = workload.kind {
            return self.measure_prefix(workload);
        }
        self.run(&self.workloads.items(workload, 0, self.vocab_size), workload.in_flight())?;
        let mut rounds = Vec::new();
        for repetition in 1..=workload.repetitions {
            let items = self.workloads.items(workload, repetition, self.vocab_size);
            rounds.push(self.run(&items, workload.in_flight())?);
        }
        rounds.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let seconds: Vec<f64> = rounds.iter().map(|round| round.seconds).collect();
        let mut result = figures(&rounds[rounds.len() / 2]);
        result.insert("all_seconds".to_owned(), json!(seconds));
        Ok(Value::Object(result))
    }

    /// Three bursts: nothing in common, a common beginning, the same beginning again.
    fn measure_prefix(&mut self, workload: &Workload) -> Result<Value, Failure> {
        let mut result = Map::new();
        for (name, part) in [("warm_up", 3), ("unshared", 0), ("shared_cold", 1), ("shared_warm", 2)] {
            let items = self.workloads.prefix_items(workload, part, self.vocab_size);
            let round = self.run(&items, usize::MAX)?;
            if name == "shared_warm" {
                result.extend(figures(&round));
            }
            result.insert(name.to_owned(), Value::Object(figures(&round)));
        }
        Ok(Value::Object(result))
    }

    fn run(&mut self, items: &[Item], in_flight: usize) -> Result<Round, Failure> {
        let mut waiting = items.iter();
        let mut open: HashMap<RequestId, (f64, Option<f64>, usize)> = HashMap::new();
        let mut round = Round::default();
        let hits = self.engine.stats().prefix_cache_hits;
        let started = Instant::now();
        loop {
            while open.len() < in_flight {
                let Some(item) = waiting.next() else { break };
                let params =
                    SamplingParams { max_tokens: Some(item.output), ignore_eos: true, ..SamplingParams::greedy() };
                let added = self.engine.add_request(Request::new(item.tokens.clone(), params));
                open.insert(added.map_err(firebrick::Error::from)?, (started.elapsed().as_secs_f64(), None, 0));
                round.input_tokens += item.tokens.len();
            }
            if !self.engine.has_work() {
                break;
            }
            let stepped = pollster::block_on(self.pipeline.step(&mut self.engine));
            let events = stepped.map_err(firebrick::Error::from)?;
            let now = started.elapsed().as_secs_f64();
            for event in events {
                let Some((sent, first, tokens)) = open.get_mut(&event.request) else { continue };
                match event.kind {
                    EventKind::Scheduled { .. } | EventKind::Prompt(_) => {}
                    EventKind::Token { .. } => {
                        first.get_or_insert(now);
                        *tokens += 1;
                        round.output_tokens += 1;
                    }
                    EventKind::Finished { reason: FinishReason::Error(reason) } => return Err(Failure::Run(reason)),
                    EventKind::Finished { .. } => {
                        let first = first.unwrap_or(now);
                        round.first_tokens.push(first - *sent);
                        if *tokens > 1 {
                            round.per_token.push((now - first) / (*tokens - 1) as f64);
                        }
                        open.remove(&event.request);
                    }
                }
            }
        }
        round.seconds = started.elapsed().as_secs_f64();
        round.cached_tokens = self.engine.stats().prefix_cache_hits - hits;
        Ok(round)
    }
}

fn figures(round: &Round) -> Map<String, Value> {
    let mut figures = Map::new();
    let total = (round.input_tokens + round.output_tokens) as f64;
    let mut put = |key: &str, value: Value| drop(figures.insert(key.to_owned(), value));
    put("seconds", json!(round.seconds));
    put("input_tokens", json!(round.input_tokens));
    put("output_tokens", json!(round.output_tokens));
    put("cached_tokens", json!(round.cached_tokens));
    put("output_tokens_per_second", json!(round.output_tokens as f64 / round.seconds));
    put("input_tokens_per_second", json!(round.input_tokens as f64 / round.seconds));
    put("total_tokens_per_second", json!(total / round.seconds));
    Sample::new(round.first_tokens.iter().copied()).put_ms(&mut figures, "ttft");
    Sample::new(round.per_token.iter().copied()).put_ms(&mut figures, "tpot");
    figures
}
