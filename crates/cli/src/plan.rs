//! `firebrick plan`: what a model needs and how much of it a device holds, from the files' headers alone.

use std::path::Path;

use clap::Args;
use firebrick::KvCacheDtype;
use firebrick_checkpoint::{
    BatchLimits, Checkpoint, CheckpointError, Dtype, GPUS, Gpu, KvDtype, MemoryPlan, PlanOptions,
};
use firebrick_executor::available_host_memory;
use serde_json::json;

use crate::args::{DeviceArg, DtypeArg, ModelArgs, ModelLen, dtype, kv_cache_dtype, quantity, share, size_in_bytes};
use crate::failure::Failure;
use crate::output::{print, size};
use crate::progress::Bars;
use crate::{loading, logging};

const EXAMPLES: &str = "\
Examples:
  firebrick plan ./model.gguf                                    on this machine's CPU
  firebrick plan meta-llama/Llama-3.1-8B-Instruct --gpu L4 --max-model-len 8k
  firebrick plan ./model.Q4_0.gguf --device wgpu --memory 2GiB   on a laptop's GPU, or in a browser
  firebrick plan ./model --memory 24GiB --dtype float16 --json";

/// Say how much memory a model needs, and how many requests fit, without loading it.
///
/// Exits with code 1 and the changes that would help if not even one request of full length fits.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PlanArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// A GPU by name, such as T4, A10G, L4, A100-40GB, H100, "RTX 4090"; `list` shows all
    #[arg(long, value_name = "NAME", conflicts_with = "memory", help_heading = "Device")]
    pub gpu: Option<String>,

    /// A device's memory, such as 24GiB [default: what this machine has free]
    #[arg(long, value_name = "SIZE", value_parser = size_in_bytes, help_heading = "Device")]
    pub memory: Option<u64>,

    /// What would run the model: auto is cuda with --gpu or --memory, and else this machine's cpu
    #[arg(long, value_enum, default_value = "auto", help_heading = "Device")]
    pub device: DeviceArg,

    /// Devices that share the model, as a tensor-parallel server would
    #[arg(long, value_name = "DEVICES", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=64))]
    #[arg(help_heading = "Device")]
    pub tensor_parallel_size: u16,

    /// Form of the weights: auto (the checkpoint's), float32, float16 (half), bfloat16
    #[arg(long, default_value = "auto", value_parser = dtype, help_heading = "Limits")]
    pub dtype: DtypeArg,

    /// Round linear layers to FP8, as serve does on CUDA: fp8
    #[arg(long, value_name = "METHOD", value_parser = ["fp8"], help_heading = "Limits")]
    pub quantization: Option<String>,

    /// Form of keys and values: auto (as the device computes), fp8 or fp8_e4m3 (8 bits)
    #[arg(long, value_name = "DTYPE", default_value = "auto", value_parser = kv_cache_dtype, help_heading = "Limits")]
    pub kv_cache_dtype: KvCacheDtype,

    /// Tokens of prompt and answer together, such as 4096 or 4k [default: the model's]
    #[arg(long, value_name = "TOKENS", allow_hyphen_values = true, help_heading = "Limits")]
    pub max_model_len: Option<ModelLen>,

    /// Share of the device's memory that may be used
    #[arg(long, value_name = "SHARE", default_value = "0.9", value_parser = share, help_heading = "Limits")]
    pub gpu_memory_utilization: f32,

    /// Tokens per KV block
    #[arg(long, value_name = "TOKENS", default_value = "16", value_parser = quantity, help_heading = "Limits")]
    pub block_size: usize,

    /// Sequences in one batch [default: as `firebrick serve` has it on the device: 256, on large GPUs more]
    #[arg(long, value_name = "SEQUENCES", value_parser = quantity, help_heading = "Limits")]
    pub max_num_seqs: Option<usize>,

    /// Tokens in one batch [default: as `firebrick serve` has it on the device: 2048, on the CPU 512, on large GPUs more]
    #[arg(long, value_name = "TOKENS", value_parser = quantity, help_heading = "Limits")]
    pub max_num_batched_tokens: Option<usize>,

    /// Print JSON instead of a table
    #[arg(long, help_heading = "Results")]
    pub json: bool,
}

