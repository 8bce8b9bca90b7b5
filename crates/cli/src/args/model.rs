//! Which model, on which device, within which limits: the arguments that every command with a model shares.

use std::env;
use std::path::PathBuf;

use clap::builder::Resettable;
use clap::{ArgAction, Args, ValueEnum};
use firebrick::{Backend, DeviceChoice, KvCacheDtype, Options, SchedulingPolicy, SourceOptions};
use firebrick_checkpoint::Dtype;

use super::values::{ModelLen, quantity_u32, share, size_in_bytes, switch};
use crate::failure::Failure;

/// Which model.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A Hugging Face id (org/name, org/name@revision), a folder, or a .gguf file [env: MODEL_NAME, VLLM_MODEL, MODEL_PATH]
    #[arg(value_name = "MODEL", conflicts_with = "model_flag", help_heading = Resettable::Reset, num_args = 0..=1)]
    model_argument: Vec<String>,

    /// The model, in the spelling of vLLM's api_server
    #[arg(long = "model", value_name = "MODEL", id = "model_flag")]
    model_flag: Vec<String>,

    /// Branch, tag or commit of a model on the hub [default: main]
    #[arg(long)]
    revision: Option<String>,

    /// Where downloaded models are kept [default: $HF_HOME/hub, else ~/.cache/huggingface/hub]
    #[arg(long, value_name = "FOLDER")]
    download_dir: Option<PathBuf>,

    /// Token for gated and private models; better set HF_TOKEN, which other users of the machine cannot see
    #[arg(long, value_name = "TOKEN", hide_short_help = true)]
    hf_token: Option<String>,
}

impl ModelArgs {
    /// The models' names: from the command line, else one from the environment.
    pub fn models(&self) -> Vec<String> {
        let given: Vec<String> = self.model_argument.iter().chain(&self.model_flag).cloned().collect();
        if !given.is_empty() {
            return given;
        }
        let variables = ["MODEL_NAME", "VLLM_MODEL", "MODEL_PATH"];
        let from_environment = variables.iter().find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()));
        from_environment.into_iter().collect()
    }

    /// The model's name, if one is given; only `serve` takes several.
    pub fn model(&self) -> Result<Option<String>, Failure> {
        match &self.models()[..] {
            [] => Ok(None),
            [name] => Ok(Some(name.clone())),
            names => Err(Failure::Usage(format!("{} models are given, but this command takes one", names.len()))),
        }
    }

    /// The model's name, which must be given.
    pub fn required(&self) -> Result<String, Failure> {
        self.model()?.ok_or_else(|| {
            Failure::Usage(
                "no model given; try `firebrick run HuggingFaceTB/SmolLM2-135M-Instruct`, a folder or a .gguf file"
                    .into(),
            )
        })
    }

    /// Branch, tag or commit on the hub.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// Where to look for it.
    pub fn source_options(&self) -> SourceOptions {
        SourceOptions {
            revision: self.revision.clone(),
            token: self.hf_token.clone(),
            cache: self.download_dir.clone(),
            refresh: false,
        }
    }
}

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceArg {
    /// CUDA where there is an NVIDIA GPU, else the CPU
    Auto,
    /// The processor
    Cpu,
    /// Any GPU, through Vulkan, Metal or DirectX 12
    Wgpu,
    /// An NVIDIA GPU
    Cuda,
}

impl From<DeviceArg> for DeviceChoice {
    fn from(device: DeviceArg) -> Self {
        match device {
            DeviceArg::Auto => Self::Auto,
            DeviceArg::Cpu => Self::Backend(Backend::Cpu),
            DeviceArg::Wgpu => Self::Backend(Backend::Wgpu),
            DeviceArg::Cuda => Self::Backend(Backend::Cuda),
        }
    }
}

/// `--scheduling-policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyArg {
    /// First come, first served
    Fcfs,
    /// Lower `priority` of a request first
    Priority,
}

/// How to load it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Device and memory")]
pub struct DeviceArgs {
    /// What runs the model
    #[arg(long, value_enum, default_value = "auto", env = "FIREBRICK_DEVICE")]
    pub device: DeviceArg,

    /// Form of the weights: auto (the checkpoint's; wgpu keeps quantised ones as they are), float32, float16 (half), bfloat16
    #[arg(long, default_value = "auto", value_parser = dtype)]
    pub dtype: DtypeArg,

    /// Run the CUDA kernels that older cards run, to test what a T4 (sm_75) or an A100 (sm_80) will do [default: the GPU's]
    #[arg(long, value_name = "ARCH", value_parser = cuda_arch, hide_short_help = true)]
    pub cuda_arch_path: Option<u32>,

