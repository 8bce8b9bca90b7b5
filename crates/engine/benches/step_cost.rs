//! cargo bench -p firebrick-engine
//!
//! What a step costs the CPU beside the model: planning, and taking the results, with 256 sequences generating.

use std::future::{Future, ready};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use firebrick_engine::{
    Batch, Engine, EngineConfig, Executor, Request, SampleOutcome, SampledToken, SamplingParams, SchedulingPolicy,
    StepResult,
};

const SEQUENCES: u32 = 256;
const STEPS: u32 = 1000;
const PROMPT_LEN: u32 = 512;

/// Answers at once with tokens that depend on the row alone.
struct InstantExecutor;

impl Executor for InstantExecutor {
    fn kv_blocks(&self) -> u32 {
        SEQUENCES * 128
    }

    fn execute(&mut self, batch: &Batch) -> impl Future<Output = StepResult> + 'static {
        let token = |row: &firebrick_engine::SampleRow| (row.seed as u32 ^ row.position) % 50_000;
        let outcome = |row| SampleOutcome::Token(SampledToken { token: token(row), logprobs: None });
        ready(Ok(batch.samples.iter().map(outcome).collect::<Vec<_>>().into()))
    }
}

fn config(enable_prefix_caching: bool) -> EngineConfig {
    EngineConfig {
        block_size: 16,
        max_model_len: 4096,
        max_num_seqs: SEQUENCES,
        max_num_batched_tokens: 8192,
        max_waiting: 1024,
        max_choices: 8,
        vocab_size: 50_000,
        enable_prefix_caching,
        enable_chunked_prefill: true,
        policy: SchedulingPolicy::Fcfs,
        seed: 0,
        hash_key: [1, 2],
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("the executor answers at once"),
    }
}

fn measure(name: &str, enable_prefix_caching: bool, params: &SamplingParams) {
    let mut engine = Engine::new(config(enable_prefix_caching), InstantExecutor).expect("valid");
    for number in 0..SEQUENCES {
        let prompt = (0..PROMPT_LEN).map(|position| (number * 131 + position * 17) % 50_000).collect();
        engine.add_request(Request::new(prompt, params.clone())).expect("accepted");
    }
    while engine.stats().waiting > 0 || engine.stats().last_step_tokens != SEQUENCES {
        now(engine.step()).expect("works");
    }
    let (mut planning, mut results) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..STEPS {
        let start = Instant::now();
        let running = engine.begin_step().expect("alive").expect("all are generating");
        planning += start.elapsed();
        let result = now(running);
        let start = Instant::now();
        drop(engine.finish_step(result).expect("works"));
        results += start.elapsed();
    }
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6 / f64::from(STEPS);
    let (plan, commit) = (micros(planning), micros(results));
    println!("{name:<28} {plan:7.1} us to plan, {commit:7.1} us to take results, {:7.1} us a step", plan + commit);
}

fn main() {
    let params = SamplingParams { max_tokens: Some(3000), ..SamplingParams::default() };
    let penalties = SamplingParams { presence_penalty: 0.5, ..params.clone() };
    println!("{SEQUENCES} sequences of {PROMPT_LEN} tokens, mean of {STEPS} steps");
    measure("prefix cache on", true, &params);
    measure("prefix cache off", false, &params);
    measure("prefix cache on, penalties", true, &penalties);
}
