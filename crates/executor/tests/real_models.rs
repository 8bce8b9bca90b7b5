//! Real weights against PyTorch transformers on the same dequantised values: the same greedy tokens for 64 steps wherever
//! the reference's own margin is larger than the arithmetic's error, and logits within the tolerance of the dtype.

mod common;

use common::fetched::fetched;
use common::{Setup, engine, greedy, run_requests};
use firebrick_checkpoint::Dtype;
use firebrick_engine::{EventKind, Request, SamplingParams};
use firebrick_ops::testing::for_each_device;
use firebrick_ops::{Backend, holds_packed_weights, open_device};
use serde_json::Value;
use std::path::Path;

fn cases(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/real").join(name);
    let text = std::fs::read_to_string(path).expect("the reference is in the repository");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    value["cases"].as_array().expect("a list of cases").clone()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("a token") as u32).collect()
}

fn check(model: &str, reference: &str) {
    let Some(path) = fetched(model) else { return };
    let device = open_device(Backend::Cpu).expect("the CPU is always there");
    let setup = Setup { dtype: Dtype::F32, num_blocks: 128, ..Setup::default() };
    let mut engine = engine(&path, &setup, &device);
    let cases = cases(reference);
    assert!(cases.len() >= 8);
    let (prompts, expected): (Vec<_>, Vec<_>) =
        cases.iter().map(|case| (ids(&case["prompt"]), ids(&case["greedy"]))).unzip();
    // All at once, which takes a fraction of the time: company changes no token (`same_tokens`).
    let requests = prompts.iter().zip(&expected).map(|(prompt, expected)| greedy(prompt, expected.len() as u32));
    let got = run_requests(&mut engine, requests.collect());
    for (index, (case, prompt)) in cases.iter().zip(prompts).enumerate() {
        assert_eq!(got[index], expected[index], "{model}, case {index}");

        // The last prompt position's most likely tokens, as log-probabilities.
        let params = SamplingParams { max_tokens: Some(1), logprobs: Some(20), ..SamplingParams::greedy() };
        engine.add_request(Request::new(prompt, params)).expect("accepted");
        let logits = &case["last_logits"];
        let (top, values) = (ids(&logits["ids"]), &logits["values"]);
        let normaliser = logits["logsumexp"].as_f64().expect("a number");
        while engine.has_work() {
            for event in pollster::block_on(engine.step()).expect("the device works") {
                let EventKind::Token { logprobs: Some(logprobs), .. } = event.kind else { continue };
                for (rank, (token, logprob)) in logprobs.top.iter().enumerate().take(10) {
                    let expected = values[rank].as_f64().expect("a number") - normaliser;
                    assert!((f64::from(*logprob) - expected).abs() < 2e-3, "{model}, case {index}, rank {rank}");
                    assert_eq!(*token, top[rank], "{model}, case {index}, rank {rank}");
                }
            }
        }
    }
}

/// Quantised weights as they are, through wgpu. Software adapters are slow, so only some short cases begin.
fn check_packed(model: &str, reference: &str) {
    const TOKENS: usize = 6;
    let Some(path) = fetched(model) else { return };
    for_each_device(|device| {
        if !holds_packed_weights(device) {
            return;
        }
        let setup = Setup { packed: true, num_blocks: 64, ..Setup::default() };
        let mut engine = engine(&path, &setup, device);
        let mut cases = cases(reference);
        cases.retain(|case| ids(&case["prompt"]).len() <= 20);
        assert!(cases.len() >= 3);
        let (prompts, expected): (Vec<_>, Vec<_>) =
            cases.iter().map(|case| (ids(&case["prompt"]), ids(&case["greedy"])[..TOKENS].to_vec())).unzip();
        let requests = prompts.iter().map(|prompt| greedy(prompt, TOKENS as u32)).collect();
        assert_eq!(run_requests(&mut engine, requests), expected, "{model}");
    });
}

#[test]
fn packed_smollm2_gives_the_tokens_of_transformers() {
    check_packed("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2.json");
}

#[test]
fn packed_gemma3_gives_the_tokens_of_transformers() {
    check_packed("gemma-3-270m-Q4_K_M.gguf", "gemma3.json");
}

#[test]
fn smollm2_agrees_with_transformers() {
    check("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2.json");
}

#[test]
fn gemma3_agrees_with_transformers() {
    check("gemma-3-270m-Q4_K_M.gguf", "gemma3.json");
}
