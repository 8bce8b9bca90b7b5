//! `firebrick bench serve`: requests at a given rate to any server with the OpenAI API. The keys of the results are
//! those of vLLM's `bench serve`, and a few more.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Map, Value, json};

use super::arrivals::{Chance, arrival_times};
use super::client::{Client, Target, Timing};
use super::goodput::Promise;
use super::report::ReportArgs;
use super::statistics::Sample;
use super::workload::WorkloadArgs;
use crate::failure::Failure;
use crate::progress::Bars;

const EXAMPLES: &str = "\
Examples:
  firebrick bench serve --base-url http://127.0.0.1:8000 --num-prompts 100
  firebrick bench serve --request-rate 4 --goodput ttft:500 tpot:50 --result-file results.json
  firebrick bench serve --dataset-name shared-prefix --random-prefix-len 1k --max-concurrency 16";

/// Send requests to a server and measure: time to first token (TTFT), time per output token (TPOT), inter-token latency
/// (ITL), end-to-end latency (E2EL), throughput.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ServingArgs {
    /// Where the server is
    #[arg(
        long,
        value_name = "URL",
        env = "VLLM_URL",
        default_value = "http://127.0.0.1:8000",
        help_heading = "Server"
    )]
    base_url: String,

    /// Path of the requests: /v1/completions or /v1/chat/completions
    #[arg(long, value_name = "PATH", default_value = "/v1/completions", help_heading = "Server")]
    endpoint: String,

    /// The model's name [default: the first that the server lists]
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    model: Option<String>,

    /// The server's API key
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true, help_heading = "Server")]
    api_key: Option<String>,

    #[command(flatten)]
    workload: WorkloadArgs,

    /// Requests per second, at random times (a Poisson process); inf sends all at once
    #[arg(long, value_name = "RATE", default_value = "inf", help_heading = "Workload")]
    request_rate: f64,

    /// Requests at the same time, whatever the rate [default: no limit]
    #[arg(long, value_name = "REQUESTS", help_heading = "Workload")]
    max_concurrency: Option<usize>,

    /// Let answers end where the model ends them, for servers that know no `ignore_eos`
    #[arg(long, help_heading = "Workload")]
    no_ignore_eos: bool,

    /// Sampling temperature
    #[arg(long, value_name = "T", default_value = "0", help_heading = "Workload")]
    temperature: f64,

    /// Count requests that keep all these promises, in milliseconds: ttft:200 tpot:50 e2el:5000
    #[arg(long, value_name = "PROMISES", num_args = 1.., value_delimiter = ',', help_heading = "Results")]
    goodput: Vec<Promise>,

    #[command(flatten)]
    report: ReportArgs,
}

/// What became of the requests.
struct Outcome {
    timings: Vec<Timing>,
    errors: Vec<String>,
    seconds: f64,
    concurrency_max: usize,
}

/// Runs the command.
pub fn bench_serve(args: ServingArgs) -> Result<(), Failure> {
    if args.request_rate <= 0.0 || args.request_rate.is_nan() {
        return Err(Failure::Usage(format!("--request-rate is {}, but must be above 0, or inf", args.request_rate)));
    }
    let items = args.workload.items()?;
    let concurrency = args.max_concurrency.unwrap_or(items.len()).clamp(1, items.len());
    let target = Target {
        base_url: args.base_url.trim_end_matches('/').to_owned(),
        endpoint: args.endpoint.clone(),
        model: String::new(),
        api_key: args.api_key.clone(),
        ignore_eos: !args.no_ignore_eos,
        temperature: args.temperature,
    };
    let mut client = Client::new(target, concurrency);
    let model = match &args.model {
        Some(model) => model.clone(),
        None => client.first_model()?,
    };
    client.set_model(model.clone());
    let requests: Vec<(String, usize)> = items.iter().map(|item| (item.text(), item.output_len)).collect();
    client.ask("Hello", 4).map_err(|error| Failure::Run(format!("the test request failed: {error}")))?;

    let times = arrival_times(requests.len(), args.request_rate, &mut Chance::new(args.workload.seed ^ 1));
    let outcome = send_all(&client, &requests, &times, concurrency);
    if outcome.timings.is_empty() {
        let first = outcome.errors.first().map_or("no reason given", String::as_str);
        return Err(Failure::Run(format!("all {} requests failed: {first}", requests.len())));
    }
    if let Some(first) = outcome.errors.first() {
        eprintln!("warning: {} requests failed, the first: {first}", outcome.errors.len());
    }
    let results = results(&args, &model, &outcome);
    args.report.publish(" Serving benchmark ", &LINES, results)
}

