//! A request's tokens do not depend on its company: alone, in a batch of 64, chunked, after preemption, with a prefix hit
//! and on a second run they are the same, greedy and with seeded sampling, on every device; and so are the bits of
//! log-probabilities.

mod common;

use burn::tensor::Device;
use common::fetched::fetched;
use common::{Setup, engine, fixture_models, is_full_length, records_on_cuda, run_with_logprobs};
use firebrick_checkpoint::{Dtype, KvDtype};
use firebrick_engine::{Request, SamplingParams, TokenId};
use firebrick_ops::testing::{Seeded, for_each_device};
use firebrick_ops::{Backend, backend_of, holds_fp8_cache, use_batch_invariant_kernels};
use std::ops::RangeInclusive;
use std::path::Path;

/// Requests with prompts of so many tokens of their own; every second one has twenty more that it shares with the others.
fn requests(vocab_size: u64, count: u64, own: RangeInclusive<u64>, tokens: u32) -> Vec<Request> {
    let mut seeded = Seeded::new(11);
    let shared: Vec<TokenId> = (0..20).map(|_| (4 + seeded.next_u64() % (vocab_size - 4)) as u32).collect();
    (0..count)
        .map(|index| {
            let length = own.start() + seeded.next_u64() % (own.end() - own.start() + 1);
            let ids = (0..length).map(|_| (4 + seeded.next_u64() % (vocab_size - 4)) as u32);
            let prompt = if index % 2 == 0 { shared.iter().copied().chain(ids).collect() } else { ids.collect() };
            let params = SamplingParams {
                temperature: if index % 3 == 0 { 0.0 } else { 0.9 },
                top_p: if index % 4 == 0 { 0.9 } else { 1.0 },
                top_k: (index % 5 == 0).then_some(20),
                repetition_penalty: if index % 7 == 0 { 1.1 } else { 1.0 },
                seed: Some(index),
                max_tokens: Some(tokens),
                ignore_eos: true,
                ..SamplingParams::default()
            };
            Request::new(prompt, params)
        })
        .collect()
}

/// Checks that a request has the same tokens in every kind of company, and that the log-probabilities it asked for have the
/// same bits.
fn check(path: &Path, (dtype, kv_dtype): (Dtype, KvDtype), requests: &[Request], device: &Device) {
    let mut requests = requests.to_vec();
    if is_batch_invariant(device) {
        requests.iter_mut().step_by(2).for_each(|request| request.params.logprobs = Some(1));
    }
    let setup = Setup { dtype, kv_dtype: Some(kv_dtype), num_blocks: 1024, ..Setup::default() };
    let mut plain = engine(path, &setup, device);
    let alone = requests.iter().map(|request| run_with_logprobs(&mut plain, vec![request.clone()]).remove(0));
    let alone: Vec<_> = alone.collect();
    assert_eq!(run_with_logprobs(&mut plain, requests.to_vec()), alone, "in a batch");
    assert_eq!(run_with_logprobs(&mut plain, requests.to_vec()), alone, "on a second run");
    // There decode steps are replays, but for the first of each shape, so that both ways gave these tokens.
    assert_eq!(plain.executor().num_graphs() > 0, backend_of(device) == Backend::Wgpu || records_on_cuda(device));

    let chunked = Setup { max_num_batched_tokens: 7, max_num_seqs: 5, ..setup.clone() };
    assert_eq!(
        run_with_logprobs(&mut engine(path, &chunked, device), requests.to_vec()),
        alone,
        "in chunks of 7 tokens"
    );

    let longest = requests.iter().map(|r| r.prompt.len() as u32 + r.params.max_tokens.unwrap_or(0)).max().unwrap_or(0);
    let tiny = Setup { num_blocks: longest.div_ceil(common::BLOCK_SIZE) + 1, ..setup.clone() };
    let mut crowded = engine(path, &tiny, device);
    assert_eq!(run_with_logprobs(&mut crowded, requests.to_vec()), alone, "with preemption");
    assert!(crowded.stats().preemptions > 0, "the pool of {} blocks is meant to be too small", tiny.num_blocks);

    let cached = Setup { enable_prefix_caching: true, ..setup };
    let mut cached = engine(path, &cached, device);
    run_with_logprobs(&mut cached, requests.to_vec());
    assert_eq!(run_with_logprobs(&mut cached, requests.to_vec()), alone, "with prefix hits");
    assert!(cached.stats().prefix_cache_hits > 0, "the second round is meant to hit the prefix cache");
}

/// Whether log-probabilities have the same bits in every company: on CUDA only with the kernels for it, which
/// `FIREBRICK_TEST_BATCH_INVARIANT` turns on.
fn is_batch_invariant(device: &Device) -> bool {
    let is_on = std::env::var_os("FIREBRICK_TEST_BATCH_INVARIANT").is_some();
    if is_on {
        use_batch_invariant_kernels();
    }
    is_on || backend_of(device) != Backend::Cuda
}

#[test]
fn tiny_models_give_the_same_tokens_in_any_company() {
    for_each_device(|device| {
        // Software Vulkan takes milliseconds for each dispatch: fewer, shorter requests there.
        let requests = match (backend_of(device), is_full_length()) {
            (Backend::Wgpu, false) => requests(128, 6, 9..=14, 10),
            (Backend::Wgpu, true) => requests(128, 8, 1..=20, 24),
            _ => requests(128, 64, 1..=40, 24),
        };
        for folder in fixture_models() {
            eprintln!("{}", folder.display());
            check(&folder, (Dtype::F32, Dtype::F32.into()), &requests, device);
        }
    });
}

#[test]
fn tiny_models_with_a_cache_of_eight_bits_give_the_same_tokens_in_any_company() {
    for_each_device(|device| {
        if !holds_fp8_cache(device) {
            return;
        }
        let requests = requests(128, 24, 1..=40, 24);
        for folder in fixture_models() {
            eprintln!("{}", folder.display());
            check(&folder, (Dtype::F32, KvDtype::E4m3), &requests, device);
        }
    });
}

#[test]
fn a_real_model_gives_the_same_tokens_in_any_company() {
    let Some(path) = fetched("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    // So few tokens still carry sequences over the ends of their blocks, which is where a pool that is too small preempts.
    let tokens = if is_full_length() { 24 } else { 7 };
    for_each_device(|device| match backend_of(device) {
        Backend::Wgpu => check(&path, (Dtype::F16, Dtype::F16.into()), &requests(49152, 4, 11..=12, tokens), device),
        Backend::Cuda if is_batch_invariant(device) => {
            for dtype in [Dtype::F16, Dtype::BF16] {
                check(&path, (dtype, dtype.into()), &requests(49152, 64, 1..=300, 40), device);
            }
        }
        // There the last bits of more than 16 rows depend on their number, and near ties of 16-bit logits with them.
        Backend::Cuda => eprintln!("not claimed on cuda without FIREBRICK_TEST_BATCH_INVARIANT"),
        Backend::Cpu => check(&path, (Dtype::F16, Dtype::F16.into()), &requests(49152, 64, 1..=12, tokens), device),
    });
}
