//! From the bytes of a model's files to an idle engine on the browser's device.

use std::collections::BTreeMap;

use firebrick_checkpoint::{Checkpoint, Dtype, GgufTokenizer, MemoryPlan, ModelConfig, PlanOptions, TokenizerSource};
use firebrick_engine::{Engine, EngineConfig, SchedulingPolicy};
use firebrick_executor::{CacheOptions, LocalExecutor};
use firebrick_model::{Fp8, LoadOptions, Progress};
use firebrick_ops::{Backend, holds_packed_weights, open_device_async};
use firebrick_text::{ChatTemplate, GgufVocabulary, SpecialTokens, Tokenizer};

use crate::messages::{DeviceName, LoadRequest, ModelFacts};

/// A model ready to run.
pub struct Loaded {
    /// The idle engine.
    pub engine: Engine<LocalExecutor>,
    /// The file's tokenizer.
    pub tokenizer: Tokenizer,
    /// The file's chat template.
    pub chat_template: Option<ChatTemplate>,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// What was loaded.
    pub facts: ModelFacts,
}

impl Loaded {
    /// Reads the files, opens the device and puts the weights there. `progress` is called with bytes as they arrive.
    pub async fn load(
        files: BTreeMap<String, Vec<u8>>,
        request: &LoadRequest,
        progress: Progress<'_>,
    ) -> Result<Self, String> {
        let checkpoint = open(files, &request.name)?;
        let config = checkpoint.config().clone();
        // Both widen quantised weights while they read them, wgpu halves too, whose widening costs more than reading without a GPU.
        let (backend, dtype) = match request.device {
            DeviceName::Webgpu => (Backend::Wgpu, Dtype::F16),
            DeviceName::Cpu => (Backend::Cpu, Dtype::F32),
        };
        let trained = u32::try_from(config.max_position_embeddings).unwrap_or(u32::MAX);
        let max_model_len = request.max_model_len.min(trained);
        let facts = facts(&checkpoint, request, dtype, max_model_len);
        refuse_what_has_no_room(&facts, request)?;
        let device = open_device_async(backend).await.map_err(text)?;
        let packed = holds_packed_weights(&device);
        let load = LoadOptions { dtype, packed, fp8: Fp8::Never, max_model_len: max_model_len as usize };
        let cache = CacheOptions {
            num_blocks: request.num_blocks,
            block_size: request.block_size,
            // Both backends compute in them.
            dtype: Dtype::F32.into(),
            max_num_seqs: request.max_num_seqs,
            graphs: true,
        };
        let executor = LocalExecutor::load(&checkpoint, load, cache, &device, progress).map_err(text)?;
        let engine = Engine::new(engine_config(request, &config, max_model_len), executor).map_err(text)?;
        let chat_template = checkpoint.chat_template();
        let special = checkpoint.special_tokens();
        let special = SpecialTokens { bos: special.bos, eos: special.eos, pad: special.pad, unk: special.unk };
        Ok(Self {
            engine,
            tokenizer: tokenizer(&checkpoint)?,
            chat_template: chat_template.map(|source| ChatTemplate::new(&source, special)).transpose().map_err(text)?,
            eos_token_ids: checkpoint.end_tokens(),
            facts,
        })
    }
}

/// Without a GPU weights and cache lie in the program's own memory, where an allocation that fails ends the program.
fn refuse_what_has_no_room(facts: &ModelFacts, request: &LoadRequest) -> Result<(), String> {
    /// What WebAssembly addresses, less what the program and the steps themselves need.
    const BYTES_MAX: u64 = 3_500_000_000;
    let slots = u64::from(request.num_blocks) * u64::from(request.block_size);
    let cache_bytes = slots.saturating_mul(facts.kv_bytes_per_token);
    if request.device == DeviceName::Webgpu || facts.weight_bytes.saturating_add(cache_bytes) <= BYTES_MAX {
        return Ok(());
    }
    let megabytes = |bytes: u64| bytes / 1_000_000;
    Err(format!(
        "the weights need {} MB and {} blocks of {} tokens {} MB, but there is room for {} MB without a GPU: choose fewer \
         or smaller blocks, or a smaller model",
        megabytes(facts.weight_bytes),
        request.num_blocks,
        request.block_size,
        megabytes(cache_bytes),
        megabytes(BYTES_MAX),
    ))
}

/// One GGUF file, or the files of a folder with config.json and safetensors.
fn open(mut files: BTreeMap<String, Vec<u8>>, name: &str) -> Result<Checkpoint, String> {
    if files.contains_key("config.json") {
        return Checkpoint::from_folder_bytes(name, files).map_err(text);
    }
    match (files.pop_first(), files.is_empty()) {
        (Some((file, bytes)), true) => Checkpoint::from_gguf_bytes(&file, bytes).map_err(text),
        (None, _) => Err(format!("{name}: there are no files")),
        (Some(_), false) => Err(format!(
            "{name}: a model is one .gguf file, or config.json with safetensors and tokenizer.json beside it"
        )),
    }
}

/// Any error as the page shows it.
pub fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn engine_config(request: &LoadRequest, config: &ModelConfig, max_model_len: u32) -> EngineConfig {
    EngineConfig {
        block_size: request.block_size,
        max_model_len,
        max_num_seqs: request.max_num_seqs,
        max_num_batched_tokens: request.max_num_batched_tokens,
        max_waiting: 64,
        max_choices: 1,
        vocab_size: u32::try_from(config.vocab_size).unwrap_or(u32::MAX),
        enable_prefix_caching: request.enable_prefix_caching,
        enable_chunked_prefill: true,
        policy: SchedulingPolicy::Fcfs,
        seed: request.seed,
        // All requests come from the one who reads the page: there is nobody to hide a prefix from.
        hash_key: [request.seed, 1],
    }
}

fn tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer, String> {
    match checkpoint.tokenizer_source() {
        TokenizerSource::Gguf(vocabulary) => Tokenizer::from_gguf(gguf_vocabulary(vocabulary)).map_err(text),
        TokenizerSource::JsonBytes(bytes) if !bytes.is_empty() => Tokenizer::from_bytes(&bytes).map_err(text),
        TokenizerSource::Json(_) | TokenizerSource::JsonBytes(_) => {
            Err("the model has no tokenizer.json beside its config.json".to_owned())
        }
    }
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

fn facts(checkpoint: &Checkpoint, request: &LoadRequest, dtype: Dtype, max_model_len: u32) -> ModelFacts {
    let config = checkpoint.config();
    let packed_weight_bytes = checkpoint.packed_bytes(dtype);
    let options = PlanOptions {
        dtype,
        packed_weight_bytes,
        kv_dtype: Dtype::F32.into(),
        ..PlanOptions::new(config, "browser", u64::MAX >> 8)
    };
    let plan = MemoryPlan::new(config, checkpoint.num_parameters(), options);
    ModelFacts {
        name: request.name.clone(),
        architecture: format!("{:?}", config.architecture),
        device: request.device,
        dtype: match packed_weight_bytes {
            Some(_) => "quantised as in the file".to_owned(),
            None => format!("{dtype:?}").to_lowercase(),
        },
        num_parameters: checkpoint.num_parameters(),
        num_layers: config.num_layers,
        vocab_size: config.vocab_size,
        weight_bytes: plan.weight_bytes,
        kv_bytes_per_token: plan.kv_bytes_per_token,
        max_model_len,
        has_chat_template: checkpoint.chat_template().is_some(),
    }
}