    /// A folder of CUDA kernels that `firebrick kernels build` has made; others are compiled at the start, where NVRTC is
    /// there to do that [default: the folder `kernels` beside this program, if there is one]
    #[arg(long, value_name = "FOLDER", env = "FIREBRICK_KERNELS")]
    pub kernels: Option<PathBuf>,

    /// Form of keys and values: auto (as the device computes), fp8 or fp8_e4m3 (8 bits: more tokens fit; not on wgpu)
    #[arg(long, value_name = "DTYPE", default_value = "auto", value_parser = kv_cache_dtype)]
    pub kv_cache_dtype: KvCacheDtype,

    /// How weights are found: auto, safetensors or gguf (by the files), or dummy: made up, to measure speed without them
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    #[arg(value_parser = ["auto", "hf", "safetensors", "gguf", "dummy"])]
    pub load_format: String,

    /// How the model's weights are quantised, to be sure of it: none, auto (whatever the files say), gguf, awq, gptq,
    /// compressed-tensors or fp8; on CUDA, fp8 also rounds a 16-bit or GGUF model's linear layers to it
    #[arg(long, value_name = "METHOD", ignore_case = true)]
    #[arg(value_parser = ["auto", "none", "gguf", "awq", "gptq", "compressed-tensors", "fp8"])]
    pub quantization: Option<String>,

    /// Tokens of prompt and answer together, such as 4096, 4k or auto (what fits) [default: the model's]
    #[arg(long, value_name = "TOKENS", allow_hyphen_values = true)]
    pub max_model_len: Option<ModelLen>,

    /// Share of the device's memory that may be used
    #[arg(long, value_name = "SHARE", default_value = "0.9", value_parser = share)]
    pub gpu_memory_utilization: f32,

    /// Memory of the KV cache, such as 8GiB [default: what is left; at most 4GiB on the CPU, 1GiB through wgpu]
    #[arg(long, value_name = "SIZE", value_parser = size_in_bytes)]
    pub kv_cache_memory_bytes: Option<u64>,

    /// Blocks of KV cache, whatever the memory
    #[arg(long, value_name = "BLOCKS", value_parser = quantity_u32)]
    pub num_gpu_blocks_override: Option<u32>,

    /// Tokens per KV block
    #[arg(long, value_name = "TOKENS", default_value = "16", value_parser = quantity_u32)]
    pub block_size: u32,

    /// Devices that share the model; this version runs a model on one
    #[arg(long, value_name = "DEVICES", default_value = "1", env = "TENSOR_PARALLEL_SIZE")]
    pub tensor_parallel_size: u32,

    /// Where the tokenizer comes from, with its chat template: a folder, its tokenizer.json, or a .gguf file
    /// [default: the model]
    #[arg(long, value_name = "PATH", help_heading = "Model")]
    pub tokenizer: Option<PathBuf>,

    /// A chat template that replaces the model's: a file, or the Jinja text itself
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub chat_template: Option<String>,
}

/// How requests share it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Scheduling")]
pub struct SchedulingArgs {
    /// Sequences in one batch [default: 256, on GPUs of Hopper and later 1024 from 70 GiB on; no more than --max-num-batched-tokens]
    #[arg(long, value_name = "SEQUENCES", value_parser = quantity_u32)]
    pub max_num_seqs: Option<u32>,

    /// Tokens in one batch [default: 2048, on the CPU 512; on GPUs of Hopper and later 8192 from 70 GiB on, 16384 from 160 GiB on]
    #[arg(long, value_name = "TOKENS", value_parser = quantity_u32)]
    pub max_num_batched_tokens: Option<u32>,

    /// Requests that may wait; more are answered 503
    #[arg(long, value_name = "REQUESTS", default_value = "4096", value_parser = quantity_u32)]
    pub max_num_queued_reqs: u32,

    /// Which waiting request runs first
    #[arg(long, value_enum, default_value = "fcfs")]
    pub scheduling_policy: PolicyArg,

    /// Requests that begin alike share memory and work; --no-enable-prefix-caching turns it off
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = switch, action = ArgAction::Set)]
    pub enable_prefix_caching: bool,

    /// Long prompts are read in several steps; --no-enable-chunked-prefill turns it off
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = switch, action = ArgAction::Set)]
    pub enable_chunked_prefill: bool,

    /// Launch every kernel by itself instead of replaying steps as graphs
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = switch, action = ArgAction::Set)]
    pub enforce_eager: bool,

    /// Give a request the same tokens and log-probabilities to the last bit, whatever else runs; costs speed on CUDA
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = switch, action = ArgAction::Set, env = "VLLM_BATCH_INVARIANT")]
    pub deterministic: bool,
}

