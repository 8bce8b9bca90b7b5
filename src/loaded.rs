//! A model ready to run: engine, tokenizer and everything a front end needs to know.

use std::path::Path;
use std::time::{Duration, Instant};

use firebrick_checkpoint::{Checkpoint, Dtype, GenerationConfig, MemoryPlan, ModelConfig, PlanOptions};
use firebrick_engine::{Engine, EngineConfig};
use firebrick_executor::{CacheOptions, LocalExecutor};
use firebrick_model::{Fp8, KernelOptions, LoadOptions, Progress, burns_part, step_kernels};
use firebrick_ops::{Backend, check_kernels, compile_kernels, has_kernel_compiler};
use firebrick_text::{ChatTemplate, Tokenizer};

use crate::forms::{check_quantization, choose_device, choose_dtype, choose_fp8, keeps_packed};
use crate::memory::{choose_model_len, memory_plan, num_blocks, num_blocks_max};
use crate::tokenizer::{check_tokenizer, special_tokens, tokenizer};
use crate::{Error, Options};

/// A model on a device, with its engine.
pub struct Loaded {
    /// The idle engine.
    pub engine: Engine<LocalExecutor>,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// The model's chat template, or the one from the options.
    pub chat_template: Option<ChatTemplate>,
    /// The model's shape.
    pub config: ModelConfig,
    /// The model's own sampling defaults.
    pub generation: GenerationConfig,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// What was loaded where.
    pub report: LoadReport,
}

/// What was loaded where, and how long it took.
#[derive(Clone, Debug)]
pub struct LoadReport {
    /// The device's backend.
    pub backend: Backend,
    /// Form of the weights on the device.
    pub dtype: Dtype,
    /// Which linear layers' weights are in FP8 instead.
    pub fp8: Fp8,
    /// Prompt and output together, at most.
    pub max_model_len: usize,
    /// Where the memory goes.
    pub plan: MemoryPlan,
    /// Blocks of KV cache.
    pub num_blocks: u32,
    /// From opening the files to an idle engine.
    pub duration: Duration,
}

impl LoadReport {
    /// The form of the weights, for people.
    pub fn weights_form(&self) -> String {
        match (self.fp8, self.plan.options.packed_weight_bytes) {
            (Fp8::All, _) => format!("{}, linear layers in fp8", self.dtype),
            (_, Some(_)) => format!("{}, quantised weights as in the file", self.dtype),
            (_, None) => self.dtype.to_string(),
        }
    }
}

impl Loaded {
    /// Loads the model at `path`: a folder or a `.gguf` file. `progress` is called with bytes as they reach the device.
    pub fn load(path: &Path, options: &Options, progress: Progress) -> Result<Self, Error> {
        let checkpoint = match options.dummy_weights {
            true => Checkpoint::open_with_dummy_weights(path)?,
            false => Checkpoint::open(path)?,
        };
        check_quantization(&checkpoint, options)?;
        let checkpoint = match &options.tokenizer {
            Some(path) => checkpoint.with_tokenizer_of(path)?,
            None => checkpoint,
        };
        let tokenizer = tokenizer(&checkpoint)?;
        check_tokenizer(&tokenizer, checkpoint.config(), options)?;
        let source = options.chat_template.clone().or_else(|| checkpoint.chat_template());
        let special = special_tokens(&checkpoint);
        let chat_template = source.map(|source| ChatTemplate::new(&source, special)).transpose()?;
        let (engine, report) = load_engine(&checkpoint, options, progress)?;
        let config = checkpoint.config().clone();
        let generation = checkpoint.generation_config();
        let eos_token_ids = checkpoint.end_tokens();
        Ok(Self { engine, tokenizer, chat_template, config, generation, eos_token_ids, report })
    }
}

