//! How to load and run a model.

use std::path::PathBuf;

use firebrick_checkpoint::Dtype;
use firebrick_engine::SchedulingPolicy;
use firebrick_ops::Backend;

/// Which device runs the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA where there is an NVIDIA GPU, else the CPU.
    Auto,
    /// This one, or an error.
    Backend(Backend),
}

/// Form of keys and values in the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvCacheDtype {
    /// That in which the device computes.
    #[default]
    Auto,
    /// FP8 with 4 bits of exponent and 3 of fraction: half or a quarter of the memory, and less exact.
    Fp8E4m3,
}

/// Everything that can be chosen; the defaults serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// The device.
    pub device: DeviceChoice,
    /// Form of the weights; `None`: the checkpoint's, or the nearest that the device has.
    pub dtype: Option<Dtype>,
    /// Form of keys and values.
    pub kv_cache_dtype: KvCacheDtype,
    /// Prompt and output together; `None`: what the model was trained for.
    pub max_model_len: Option<usize>,
    /// Where the length does not fit into memory, take the longest that does instead of refusing.
    pub fit_model_len: bool,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Sequences in one batch; `None`: 256, on GPUs of Hopper and later 1024 from 70 GiB on, but no more than tokens.
    pub max_num_seqs: Option<u32>,
    /// Tokens in one batch; `None`: 2048, on the CPU 512, on GPUs of Hopper and later 8192 from 70 GiB on and 16384 from 160 GiB on.
    pub max_num_batched_tokens: Option<u32>,
    /// Requests waiting for their first step.
    pub max_waiting: u32,
    /// Share of the device's memory that may be used.
    pub gpu_memory_utilization: f32,
    /// Memory of the device, for further models on it; `None`: measured.
    pub memory_bytes: Option<u64>,
    /// What other models on the device take, or will.
    pub others_bytes: u64,
    /// KV caches that the device is to hold, this model's included; each has an equal part of what weights leave.
    pub num_kv_caches: u32,
    /// How many of them have been made.
    pub num_kv_caches_made: u32,
    /// Bytes of KV cache; `None`: what is left (on the CPU at most 4 GiB for all models).
    pub kv_cache_memory_bytes: Option<u64>,
    /// Blocks of KV cache, whatever fits.
    pub num_gpu_blocks_override: Option<u32>,
    /// Share blocks between requests with equal prefixes.
    pub enable_prefix_caching: bool,
    /// Cut long prompts into several steps.
    pub enable_chunked_prefill: bool,
    /// Replay steps as graphs instead of launching every kernel by itself, where the device is one that has them.
    pub graphs: bool,
    /// Give a request the same bits in every company, at the price of speed. For the whole process.
    pub deterministic: bool,
    /// Run the kernels for cards of this compute capability (10 · major + minor), on CUDA; `None`: the card's own.
    pub cuda_arch_path: Option<u32>,
    /// A folder of kernels that were compiled ahead, for CUDA; the first one that is given counts for the whole process.
    /// What is not there is compiled where there is a compiler.
    pub kernels: Option<PathBuf>,
    /// How the weights must be quantised: `gguf`, `awq`, `gptq`, `compressed-tensors` or `fp8`, or `none` where they may not
    /// be. `None`: whatever the files hold. `fp8` with plain weights, or a GGUF file's, rounds those of linear layers to FP8
    /// when they are loaded, on CUDA.
    pub quantization: Option<String>,
    /// Make weights up instead of reading them: for measuring.
    pub dummy_weights: bool,
    /// Which waiting request runs first.
    pub policy: SchedulingPolicy,
    /// Seeds of requests that bring none derive from this.
    pub seed: u64,
    /// Where the tokenizer and what belongs to it come from, a folder or a `.gguf` file; `None`: the model.
    pub tokenizer: Option<PathBuf>,
    /// A chat template that replaces the model's.
    pub chat_template: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: DeviceChoice::Auto,
            dtype: None,
            kv_cache_dtype: KvCacheDtype::Auto,
            max_model_len: None,
            fit_model_len: false,
            block_size: 16,
            max_num_seqs: None,
            max_num_batched_tokens: None,
            max_waiting: 4096,
            gpu_memory_utilization: 0.9,
            memory_bytes: None,
            others_bytes: 0,
            num_kv_caches: 1,
            num_kv_caches_made: 0,
            kv_cache_memory_bytes: None,
            num_gpu_blocks_override: None,
            enable_prefix_caching: true,
            enable_chunked_prefill: true,
            graphs: true,
            deterministic: false,
            cuda_arch_path: None,
            kernels: None,
            quantization: None,
            dummy_weights: false,
            policy: SchedulingPolicy::Fcfs,
            seed: 0,
            tokenizer: None,
            chat_template: None,
        }
    }
}
