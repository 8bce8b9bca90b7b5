//! A model ready to run: engine, tokenizer and everything a front end needs to know.

use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device};
use firebrick_checkpoint::{
    BatchLimits, Checkpoint, Dtype, GenerationConfig, GgufTokenizer, KvDtype, MemoryPlan, ModelConfig, PlanOptions,
    TokenizerSource,
};
use firebrick_engine::{Engine, EngineConfig};
use firebrick_executor::{CacheOptions, LocalExecutor, available_host_memory};
use firebrick_model::{Fp8, KernelOptions, KvCache, LoadOptions, Progress, burns_part, step_kernels};
use firebrick_ops::{
    Backend, activation_dtype, backend_of, check_kernels, compile_kernels, compute_capability, computes_in,
    device_memory, free_device_memory, has_kernel_compiler, holds_fp8_cache, holds_fp8_weights, holds_packed_weights,
    open_device, use_batch_invariant_kernels, use_cuda_kernels_of, use_kernels_in,
};
use firebrick_text::{ChatTemplate, GgufVocabulary, SpecialTokens, Tokenizer};

use crate::{DeviceChoice, Error, KvCacheDtype, Options};

/// Most memory that the KV cache takes on the CPU unless told otherwise.
const CPU_KV_BYTES_MAX: u64 = 4 << 30;

/// The same through wgpu, which does not say how much memory an adapter has.
const WGPU_KV_BYTES_MAX: u64 = 1 << 30;

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
    let longest = usize::try_from(plan.kv_tokens()).unwrap_or(usize::MAX);
    if options.fit_model_len && longest >= 2 && longest < max_model_len {
        max_model_len = longest;
        plan = MemoryPlan::new(config, checkpoint.num_parameters(), PlanOptions { max_model_len, ..plan.options });
    }
    let num_blocks = match options.num_gpu_blocks_override {
        Some(blocks) => blocks,
        None => num_blocks(&plan, options, backend)?.min(num_blocks_max(
            config,
            (plan.options.kv_dtype, options.block_size),
            &device,
        )),
    };
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

/// The weights are what the option says, where it says anything.
fn check_quantization(checkpoint: &Checkpoint, options: &Options) -> Result<(), Error> {
    let Some(wanted) = options.quantization.as_deref() else { return Ok(()) };
    let found = checkpoint.quantization_method().unwrap_or("none");
    if wanted.eq_ignore_ascii_case(found) || makes_fp8(checkpoint, options) {
        return Ok(());
    }
    Err(Error::Option(format!(
        "--quantization is {wanted}, but the model's weights are {}; leave it out: the files say how they are to be read",
        if found == "none" { "not quantised, and are not quantised here" } else { found }
    )))
}

/// Whether linear layers are to be rounded to FP8: those that the file holds in a form that CUDA computes with in 16 bits.
fn makes_fp8(checkpoint: &Checkpoint, options: &Options) -> bool {
    let is_wanted = options.quantization.as_deref().is_some_and(|wanted| wanted.eq_ignore_ascii_case("fp8"));
    is_wanted && matches!(checkpoint.quantization_method(), None | Some("gguf"))
}

/// Which linear layers' weights are in FP8: on devices that are faster with it those that the file has so, and all if that is
/// asked for. Not where no bit may depend on the batch: many rows are rounded to FP8 too, few are not.
fn choose_fp8(checkpoint: &Checkpoint, options: &Options, device: &Device, dtype: Dtype) -> Result<Fp8, Error> {
    let is_made = makes_fp8(checkpoint, options);
    let obstacle = if !holds_fp8_weights(device) {
        "this device does not compute with; it takes --device cuda and a card of compute capability 8.9 or later"
    } else if dtype == Dtype::F32 {
        "does not go with --dtype float32; use bfloat16 or float16"
    } else if options.deterministic {
        "does not go with --deterministic; leave one of them out"
    } else {
        let kernel_options = KernelOptions {
            dtype,
            kv_dtype: choose_kv_dtype(checkpoint, options, device, dtype)?,
            block_size: options.block_size as usize,
            deterministic: false,
            fp8_weights: true,
        };
        return match check_kernels(&step_kernels(checkpoint.config(), kernel_options)) {
            Ok(()) => Ok(if is_made { Fp8::All } else { Fp8::Stored }),
            // Nothing can be compiled, and what was built is not for FP8.
            Err(error) if is_made => Err(error.into()),
            Err(_) => Ok(Fp8::Never),
        };
    };
    match is_made {
        true => Err(Error::Option(format!("--quantization is fp8, which {obstacle}"))),
        false => Ok(Fp8::Never),
    }
}

