//! What requests learn about their prompts equals the reference of PyTorch transformers, whole, in chunks, with a warm
//! prefix cache and next to other requests, on every device of this machine.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use common::{Reference, Setup, engine, fixture_models, greedy};
use firebrick_engine::{
    Engine, EventKind, FinishReason, Pooling, PromptOutput, PromptResult, Request, RequestId, TokenId, TokenLogprobs,
};
use firebrick_executor::LocalExecutor;
use firebrick_ops::testing::for_each_device;

/// 32-bit arithmetic in another order, as in the comparison of logits.
const TOLERANCE: f32 = 2e-5;
const COUNT: u32 = 5;

/// Runs requests together and returns the results of each one's prompt.
fn run(engine: &mut Engine<LocalExecutor>, requests: &[Request]) -> Vec<Vec<PromptResult>> {
    let add = |request: &Request| engine.add_request(request.clone()).expect("the request is accepted");
    let ids: Vec<RequestId> = requests.iter().map(add).collect();
    let mut results: BTreeMap<RequestId, Vec<PromptResult>> = BTreeMap::new();
    while engine.has_work() {
        for event in pollster::block_on(engine.step()).expect("the device works") {
            match event.kind {
                EventKind::Prompt(result) => results.entry(event.request).or_default().push(result),
                EventKind::Finished { reason } => {
                    assert!(matches!(reason, FinishReason::Length | FinishReason::Stop(_)), "{reason:?}");
                }
                _ => {}
            }
        }
    }
    ids.iter().map(|id| results.remove(id).unwrap_or_default()).collect()
}

fn asking(prompt: &[TokenId], max_tokens: u32, output: PromptOutput) -> Request {
    Request { prompt_output: Some(output), ..greedy(prompt, max_tokens) }
}

/// The engine as it is, in chunks of seven tokens, and with what it has computed before.
fn each_way(path: &Path, device: &Device, mut check: impl FnMut(&str, &mut Engine<LocalExecutor>)) {
    check("whole", &mut engine(path, &Setup::default(), device));
    let chunked = Setup { max_num_batched_tokens: 7, max_num_seqs: 5, ..Setup::default() };
    check("in chunks of 7 tokens", &mut engine(path, &chunked, device));
    let mut cached = engine(path, &Setup { enable_prefix_caching: true, ..Setup::default() }, device);
    check("with a cold cache", &mut cached);
    check("with a warm cache", &mut cached);
}

/// The right answer for the token after a row of logits.
fn right(logits: &[f32], token: TokenId) -> TokenLogprobs {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    let logprob = |token: TokenId| (f64::from(logits[token as usize] - largest) - total.ln()) as f32;
    let mut order: Vec<TokenId> = (0..logits.len() as TokenId).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    TokenLogprobs {
        chosen: logprob(token),
        rank: 1 + order.iter().position(|other| *other == token).expect("in the vocabulary") as u32,
        top: order.into_iter().take(COUNT as usize).map(|token| (token, logprob(token))).collect(),
    }
}

#[test]
fn log_probabilities_of_prompts_equal_the_reference() {
    for_each_device(|device| {
        for folder in fixture_models() {
            let reference = Reference::open(&folder.join("reference.safetensors"));
            let prompts: Vec<Vec<TokenId>> =
                (0..reference.num_prompts()).map(|number| reference.words(&format!("prompt.{number}"))).collect();
            let requests: Vec<Request> =
                prompts.iter().map(|prompt| asking(prompt, 2, PromptOutput::Logprobs(COUNT))).collect();
            each_way(&folder, device, |way, engine| {
                for (number, results) in run(engine, &requests).into_iter().enumerate() {
                    let what = format!("{}, prompt {number}, {way}", folder.display());
                    let entries: Vec<(TokenId, TokenLogprobs)> = results
                        .into_iter()
                        .flat_map(|result| match result {
                            PromptResult::Logprobs(entries) => entries,
                            PromptResult::HiddenSum { .. } => panic!("log-probabilities were asked for"),
                        })
                        .collect();
                    let logits = reference.floats(&format!("logits.{number}"));
                    let rows = logits.chunks(logits.len() / prompts[number].len());
                    assert_eq!(entries.len(), prompts[number].len() - 1, "{what}");
                    for (place, ((token, got), row)) in entries.iter().zip(rows).enumerate() {
                        assert_eq!(*token, prompts[number][place + 1], "{what}, place {place}");
                        check(&format!("{what}, place {place}"), got, row, *token);
                    }
                }
            });
        }
    });
}

