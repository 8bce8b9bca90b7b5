// cargo run --release --example offline_batch -- HuggingFaceTB/SmolLM2-135M-Instruct
//! Several prompts at once, without a server: the engine batches them by itself.

use firebrick::{Llm, Options, SamplingParams};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "HuggingFaceTB/SmolLM2-135M-Instruct".to_owned());
    let mut llm = Llm::load(&model, Options::default())?;
    let report = &llm.loaded().report;
    println!("{} on {} in {:.2} s", report.plan.model, report.backend.name(), report.duration.as_secs_f64());

    let prompts = ["The capital of France is", "The largest planet is", "Water boils at", "A haiku about rain:"];
    let params = SamplingParams { max_tokens: Some(24), ..SamplingParams::greedy() };
    let started = Instant::now();
    let completions = llm.generate(&prompts, &params)?;
    let seconds = started.elapsed().as_secs_f64();

    for (prompt, completion) in prompts.iter().zip(&completions) {
        println!("{prompt:?} -> {:?} ({:?})", completion.text, completion.finish_reason);
    }
    let tokens: usize = completions.iter().map(|completion| completion.tokens.len()).sum();
    println!("{tokens} tokens in {seconds:.2} s: {:.1} tokens/s", tokens as f64 / seconds);
    Ok(())
}