/// A tokenizer of another model may have tokens that this one has not.
fn check_tokenizer(tokenizer: &Tokenizer, config: &ModelConfig, options: &Options) -> Result<(), Error> {
    match &options.tokenizer {
        Some(path) if tokenizer.vocab_size() > config.vocab_size => Err(Error::Option(format!(
            "--tokenizer {} has {} tokens, but the model knows {}; take a tokenizer that was made for it",
            path.display(),
            tokenizer.vocab_size(),
            config.vocab_size
        ))),
        _ => Ok(()),
    }
}

/// Compiles what is not compiled yet. On a machine without a compiler, every kernel must have been compiled before.
fn prepare_cuda_kernels(config: &ModelConfig, plan: &PlanOptions, options: &Options, fp8: Fp8) -> Result<(), Error> {
    let kernels = |fp8_weights: bool| {
        let PlanOptions { dtype, kv_dtype, block_size, .. } = *plan;
        let deterministic = options.deterministic;
        step_kernels(config, KernelOptions { dtype, kv_dtype, block_size, deterministic, fp8_weights })
    };
    if has_kernel_compiler() {
        compile_kernels(&kernels(fp8 != Fp8::Never));
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

fn choose_device(options: &Options) -> Result<(Backend, Device), Error> {
    if let Some(folder) = &options.kernels {
        use_kernels_in(folder);
    }
    let (backend, device) = match options.device {
        DeviceChoice::Backend(backend) => (backend, open_device(backend)?),
        DeviceChoice::Auto => match open_device(Backend::Cuda) {
            Ok(device) => (Backend::Cuda, device),
            Err(_) => match open_device(Backend::Cpu) {
                Ok(device) => (Backend::Cpu, device),
                Err(_) => (Backend::Wgpu, open_device(Backend::Wgpu)?),
            },
        },
    };
    if options.deterministic {
        use_batch_invariant_kernels();
    }
    match options.cuda_arch_path {
        Some(_) if backend != Backend::Cuda => {
            let problem = format!("--cuda-arch-path needs --device cuda, and the device is {}", backend.name());
            Err(Error::Option(problem))
        }
        Some(capability) => Ok(use_cuda_kernels_of(capability).map(|()| (backend, device))?),
        None => Ok((backend, device)),
    }
}

/// The form of the weights on the device. A bfloat16 checkpoint becomes float16 where that is what the device has; asking
/// for bfloat16 there is an error.
fn choose_dtype(wanted: Option<Dtype>, stored: Dtype, device: &Device) -> Result<Dtype, Error> {
    let dtype = wanted.unwrap_or(stored);
    if computes_in(device, burn_dtype(dtype)) {
        return Ok(dtype);
    }
    match wanted {
        Some(_) => Err(Error::Option(format!(
            "--dtype is {dtype}, but this device does not compute in it; use auto or float16"
        ))),
        None => Ok(Dtype::F16),
    }
}

fn burn_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
    }
}

/// Quantised weights stay as they are where the device computes with them, unless a dtype was asked for.
fn keeps_packed(options: &Options, device: &Device) -> bool {
    options.dtype.is_none() && holds_packed_weights(device)
}

fn choose_model_len(wanted: Option<usize>, config: &ModelConfig) -> Result<usize, Error> {
    let trained = config.max_position_embeddings;
    match wanted {
        Some(0) => Err(Error::Option("max_model_len is 0; it must be at least 1".into())),
        Some(wanted) if wanted > trained => Err(Error::Option(format!(
            "max_model_len is {wanted}, but the model was made for {trained} tokens; use --max-model-len {trained} or less"
        ))),
        Some(wanted) => Ok(wanted),
        None => Ok(trained),
    }
}