/// Loads a model's weights and makes its engine, without its tokenizer.
pub fn load_engine(
    checkpoint: &Checkpoint,
    options: &Options,
    progress: Progress,
) -> Result<(Engine<LocalExecutor>, LoadReport), Error> {
    let started = Instant::now();
    let config = checkpoint.config();
    let (backend, device) = choose_device(options)?;
    if backend == Backend::Cuda {
        device.memory_cleanup(); // the runtime keeps what an engine before this one has left
    }
    let dtype = choose_dtype(options.dtype, config.dtype, &device)?;
    let mut max_model_len = choose_model_len(options.max_model_len, config)?;
    let mut plan = memory_plan(checkpoint, options, (backend, &device), dtype, max_model_len)?;
    let is_given = options.num_gpu_blocks_override.is_some() || options.kv_cache_memory_bytes.is_some();
    if !is_given && !options.fit_model_len {
        plan.check().map_err(Box::new)?;
    }
    let num_blocks_max = num_blocks_max(config, (plan.options.kv_dtype, options.block_size), &device);
    let num_blocks = match options.num_gpu_blocks_override {
        Some(_) => num_blocks(&plan, options, backend)?,
        None => num_blocks(&plan, options, backend)?.min(num_blocks_max),
    };
    let longest = num_blocks as usize * options.block_size as usize;
    if (2..max_model_len).contains(&longest) {
        if !options.fit_model_len {
            tracing::warn!(
                "the KV cache has room for {longest} tokens, so that no request may have more, of {max_model_len} that the \
                 model may have: --kv-cache-memory-bytes makes it larger, --max-model-len auto takes what there is"
            );
        }
        max_model_len = longest;
        plan = MemoryPlan::new(config, checkpoint.num_parameters(), PlanOptions { max_model_len, ..plan.options });
    }
    if !is_given {
        plan.check().map_err(Box::new)?;
    }
    let fp8 = choose_fp8(checkpoint, options, &device, dtype)?;
    if backend == Backend::Cuda {
        prepare_cuda_kernels(config, &plan.options, options, fp8)?;
    }
    let load = LoadOptions { dtype, packed: keeps_packed(options, &device), fp8, max_model_len };
    let cache = CacheOptions {
        num_blocks,
        block_size: options.block_size,
        dtype: plan.options.kv_dtype,
        max_num_seqs: clamp(plan.options.max_num_seqs),
        graphs: options.graphs,
    };
    let executor = LocalExecutor::load(checkpoint, load, cache, &device, progress)?;
    let engine = Engine::new(engine_config(options, &plan.options, config), executor)?;
    let report = LoadReport { backend, dtype, fp8, max_model_len, plan, num_blocks, duration: started.elapsed() };
    Ok((engine, report))
}

/// What a model takes beside its KV cache: weights and the largest batch's intermediate values, by its headers alone.
pub fn fixed_bytes(path: &Path, options: &Options) -> Result<u64, Error> {
    let checkpoint = match options.dummy_weights {
        true => Checkpoint::open_with_dummy_weights(path)?,
        false => Checkpoint::open(path)?,
    };
    let config = checkpoint.config();
    let (backend, device) = choose_device(options)?;
    let dtype = choose_dtype(options.dtype, config.dtype, &device)?;
    let max_model_len = choose_model_len(options.max_model_len, config)?;
    let plan = memory_plan(&checkpoint, options, (backend, &device), dtype, max_model_len)?;
    Ok(plan.weight_bytes + plan.activation_bytes)
}

/// Compiles what is not compiled yet. On a machine without a compiler, every kernel must have been compiled before.
fn prepare_cuda_kernels(config: &ModelConfig, plan: &PlanOptions, options: &Options, fp8: Fp8) -> Result<(), Error> {
    let kernels = |fp8_weights: bool| {
        let PlanOptions { dtype, kv_dtype, block_size, .. } = *plan;
        let deterministic = options.deterministic;
        step_kernels(config, KernelOptions { dtype, kv_dtype, block_size, deterministic, fp8_weights })
    };
    compile_kernels(&kernels(fp8 != Fp8::Never));
    if has_kernel_compiler() {
        return Ok(());
    }
    check_kernels(&kernels(false))?; // where there are weights in FP8, it is known that their kernels are there
    match burns_part(config) {
        None => Ok(()),
        Some(part) => Err(Error::Option(format!(
            "a {} model cannot be run here: {part} is computed by kernels of Burn, which cannot be compiled ahead, and the \
             CUDA toolkit (NVRTC and its headers), which compiles them at the start, is not there; install it and set CUDA_PATH",
            config.architecture.name()
        ))),
    }
}

fn clamp(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn engine_config(options: &Options, plan: &PlanOptions, config: &ModelConfig) -> EngineConfig {
    EngineConfig {
        block_size: options.block_size,
        max_model_len: clamp(plan.max_model_len),
        max_num_seqs: clamp(plan.max_num_seqs),
        max_num_batched_tokens: clamp(plan.max_num_batched_tokens),
        max_waiting: options.max_waiting,
        max_choices: 128.min(clamp(plan.max_num_seqs)),
        vocab_size: clamp(config.vocab_size),
        enable_prefix_caching: options.enable_prefix_caching,
        enable_chunked_prefill: options.enable_chunked_prefill,
        policy: options.policy,
        seed: options.seed,
        hash_key: random_key(),
    }
}

/// A key that clients cannot know: the standard library's hasher keys are seeded by the operating system.
fn random_key() -> [u64; 2] {
    use std::hash::{BuildHasher, RandomState};
    [RandomState::new().hash_one(0u8), RandomState::new().hash_one(1u8)]
}
