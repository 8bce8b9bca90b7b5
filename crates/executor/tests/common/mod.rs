//! What the model tests share: engines on real devices, fixtures, and runs of many requests.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use firebrick_checkpoint::{Checkpoint, Dtype, KvDtype};
use firebrick_engine::{
    Engine, EngineConfig, EventKind, FinishReason, Pipeline, Request, SamplingParams, SchedulingPolicy, TokenId,
};
use firebrick_executor::{CacheOptions, LocalExecutor};
use firebrick_model::{Fp8, LoadOptions};
use firebrick_ops::{Backend, backend_of};
use safetensors::SafeTensors;

#[path = "../../../../tests/support/fetched.rs"]
pub mod fetched;

pub const BLOCK_SIZE: u32 = 16;

/// The tiny checkpoints with stored references.
pub fn fixture_models() -> Vec<PathBuf> {
    fixtures("models")
}

/// The tiny checkpoints whose weights are packed into fewer bits; their references are those of the dequantised weights.
pub fn quantised_models() -> Vec<PathBuf> {
    fixtures("quantised")
}

fn fixtures(kind: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(kind);
    let entries = std::fs::read_dir(root).expect("the fixtures are in the repository");
    let mut folders: Vec<PathBuf> =
        entries.map(|entry| entry.expect("readable").path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    assert!(!folders.is_empty(), "no fixtures");
    folders
}

/// Whether long tests run at their full length, as before a release: `FIREBRICK_TEST_LENGTH=full`.
pub fn is_full_length() -> bool {
    std::env::var("FIREBRICK_TEST_LENGTH").is_ok_and(|value| value == "full")
}

/// What a test varies about an engine.
#[derive(Clone, Debug)]
pub struct Setup {
    pub dtype: Dtype,
    pub kv_dtype: Option<KvDtype>,
    pub packed: bool,
    pub fp8: Fp8,
    pub num_blocks: u32,
    pub max_num_seqs: u32,
    pub max_num_batched_tokens: u32,
    pub enable_prefix_caching: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            dtype: Dtype::F32,
            kv_dtype: None,
            packed: false,
            fp8: Fp8::Never,
            num_blocks: 256,
            max_num_seqs: 64,
            max_num_batched_tokens: 2048,
            enable_prefix_caching: false,
        }
    }
}

/// On CUDA recording takes a while, and is asked for.
pub fn records_on_cuda(device: &Device) -> bool {
    backend_of(device) == Backend::Cuda && std::env::var_os("FIREBRICK_TEST_CUDA_GRAPHS").is_some()
}

pub fn engine(path: &Path, setup: &Setup, device: &Device) -> Engine<LocalExecutor> {
    let checkpoint = Checkpoint::open(path).expect("the model opens");
    let config = checkpoint.config();
    let max_model_len = config.max_position_embeddings.min(4096);
    let options = LoadOptions { dtype: setup.dtype, packed: setup.packed, fp8: setup.fp8, max_model_len };
    let cache = CacheOptions {
        num_blocks: setup.num_blocks,
        dtype: setup.kv_dtype.unwrap_or(setup.dtype.into()),
        max_num_seqs: setup.max_num_seqs,
        block_size: BLOCK_SIZE,
        graphs: backend_of(device) == Backend::Wgpu || records_on_cuda(device),
    };
    let executor = LocalExecutor::load(&checkpoint, options, cache, device, &mut |_| ()).expect("the weights load");
    let engine_config = EngineConfig {
        block_size: BLOCK_SIZE,
        max_model_len: max_model_len as u32,
        max_num_seqs: setup.max_num_seqs,
        max_num_batched_tokens: setup.max_num_batched_tokens,
        max_waiting: 1024,
        max_choices: 8,
        vocab_size: config.vocab_size as u32,
        enable_prefix_caching: setup.enable_prefix_caching,
        enable_chunked_prefill: true,
        policy: SchedulingPolicy::Fcfs,
        seed: 0,
        hash_key: [1, 2],
    };
    Engine::new(engine_config, executor).expect("a valid configuration")
}

/// Runs requests to their end, all together; one token list per request.
pub fn run_requests(engine: &mut Engine<LocalExecutor>, requests: Vec<Request>) -> Vec<Vec<TokenId>> {
    let answers = run_with_logprobs(engine, requests);
    answers.into_iter().map(|answer| answer.into_iter().map(|(token, _)| token).collect()).collect()
}

/// The same, with the bits of each token's log-probability where the request asked for it.
pub fn run_with_logprobs(
    engine: &mut Engine<LocalExecutor>,
    requests: Vec<Request>,
) -> Vec<Vec<(TokenId, Option<u32>)>> {
    let ids: Vec<_> =
        requests.into_iter().map(|request| engine.add_request(request).expect("the request is accepted")).collect();
    let mut answers = vec![Vec::new(); ids.len()];
    let mut pipeline = Pipeline::new();
    while engine.has_work() {
        for event in pollster::block_on(pipeline.step(engine)).expect("the device works") {
            let index = ids.iter().position(|id| *id == event.request).expect("one of ours");
            match event.kind {
                EventKind::Token { token, logprobs, .. } => {
                    answers[index].push((token, logprobs.map(|logprobs| logprobs.chosen.to_bits())));
                }
                EventKind::Finished { reason } => {
                    assert!(matches!(reason, FinishReason::Length | FinishReason::Stop(_)), "{reason:?}");
                }
                EventKind::Scheduled { .. } | EventKind::Prompt(_) => {}
            }
        }
    }
    answers
}

pub fn greedy(prompt: &[TokenId], max_tokens: u32) -> Request {
    let params = SamplingParams { max_tokens: Some(max_tokens), ignore_eos: true, ..SamplingParams::greedy() };
    Request::new(prompt.to_vec(), params)
}

/// The 32-bit tensors of a safetensors file.
pub struct Reference(Vec<u8>);

impl Reference {
    pub fn open(path: &Path) -> Self {
        Self(std::fs::read(path).expect("the reference is in the repository"))
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_bits).collect()
    }

    pub fn words(&self, name: &str) -> Vec<u32> {
        let tensors = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        let tensor = tensors.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        tensor.data().as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    }

    pub fn num_prompts(&self) -> usize {
        let tensors = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        tensors.names().into_iter().filter(|name| name.starts_with("prompt.")).count()
    }
}