fn memory_plan(
    checkpoint: &Checkpoint,
    options: &Options,
    (backend, device): (Backend, &Device),
    dtype: Dtype,
    max_model_len: usize,
) -> Result<MemoryPlan, Error> {
    let config = checkpoint.config();
    let measured = || device_memory(device).or_else(available_host_memory).unwrap_or(u64::MAX >> 8);
    let memory = options.memory_bytes.unwrap_or_else(measured);
    let plan_options = PlanOptions::new(config, backend.name(), memory);
    let memory_utilization = match free_device_memory(device) {
        Some(free) if options.memory_bytes.is_none() && options.num_kv_caches_made == 0 => {
            share_left(options.gpu_memory_utilization, (memory, free), plan_options.runtime_bytes)
        }
        _ => options.gpu_memory_utilization,
    };
    let packed_weight_bytes = match choose_fp8(checkpoint, options, device, dtype)? {
        Fp8::All => Some(checkpoint.made_fp8_bytes(dtype)),
        Fp8::Stored => checkpoint.stored_fp8_bytes(dtype),
        Fp8::Never => checkpoint.packed_bytes(dtype).filter(|_| keeps_packed(options, device)),
    };
    let plan_options = PlanOptions {
        dtype,
        packed_weight_bytes,
        kv_dtype: choose_kv_dtype(checkpoint, options, device, dtype)?,
        block_size: options.block_size as usize,
        max_model_len,
        memory_utilization,
        others_bytes: options.others_bytes,
        num_kv_caches: options.num_kv_caches.saturating_sub(options.num_kv_caches_made).max(1).into(),
        keeps_logits: backend == Backend::Cuda,
        ..plan_options.with_limits(batch_limits(options, device))
    };
    Ok(MemoryPlan::new(config, checkpoint.num_parameters(), plan_options))
}

/// As asked for, or as suits the device.
fn batch_limits(options: &Options, device: &Device) -> BatchLimits {
    let gpu = device_memory(device).zip(compute_capability(device));
    let limits = gpu.map_or(BatchLimits::DEFAULT, |(memory, capability)| BatchLimits::of_gpu(memory, capability));
    let count = |number: Option<u32>| number.map(|number| number as usize);
    limits.with(count(options.max_num_seqs), count(options.max_num_batched_tokens))
}

/// The share of the memory that is wanted, or what other programs leave of it: this one has opened the device already, which
/// takes `runtime_bytes`.
fn share_left(wanted: f32, (total, free): (u64, u64), runtime_bytes: u64) -> f32 {
    let left = ((free + runtime_bytes) as f64 / total.max(1) as f64) as f32;
    if left < wanted {
        let held = total.saturating_sub(free + runtime_bytes) >> 20;
        tracing::warn!(
            "other programs hold {held} MiB of the GPU's memory: this one uses {:.0} % of it instead of {:.0} %",
            left * 100.0,
            wanted * 100.0
        );
    }
    wanted.min(left)
}

/// What the device computes in with weights of `dtype`, or what was asked for.
fn choose_kv_dtype(
    checkpoint: &Checkpoint,
    options: &Options,
    device: &Device,
    dtype: Dtype,
) -> Result<KvDtype, Error> {
    if options.kv_cache_dtype == KvCacheDtype::Auto {
        let is_single = activation_dtype(device, burn_dtype(dtype)) == DType::F32;
        return Ok(if is_single { Dtype::F32 } else { dtype }.into());
    }
    if !holds_fp8_cache(device) {
        return Err(Error::Option(format!(
            "--kv-cache-dtype is fp8, but {} keeps keys and values in 32-bit floats only; use auto, or --device cuda or cpu",
            backend_of(device).name()
        )));
    }
    let is_scale = |name: &&str| [".k_scale", ".v_scale", ".kv_scale"].iter().any(|end| name.ends_with(end));
    match checkpoint.tensor_names().find(is_scale) {
        Some(name) => Err(Error::Option(format!(
            "--kv-cache-dtype is fp8, and the model brings scales for it ({name}), which are not applied here; use auto"
        ))),
        None => Ok(KvDtype::E4m3),
    }
}