/// Logits that are nearly equal may change places.
fn check(what: &str, got: &TokenLogprobs, logits: &[f32], token: TokenId) {
    let right = right(logits, token);
    let scale = logits.iter().fold(1.0f32, |largest, logit| largest.max(logit.abs()));
    let near = |a: f32, b: f32| (a - b).abs() <= 2.0 * TOLERANCE * scale;
    assert!(near(got.chosen, right.chosen), "{what}: {} instead of {}", got.chosen, right.chosen);
    assert_eq!(got.top.len(), right.top.len(), "{what}");
    for ((id, logprob), (_, right_logprob)) in got.top.iter().zip(&right.top) {
        assert!(near(*logprob, *right_logprob), "{what}: token {id} has {logprob}, right is {right_logprob}");
    }
    let own = logits[token as usize];
    let (above, near_above) = (own + TOLERANCE * scale, own - TOLERANCE * scale);
    let surely_before = logits.iter().filter(|logit| **logit > above).count() as u32;
    let perhaps_before = logits.iter().filter(|logit| **logit > near_above).count() as u32;
    let rank = surely_before + 1..=perhaps_before.max(surely_before + 1);
    assert!(rank.contains(&got.rank), "{what}: rank {}, right is {}", got.rank, right.rank);
}

/// The mean of what the results of a prompt sum up.
fn mean(results: Vec<PromptResult>) -> (Vec<f32>, u32) {
    let (mut total, mut states) = (Vec::new(), 0);
    for result in results {
        let PromptResult::HiddenSum { sum, count } = result else { panic!("hidden states were asked for") };
        total.resize(sum.len(), 0.0);
        total.iter_mut().zip(sum).for_each(|(total, value)| *total += value);
        states += count;
    }
    (total.into_iter().map(|total| total / states as f32).collect(), states)
}

#[test]
fn pooled_hidden_states_equal_the_reference() {
    for_each_device(|device| {
        for folder in fixture_models() {
            let reference = Reference::open(&folder.join("reference.safetensors"));
            let prompts: Vec<Vec<TokenId>> =
                (0..reference.num_prompts()).map(|number| reference.words(&format!("prompt.{number}"))).collect();
            each_way(&folder, device, |way, engine| {
                for pooling in [Pooling::Mean, Pooling::Last, Pooling::Cls] {
                    let asked = |prompt: &Vec<TokenId>| asking(prompt, 0, PromptOutput::Pooled(pooling));
                    let requests: Vec<Request> = prompts.iter().map(asked).collect();
                    for (number, results) in run(engine, &requests).into_iter().enumerate() {
                        let what = format!("{}, prompt {number}, {pooling:?}, {way}", folder.display());
                        let length = prompts[number].len();
                        let states = reference.floats(&format!("states.{number}"));
                        let size = states.len() / length;
                        let pooled = match pooling {
                            Pooling::Mean => 0..length,
                            Pooling::Last => length - 1..length,
                            Pooling::Cls => 0..1,
                        };
                        let (got, count) = mean(results);
                        assert_eq!((got.len(), count as usize), (size, pooled.len()), "{what}");
                        let scale = states.iter().fold(1.0f32, |largest, value| largest.max(value.abs()));
                        for (place, got) in got.into_iter().enumerate() {
                            let sum: f64 = pooled.clone().map(|row| f64::from(states[row * size + place])).sum();
                            let right = (sum / pooled.len() as f64) as f32;
                            let error = (got - right).abs();
                            assert!(error <= TOLERANCE * scale, "{what}: {got} at {place}, right is {right}");
                        }
                    }
                }
            });
        }
    });
}