/// Runs the command.
pub fn plan(args: PlanArgs) -> Result<(), Failure> {
    if args.gpu.as_deref() == Some("list") {
        let lines = GPUS.iter().map(|gpu| format!("{:<14}{:>7} MiB\n", gpu.name, gpu.memory_bytes >> 20));
        print(&lines.collect::<String>());
        return Ok(());
    }
    let gpu = args.gpu.as_deref().map(find_gpu).transpose()?;
    let bars = Bars::new();
    logging::start_quiet(&bars)?;
    let source = loading::find(&args.model.required()?, &args.model.source_options(), &bars)?;
    let checkpoint = open(&source.path).map_err(firebrick::Error::from)?;
    let options = options(&args, gpu, &checkpoint)?;
    let packed_bytes = packed_bytes(&args, &checkpoint, options.dtype);
    let plan = MemoryPlan::new(checkpoint.config(), checkpoint.num_parameters(), options);
    let check = plan.check();
    if args.json {
        let remedies = check.as_ref().err().map(|refusal| refusal.remedies()).unwrap_or_default();
        print(&format!("{:#}\n", to_json(&plan, packed_bytes, &remedies)));
    } else {
        print(&plan.to_string());
        let most = match args.runs_on()? {
            DeviceArg::Cpu => Some("On the CPU, serve takes at most 4 GiB"),
            DeviceArg::Wgpu => Some("Through wgpu, serve takes at most 1 GiB"),
            _ => None,
        };
        if let Some(most) = most {
            print(&format!("  {most} of KV cache unless --kv-cache-memory-bytes says more.\n"));
        }
        if args.tensor_parallel_size > 1 {
            print("  serve does not share a model among devices yet: this is what a server that does would need.\n");
        }
        if let Some(bytes) = packed_bytes.filter(|_| plan.options.packed_weight_bytes.is_none()) {
            let dense = size(plan.weight_bytes * plan.options.num_devices as u64);
            let bytes = size(bytes);
            print(&format!(
                "  On the CPU and through wgpu, quantised weights stay as they are: {bytes} instead of {dense}.\n"
            ));
        }
    }
    check.map_err(|refusal| Failure::Run(refusal.to_string()))
}

/// A folder may have a config.json and no weights yet.
fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let has_weights = |folder: &Path| {
        let files = folder.read_dir().into_iter().flatten().flatten();
        files
            .map(|file| file.path())
            .any(|file| file.extension().is_some_and(|end| end == "safetensors" || end == "gguf"))
    };
    if path.is_dir() && !has_weights(path) { Checkpoint::open_with_dummy_weights(path) } else { Checkpoint::open(path) }
}

fn find_gpu(name: &str) -> Result<&'static Gpu, Failure> {
    let unknown = || {
        let advice = "`firebrick plan --gpu list` shows them, --memory takes any size";
        Failure::Usage(format!("no known GPU `{name}`; {advice}"))
    };
    Gpu::find(name).ok_or_else(unknown)
}

impl PlanArgs {
    /// What runs the model, with the memory of another device than this machine's where it is no CPU.
    fn runs_on(&self) -> Result<DeviceArg, Failure> {
        let is_given = self.gpu.is_some() || self.memory.is_some();
        match self.device {
            DeviceArg::Auto => Ok(if is_given { DeviceArg::Cuda } else { DeviceArg::Cpu }),
            DeviceArg::Cuda | DeviceArg::Wgpu if !is_given => {
                Err(Failure::Usage("a plan for a GPU needs its memory: give --gpu NAME or --memory SIZE".into()))
            }
            DeviceArg::Cpu if self.gpu.is_some() => {
                Err(Failure::Usage("--device is cpu and --gpu names a GPU; leave one of them out".into()))
            }
            device => Ok(device),
        }
    }
}