/// `--dtype`; `None` is auto: the checkpoint's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DtypeArg(pub Option<Dtype>);

/// The folder in which kernels are looked for without being told.
pub fn kernels_beside_program() -> Option<PathBuf> {
    Some(env::current_exe().ok()?.parent()?.join("kernels"))
}

/// Reads an architecture: the compute capability in `sm_80`, as 80.
pub fn cuda_arch(text: &str) -> Result<u32, String> {
    const ARCHITECTURES: [u32; 6] = [70, 75, 80, 86, 89, 90];
    let capability = text.strip_prefix("sm_").and_then(|number| number.trim_end_matches('a').parse().ok());
    capability
        .filter(|capability| ARCHITECTURES.contains(capability))
        .ok_or_else(|| "use one of sm_70, sm_75, sm_80, sm_86, sm_89 and sm_90".to_owned())
}

/// Reads `--dtype`.
pub fn dtype(text: &str) -> Result<DtypeArg, String> {
    match text {
        "auto" => Ok(DtypeArg(None)),
        _ => text.parse().map(|dtype| DtypeArg(Some(dtype))).map_err(|error| format!("{error}, auto")),
    }
}

/// Reads `--kv-cache-dtype`.
pub fn kv_cache_dtype(text: &str) -> Result<KvCacheDtype, String> {
    match text {
        "auto" => Ok(KvCacheDtype::Auto),
        "fp8" | "fp8_e4m3" => Ok(KvCacheDtype::Fp8E4m3),
        _ => Err("supported: auto, fp8 and fp8_e4m3, which mean the same 8 bits".into()),
    }
}

impl DeviceArgs {
    fn kernels(&self) -> Result<Option<PathBuf>, Failure> {
        match &self.kernels {
            Some(folder) if !folder.is_dir() => Err(Failure::Usage(format!(
                "--kernels is {0}, where there is no folder; `firebrick kernels build MODEL --output {0}` makes one",
                folder.display()
            ))),
            Some(folder) => Ok(Some(folder.clone())),
            None => Ok(kernels_beside_program().filter(|folder| folder.is_dir())),
        }
    }

    /// The library's options, with its own limits for scheduling.
    pub fn options(&self) -> Result<Options, Failure> {
        if self.tensor_parallel_size != 1 {
            return Err(Failure::Usage(format!(
                "--tensor-parallel-size is {}, but this version runs a model on one device; use 1 and a device that \
                 holds the model (`firebrick plan MODEL` names one)",
                self.tensor_parallel_size
            )));
        }
        Ok(Options {
            device: self.device.into(),
            dtype: self.dtype.0,
            kv_cache_dtype: self.kv_cache_dtype,
            max_model_len: match self.max_model_len {
                Some(ModelLen::Tokens(tokens)) => Some(tokens),
                Some(ModelLen::Auto) | None => None,
            },
            fit_model_len: self.max_model_len == Some(ModelLen::Auto),
            block_size: self.block_size,
            cuda_arch_path: self.cuda_arch_path,
            kernels: self.kernels()?,
            quantization: self.quantization.clone().filter(|method| !method.eq_ignore_ascii_case("auto")),
            dummy_weights: self.load_format == "dummy",
            gpu_memory_utilization: self.gpu_memory_utilization,
            kv_cache_memory_bytes: self.kv_cache_memory_bytes,
            num_gpu_blocks_override: self.num_gpu_blocks_override,
            tokenizer: self.tokenizer.clone(),
            chat_template: self.chat_template.as_deref().map(read_template).transpose()?,
            ..Options::default()
        })
    }
}

impl SchedulingArgs {
    /// Puts these limits into `options`.
    pub fn apply(&self, options: Options) -> Options {
        Options {
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_waiting: self.max_num_queued_reqs,
            enable_prefix_caching: self.enable_prefix_caching,
            enable_chunked_prefill: self.enable_chunked_prefill,
            graphs: !self.enforce_eager,
            deterministic: self.deterministic,
            policy: match self.scheduling_policy {
                PolicyArg::Fcfs => SchedulingPolicy::Fcfs,
                PolicyArg::Priority => SchedulingPolicy::Priority,
            },
            ..options
        }
    }
}

/// A template's text: inline where it looks like Jinja, else from the file of that name.
fn read_template(source: &str) -> Result<String, Failure> {
    if source.contains("{{") || source.contains("{%") {
        return Ok(source.to_owned());
    }
    std::fs::read_to_string(source).map_err(|error| {
        Failure::Run(format!("cannot read the chat template {source}: {error}; check --chat-template"))
    })
}