fn num_blocks(plan: &MemoryPlan, options: &Options, backend: Backend) -> Result<u32, Error> {
    let block_bytes = plan.kv_bytes_per_token * u64::from(options.block_size);
    let caches = u64::from(options.num_kv_caches.max(1));
    let bytes = match (options.kv_cache_memory_bytes, backend) {
        (Some(bytes), _) => bytes,
        (None, Backend::Cpu) => {
            plan.check().map_err(Box::new)?;
            plan.kv_bytes().min(CPU_KV_BYTES_MAX / caches)
        }
        (None, Backend::Wgpu) => {
            plan.check().map_err(Box::new)?;
            plan.kv_bytes().min(WGPU_KV_BYTES_MAX / caches)
        }
        (None, Backend::Cuda) => {
            plan.check().map_err(Box::new)?;
            plan.kv_bytes()
        }
    };
    Ok(u32::try_from(bytes / block_bytes.max(1)).unwrap_or(u32::MAX >> 8))
}

/// Blocks whose tensors the device can hold, whatever memory it has; one less, which recorded steps may need.
fn num_blocks_max(config: &ModelConfig, (dtype, block_size): (KvDtype, u32), device: &Device) -> u32 {
    let fit = KvCache::num_blocks_max(config, (dtype, block_size as usize), device);
    u32::try_from(fit.saturating_sub(1)).unwrap_or(u32::MAX)
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

/// The tokenizer that a checkpoint brings.
pub fn tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer, Error> {
    Ok(match checkpoint.tokenizer_source() {
        TokenizerSource::Json(path) => Tokenizer::from_file(&path)?,
        TokenizerSource::JsonBytes(bytes) => Tokenizer::from_bytes(&bytes)?,
        TokenizerSource::Gguf(vocabulary) => Tokenizer::from_gguf(gguf_vocabulary(vocabulary))?,
    })
}

fn gguf_vocabulary(from: GgufTokenizer) -> GgufVocabulary {
    GgufVocabulary {
        model: from.model,
        pre: from.pre,
        tokens: from.tokens,
        scores: from.scores,
        token_types: from.token_types,
        merges: from.merges,
        bos: from.bos,
        eos: from.eos,
        unknown: from.unknown,
        add_bos: from.add_bos,
        add_eos: from.add_eos,
        add_space_prefix: from.add_space_prefix,
    }
}

fn special_tokens(checkpoint: &Checkpoint) -> SpecialTokens {
    let from = checkpoint.special_tokens();
    SpecialTokens { bos: from.bos, eos: from.eos, pad: from.pad, unk: from.unk }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_are_quantised_otherwise_than_asked_for_are_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantised/awq");
        let checkpoint = Checkpoint::open(&folder).expect("the fixture opens");
        let check = |wanted: Option<&str>| {
            let options = Options { quantization: wanted.map(str::to_owned), ..Options::default() };
            check_quantization(&checkpoint, &options).map_err(|error| error.to_string())
        };
        assert_eq!((check(None), check(Some("awq")), check(Some("AWQ"))), (Ok(()), Ok(()), Ok(())));
        for wanted in ["gptq", "none"] {
            let refusal = check(Some(wanted)).expect_err("refused");
            assert!(
                refusal.contains(&format!("--quantization is {wanted}, but the model's weights are awq")),
                "{refusal}"
            );
        }
    }

    #[test]
    fn a_tokenizer_with_more_tokens_than_the_model_is_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantised/awq");
        let config = Checkpoint::open(&folder).expect("the fixture opens").config().clone();
        let vocabulary: std::collections::HashMap<String, usize> =
            (0..=config.vocab_size).map(|id| (format!("t{id}"), id)).collect();
        let model = serde_json::json!({"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"});
        let document = serde_json::json!({"version": "1.0", "added_tokens": [], "model": model}).to_string();
        let tokenizer = Tokenizer::from_bytes(document.as_bytes()).expect("a tokenizer");
        let given = Options { tokenizer: Some("other.json".into()), ..Options::default() };
        let refusal = check_tokenizer(&tokenizer, &config, &given).expect_err("refused").to_string();
        let (found, known) = (config.vocab_size + 1, config.vocab_size);
        assert!(refusal.contains(&format!("other.json has {found} tokens, but the model knows {known}")), "{refusal}");
        let own = check_tokenizer(&tokenizer, &config, &Options::default());
        assert!(own.is_ok(), "a model's own tokenizer is its own affair");
    }

    #[test]
    fn what_other_programs_hold_of_a_gpu_is_left_to_them() {
        let total = 80 << 30;
        assert_eq!(share_left(0.9, (total, total - (1 << 29)), 1 << 29), 0.9, "nobody else is there");
        assert_eq!(share_left(0.9, (total, 60 << 30), 0), 0.75);
        assert_eq!(share_left(0.5, (total, 60 << 30), 0), 0.5);
    }

    #[test]
    fn rounding_to_fp8_is_refused_where_it_is_not_computed_with() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let wanted = Options { quantization: Some("fp8".into()), ..Options::default() };
        let cpu = open_device(Backend::Cpu).expect("the CPU is always there");
        let choose = |folder: &str, options: &Options| {
            let checkpoint = Checkpoint::open(&fixtures.join(folder)).expect("the fixture opens");
            check_quantization(&checkpoint, options).map_err(|error| error.to_string())?;
            choose_fp8(&checkpoint, options, &cpu, Dtype::BF16).map_err(|error| error.to_string())
        };
        let refusal = choose("models/llama", &wanted).expect_err("the CPU has no kernels for it");
        assert!(refusal.contains("--quantization is fp8, which this device does not compute with"), "{refusal}");
        assert!(refusal.contains("--device cuda"), "{refusal}");
        // What is FP8 in the file is read everywhere.
        assert_eq!(choose("quantised/fp8-blocks", &wanted), Ok(Fp8::Never));
        assert_eq!(choose("quantised/fp8-rows", &Options::default()), Ok(Fp8::Never));
        assert!(choose("quantised/awq", &wanted).expect_err("it is AWQ").contains("the model's weights are awq"));
    }

    #[test]
    fn kernels_of_older_cards_are_refused_where_there_are_none() {
        let device = DeviceChoice::Backend(Backend::Cpu);
        let options = Options { device, cuda_arch_path: Some(75), ..Options::default() };
        let refusal = choose_device(&options).map(|_| ()).expect_err("the CPU has no such kernels").to_string();
        assert_eq!(refusal, "--cuda-arch-path needs --device cuda, and the device is cpu");
        assert!(choose_device(&Options { cuda_arch_path: None, ..options }).is_ok());
    }

    #[test]
    fn a_cache_of_eight_bits_is_refused_where_the_device_has_none_or_scales_would_be_left_out() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama-tied");
        let checkpoint = Checkpoint::open(&folder).expect("the fixture opens");
        let options = Options { kv_cache_dtype: KvCacheDtype::Fp8E4m3, ..Options::default() };
        let choose = |checkpoint: &Checkpoint, device: &Device| {
            choose_kv_dtype(checkpoint, &options, device, Dtype::F16).map_err(|error| error.to_string())
        };
        let cpu = open_device(Backend::Cpu).expect("the CPU is always there");
        assert_eq!(choose(&checkpoint, &cpu), Ok(KvDtype::E4m3));
        if let Ok(wgpu) = open_device(Backend::Wgpu) {
            let refusal = choose(&checkpoint, &wgpu).expect_err("wgpu has no such cache");
            assert!(refusal.contains("wgpu keeps keys and values in 32-bit floats"), "{refusal}");
        }
        let scaled = scaled_copy(&folder);
        let checkpoint = Checkpoint::open(scaled.path()).expect("scales do not keep a model from being opened");
        let refusal = choose(&checkpoint, &cpu).expect_err("its scales would be left out");
        assert!(refusal.contains("model.layers.0.self_attn.k_scale"), "{refusal}");
    }

    /// A copy of a model that brings a scale for its keys.
    fn scaled_copy(folder: &Path) -> tempfile::TempDir {
        let copy = tempfile::tempdir().expect("a temporary folder");
        for entry in folder.read_dir().expect("readable").flatten() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("copied");
        }
        let path = copy.path().join("model.safetensors");
        let bytes = std::fs::read(&path).expect("the weights");
        let mut tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors").tensors();
        let one = 1f32.to_le_bytes();
        let scale = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &one).expect("a number");
        tensors.push(("model.layers.0.self_attn.k_scale".into(), scale));
        std::fs::write(&path, safetensors::serialize(tensors, None).expect("written")).expect("written");
        copy
    }
}