/// Sends each request at its time, at most `concurrency` at once.
fn send_all(client: &Client, requests: &[(String, usize)], times: &[f64], concurrency: usize) -> Outcome {
    let bar = Bars::new().count("requests", requests.len() as u64);
    let results = Mutex::new((Vec::new(), Vec::new()));
    let open = Open::default();
    let started = Instant::now();
    thread::scope(|scope| {
        for ((prompt, max_tokens), time) in requests.iter().zip(times) {
            thread::sleep(Duration::from_secs_f64(*time).saturating_sub(started.elapsed()));
            open.enter(concurrency);
            let (results, open, bar) = (&results, &open, &bar);
            let request = move || {
                let result = client.ask(prompt, *max_tokens);
                let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                match result {
                    Ok(timing) => results.0.push(timing),
                    Err(error) => results.1.push(error),
                }
                drop(results);
                open.leave();
                bar.inc(1);
            };
            let spawned = thread::Builder::new().stack_size(512 << 10).spawn_scoped(scope, request);
            if let Err(error) = spawned {
                open.leave();
                bar.suspend(|| eprintln!("warning: no thread for a request: {error}; see --max-concurrency"));
            }
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let (timings, errors) = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let concurrency_max = open.most();
    Outcome { timings, errors, seconds, concurrency_max }
}

/// Requests that are open, now and at most.
#[derive(Default)]
struct Open {
    counts: Mutex<(usize, usize)>,
    left: Condvar,
}

impl Open {
    fn enter(&self, limit: usize) {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counts =
            self.left.wait_while(counts, |counts| counts.0 >= limit).unwrap_or_else(PoisonError::into_inner);
        counts.0 += 1;
        counts.1 = counts.1.max(counts.0);
    }

    fn leave(&self) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).0 -= 1;
        self.left.notify_one();
    }

    fn most(&self) -> usize {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// The table: label, key, decimals. A line without a key is a heading.
const LINES: [(&str, &str, usize); 30] = [
    ("Successful requests:", "completed", 0),
    ("Failed requests:", "failed", 0),
    ("Benchmark duration (s):", "duration", 2),
    ("Total input tokens:", "total_input_tokens", 0),
    ("Total generated tokens:", "total_output_tokens", 0),
    ("Request throughput (req/s):", "request_throughput", 2),
    ("Request goodput (req/s):", "request_goodput", 2),
    ("Output token throughput (tok/s):", "output_throughput", 2),
    ("Total token throughput (tok/s):", "total_token_throughput", 2),
    ("Peak concurrent requests:", "max_concurrent_requests", 0),
    (" Time to first token ", "", 0),
    ("Mean TTFT (ms):", "mean_ttft_ms", 2),
    ("Median TTFT (ms):", "median_ttft_ms", 2),
    ("P90 TTFT (ms):", "p90_ttft_ms", 2),
    ("P99 TTFT (ms):", "p99_ttft_ms", 2),
    (" Time per output token, without the first ", "", 0),
    ("Mean TPOT (ms):", "mean_tpot_ms", 2),
    ("Median TPOT (ms):", "median_tpot_ms", 2),
    ("P90 TPOT (ms):", "p90_tpot_ms", 2),
    ("P99 TPOT (ms):", "p99_tpot_ms", 2),
    (" Inter-token latency ", "", 0),
    ("Mean ITL (ms):", "mean_itl_ms", 2),
    ("Median ITL (ms):", "median_itl_ms", 2),
    ("P90 ITL (ms):", "p90_itl_ms", 2),
    ("P99 ITL (ms):", "p99_itl_ms", 2),
    (" End-to-end latency ", "", 0),
    ("Mean E2EL (ms):", "mean_e2el_ms", 2),
    ("Median E2EL (ms):", "median_e2el_ms", 2),
    ("P90 E2EL (ms):", "p90_e2el_ms", 2),
    ("P99 E2EL (ms):", "p99_e2el_ms", 2),
];

fn results(args: &ServingArgs, model: &str, outcome: &Outcome) -> Map<String, Value> {
    let Outcome { timings, errors, seconds, concurrency_max } = outcome;
    let sum = |count: fn(&Timing) -> usize| timings.iter().map(count).sum::<usize>();
    let (input, output) = (sum(|timing| timing.input_tokens), sum(|timing| timing.output_tokens));
    let per_second = |count: usize| count as f64 / seconds.max(f64::MIN_POSITIVE);
    let kept = timings.iter().filter(|timing| args.goodput.iter().all(|promise| promise.is_kept(timing))).count();
    let latency = Sample::new(timings.iter().map(|timing| timing.end_to_end));
    // JSON has no infinity.
    let rate = if args.request_rate.is_finite() { json!(args.request_rate) } else { json!("inf") };
    let goodput = (!args.goodput.is_empty()).then(|| per_second(kept));
    let mut results = Map::new();
    let mut put = |key: &str, value: Value| drop(results.insert(key.to_owned(), value));
    put("date", json!(unix_seconds()));
    put("backend", json!("openai"));
    put("base_url", json!(args.base_url));
    put("endpoint", json!(args.endpoint));
    put("model_id", json!(model));
    put("num_prompts", json!(args.workload.num_prompts));
    put("request_rate", rate);
    put("max_concurrency", json!(args.max_concurrency));
    put("seed", json!(args.workload.seed));
    put("duration", json!(seconds));
    put("completed", json!(timings.len()));
    put("failed", json!(errors.len()));
    put("total_input_tokens", json!(input));
    put("total_output_tokens", json!(output));
    put("request_throughput", json!(per_second(timings.len())));
    put("request_goodput", json!(goodput));
    put("output_throughput", json!(per_second(output)));
    put("total_token_throughput", json!(per_second(input + output)));
    put("max_concurrent_requests", json!(concurrency_max));
    put("num_requests", json!(timings.len()));
    put("duration_seconds", json!(seconds));
    put("requests_per_second", json!(per_second(timings.len())));
    put("tokens_per_second", json!(per_second(output)));
    put("average_latency_ms", json!(latency.mean() * 1e3));
    latency.put_latency_ms(&mut results);
    Sample::new(timings.iter().map(|timing| timing.first_token)).put_ms(&mut results, "ttft");
    Sample::new(timings.iter().filter_map(Timing::per_output_token)).put_ms(&mut results, "tpot");
    Sample::new(timings.iter().flat_map(|timing| timing.inter_token.iter().copied())).put_ms(&mut results, "itl");
    latency.put_ms(&mut results, "e2el");
    results.insert("errors".to_owned(), json!(errors));
    results
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