fn options(args: &PlanArgs, gpu: Option<&Gpu>, checkpoint: &Checkpoint) -> Result<PlanOptions, Failure> {
    let config = checkpoint.config();
    let device = args.runs_on()?;
    let mut options = match (gpu, args.memory) {
        (Some(gpu), _) => PlanOptions::on_gpu(config, gpu),
        (None, Some(bytes)) => PlanOptions::new(config, "a device", bytes),
        (None, None) => {
            let unknown =
                || Failure::Usage("this system does not say how much memory is free; give --memory or --gpu".into());
            PlanOptions::new(config, "cpu", available_host_memory().ok_or_else(unknown)?)
        }
    };
    if let DtypeArg(Some(dtype)) = args.dtype {
        (options.dtype, options.kv_dtype) = (dtype, dtype.into());
    }
    if device == DeviceArg::Wgpu {
        if args.dtype.0 == Some(Dtype::BF16) {
            return Err(Failure::Usage("wgpu does not compute in bfloat16; use --dtype auto or float16".into()));
        }
        // As a checkpoint in bfloat16 becomes where there is no such format.
        options.dtype = if options.dtype == Dtype::BF16 { Dtype::F16 } else { options.dtype };
    }
    options.keeps_logits = device == DeviceArg::Cuda;
    if device != DeviceArg::Cuda {
        options.packed_weight_bytes = packed_bytes(args, checkpoint, options.dtype);
        // Keys and values are in single precision.
        options.kv_dtype = Dtype::F32.into();
    }
    match args.kv_cache_dtype {
        KvCacheDtype::Auto => {}
        KvCacheDtype::Fp8E4m3 if device == DeviceArg::Wgpu => {
            return Err(Failure::Usage("--kv-cache-dtype fp8 does not go with --device wgpu; leave it out".into()));
        }
        KvCacheDtype::Fp8E4m3 => options.kv_dtype = KvDtype::E4m3,
    }
    options.num_devices = usize::from(args.tensor_parallel_size);
    options.memory_utilization = args.gpu_memory_utilization;
    options.block_size = args.block_size.max(1);
    let limits = match device {
        DeviceArg::Cuda => gpu.map_or(BatchLimits::DEFAULT, Gpu::batch_limits),
        DeviceArg::Cpu => BatchLimits::ON_CPU,
        _ => BatchLimits::DEFAULT,
    };
    options = options.with_limits(limits.with(args.max_num_seqs, args.max_num_batched_tokens));
    let fp8_bytes = fp8_bytes(args, gpu.filter(|_| device == DeviceArg::Cuda), checkpoint, options.dtype)?;
    options.packed_weight_bytes = fp8_bytes.or(options.packed_weight_bytes);
    match args.max_model_len {
        Some(ModelLen::Tokens(tokens)) => options.max_model_len = tokens,
        Some(ModelLen::Auto) => {
            let plan = MemoryPlan::new(config, checkpoint.num_parameters(), options.clone());
            let longest = usize::try_from(plan.kv_tokens()).unwrap_or(usize::MAX);
            options.max_model_len = options.max_model_len.min(longest.max(1));
        }
        None => {}
    }
    Ok(options)
}

/// Bytes of the weights where quantised ones stay as they are, as everywhere but on CUDA, unless a dtype is asked for.
fn packed_bytes(args: &PlanArgs, checkpoint: &Checkpoint, dtype: Dtype) -> Option<u64> {
    checkpoint.packed_bytes(dtype).filter(|_| args.dtype.0.is_none())
}

/// Bytes of the weights where linear layers are in FP8: on GPUs that compute with it, if the file has them so, or it is asked
/// for.
fn fp8_bytes(
    args: &PlanArgs,
    gpu: Option<&Gpu>,
    checkpoint: &Checkpoint,
    dtype: Dtype,
) -> Result<Option<u64>, Failure> {
    let computes = gpu.is_some_and(Gpu::has_fp8) && dtype != Dtype::F32;
    if args.quantization.is_none() {
        return Ok(checkpoint.stored_fp8_bytes(dtype).filter(|_| computes));
    }
    match checkpoint.quantization_method() {
        None | Some("gguf") if computes => Ok(Some(checkpoint.made_fp8_bytes(dtype))),
        Some("fp8") if computes => Ok(checkpoint.stored_fp8_bytes(dtype)),
        None | Some("gguf" | "fp8") => Err(Failure::Usage(
            "--quantization fp8 needs --gpu with one that computes with FP8 (compute capability 8.9 or later, such as L4 \
             or H100) and 16-bit activations"
                .into(),
        )),
        Some(found) => Err(Failure::Usage(format!(
            "--quantization is fp8, but the model's weights are {found}; leave it out: the files say how they are to be read"
        ))),
    }
}

fn to_json(plan: &MemoryPlan, packed_bytes: Option<u64>, remedies: &[String]) -> serde_json::Value {
    let options = &plan.options;
    json!({
        "model": plan.model,
        "device": options.device,
        "memory_bytes": options.memory_bytes,
        "num_devices": options.num_devices,
        "memory_utilization": (f64::from(options.memory_utilization) * 1e4).round() / 1e4,
        "dtype": options.dtype.to_string(),
        "kv_dtype": options.kv_dtype.to_string(),
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "budget_bytes": plan.budget_bytes,
        "weight_bytes": plan.weight_bytes,
        "weight_bytes_as_stored": packed_bytes.unwrap_or(plan.weight_bytes),
        "activation_bytes": plan.activation_bytes,
        "runtime_bytes": options.runtime_bytes,
        "kv_bytes": plan.kv_bytes(),
        "kv_bytes_per_token": plan.kv_bytes_per_token,
        "kv_tokens": plan.kv_tokens(),
        "block_size": options.block_size,
        "num_blocks": plan.num_blocks,
        "sequences_of_full_length": plan.num_sequences(options.max_model_len),
        "fits": remedies.is_empty() && plan.check().is_ok(),
        "remedies": remedies,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Command {
        #[command(flatten)]
        plan: PlanArgs,
    }

    fn planned(flags: &[&str]) -> Result<PlanOptions, String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/checkpoint/fixtures/every_type.gguf");
        let checkpoint = Checkpoint::open(&path).expect("the fixture opens");
        let args = Command::try_parse_from(["plan"].iter().chain(flags)).expect("known flags").plan;
        let gpu = args.gpu.as_deref().map(|name| Gpu::find(name).expect("a known GPU"));
        options(&args, gpu, &checkpoint).map_err(|failure| match failure {
            Failure::Usage(text) | Failure::Run(text) => text,
        })
    }

    #[test]
    fn weights_stay_packed_and_keys_are_single_but_on_cuda() {
        let planned = |flags: &[&str]| planned(flags).expect("a plan");
        let cuda = planned(&["--device", "cuda", "--memory", "2GiB"]);
        assert_eq!((cuda.packed_weight_bytes, cuda.kv_dtype), (None, cuda.dtype.into()));
        for device in ["cpu", "wgpu"] {
            let on = |flags: &[&str]| planned(&[&["--device", device, "--memory", "2GiB"], flags].concat());
            let (packed, widened) = (on(&[]), on(&["--dtype", "float16"]));
            assert!(packed.packed_weight_bytes.is_some());
            assert_eq!(widened.packed_weight_bytes, None);
            assert_eq!([packed.kv_dtype, widened.kv_dtype], [Dtype::F32.into(); 2]);
        }
        assert_eq!(planned(&["--memory", "2GiB"]), cuda);
    }

    #[test]
    fn a_plan_for_a_gpu_of_unknown_memory_is_refused() {
        for flags in [&["--device", "wgpu"][..], &["--device", "cuda"], &["--device", "cpu", "--gpu", "T4"]] {
            assert!(planned(flags).expect_err("refused").contains("--gpu"), "{flags:?}");
        }
        let refusal = planned(&["--device", "wgpu", "--memory", "2GiB", "--kv-cache-dtype", "fp8"]);
        assert!(refusal.expect_err("refused").contains("--kv-cache-dtype fp8 does not go with --device wgpu"));
    }
}
