//! `firebrick kernels`: compiles the CUDA kernels of models ahead, for machines without a compiler or a first start without
//! a wait.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use clap::{ArgAction, Args, Subcommand};
use firebrick::{KvCacheDtype, SourceOptions};
use firebrick_checkpoint::{Checkpoint, Dtype, KvDtype};
use firebrick_model::{KernelOptions, step_kernels};
use firebrick_ops::{KernelTask, kernel_tasks};

use crate::args::{DtypeArg, cuda_arch, dtype, kernels_beside_program, kv_cache_dtype, quantity};
use crate::failure::Failure;
use crate::output::{print, size};
use crate::progress::Bars;
use crate::{loading, logging};

const EXAMPLES: &str = "\
Examples:
  firebrick kernels build HuggingFaceTB/SmolLM2-135M-Instruct --arch sm_90a
  firebrick kernels build ./model ./other --arch sm_75,sm_80,sm_86,sm_89,sm_90a --output ./kernels
  firebrick serve ./model --device cuda --kernels ./kernels

No GPU is needed, only NVRTC (libnvrtc, a part of the CUDA toolkit) on LD_LIBRARY_PATH. `serve` and
the other commands look in the folder `kernels` beside the program, or in --kernels or in
$FIREBRICK_KERNELS. A kernel that is not there is compiled at the start where NVRTC is, and named in
an error where it is not. A machine that runs what was built needs the driver and cuBLASLt. Gemma,
OPT and GPT-2 also take kernels of Burn, which cannot be built ahead: they need NVRTC and the CUDA
headers where they run. Kernels for FP8 weights are built for models that have such, and with
--quantization fp8.";

/// Compile the CUDA kernels of models ahead.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct KernelsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Compile into a folder
    #[command(after_help = EXAMPLES)]
    Build(BuildArgs),
}

#[derive(Args, Debug)]
struct BuildArgs {
    /// The models: Hugging Face ids, folders (config.json is enough) or .gguf files
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<String>,

    /// The GPUs' architectures: sm_75 (T4), sm_80 (A100), sm_86 (A10), sm_89 (L4), sm_90a (H100, H200)
    #[arg(long, value_name = "ARCH", value_delimiter = ',', num_args = 1.., value_parser = cuda_arch)]
    #[arg(default_value = "sm_75,sm_80,sm_86,sm_89,sm_90a")]
    arch: Vec<u32>,

    /// Where to put them [default: the folder `kernels` beside the program, where `serve` looks]
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,

    /// Form of the weights, as it will be given to `serve`
    #[arg(long, default_value = "auto", value_parser = dtype)]
    dtype: DtypeArg,

    /// Form of keys and values, as it will be given to `serve`
    #[arg(long, value_name = "DTYPE", default_value = "auto", value_parser = kv_cache_dtype)]
    kv_cache_dtype: KvCacheDtype,

    /// Tokens per KV block, as it will be given to `serve`
    #[arg(long, value_name = "TOKENS", default_value = "16", value_parser = quantity)]
    block_size: usize,

    /// Also those of `serve --quantization fp8`
    #[arg(long, value_name = "METHOD", value_parser = ["fp8"])]
    quantization: Option<String>,

    /// Also those of `serve --deterministic`
    #[arg(long, action = ArgAction::SetTrue)]
    deterministic: bool,
}

/// Runs the command.
pub fn kernels(args: KernelsArgs) -> Result<(), Failure> {
    let Action::Build(args) = args.action;
    let bars = Bars::new();
    logging::start_quiet(&bars)?;
    let unknown = || Failure::Usage("where this program is cannot be found out; give --output".into());
    let output = args.output.clone().or_else(kernels_beside_program).ok_or_else(unknown)?;
    let tasks = tasks(&args, &bars)?;
    let started = Instant::now();
    let built = build_all(&tasks, &output, &bars)?;
    print(&table(&built));
    let bytes: usize = built.iter().map(|built| built.bytes).sum();
    print(&format!(
        "{} kernels, {}, in {} ({:.0} s)\n",
        built.len(),
        size(bytes as u64),
        output.display(),
        started.elapsed().as_secs_f64()
    ));
    if args.output.is_some() {
        eprintln!("start with --kernels {0} or FIREBRICK_KERNELS={0}", output.display());
    }
    Ok(())
}

/// What all models need on all architectures, each once.
fn tasks(args: &BuildArgs, bars: &Bars) -> Result<Vec<KernelTask>, Failure> {
    let mut tasks = Vec::new();
    for name in &args.models {
        let source = loading::find(name, &SourceOptions::default(), bars)?;
        // A configuration is enough; weights, where there are any, say which of them are in FP8.
        let opened = Checkpoint::open(&source.path).or_else(|error| match source.path.is_dir() {
            true => Checkpoint::open_with_dummy_weights(&source.path),
            false => Err(error),
        });
        let checkpoint = opened.map_err(firebrick::Error::from)?;
        for &capability in &args.arch {
            let options = options(args, &checkpoint, capability)?;
            let steps = step_kernels(checkpoint.config(), options);
            for task in kernel_tasks(&steps, capability).map_err(firebrick::Error::from)? {
                if !tasks.contains(&task) {
                    tasks.push(task);
                }
            }
        }
    }
    Ok(tasks)
}

/// As `serve` will choose on a card of this compute capability.
fn options(args: &BuildArgs, checkpoint: &Checkpoint, capability: u32) -> Result<KernelOptions, Failure> {
    let config = checkpoint.config();
    let has_bfloat16 = capability >= 80;
    let dtype = match args.dtype.0 {
        Some(Dtype::BF16) if !has_bfloat16 => {
            let advice = "use --dtype auto or float16, or leave that architecture out";
            return Err(Failure::Usage(format!("sm_{capability} does not compute in bfloat16; {advice}")));
        }
        Some(dtype) => dtype,
        None if config.dtype == Dtype::BF16 && !has_bfloat16 => Dtype::F16,
        None => config.dtype,
    };
    let kv_dtype = match args.kv_cache_dtype {
        KvCacheDtype::Auto => dtype.into(),
        KvCacheDtype::Fp8E4m3 => KvDtype::E4m3,
    };
    Ok(KernelOptions {
        dtype,
        kv_dtype,
        block_size: args.block_size,
        deterministic: args.deterministic,
        fp8_weights: args.quantization.is_some() || checkpoint.stored_fp8_bytes(dtype).is_some(),
    })
}

/// One compiled kernel.
struct Built {
    source: &'static str,
    architecture: String,
    bytes: usize,
    seconds: f64,
}

/// Compiles on all cores; the first failure ends it.
fn build_all(tasks: &[KernelTask], folder: &Path, bars: &Bars) -> Result<Vec<Built>, Failure> {
    let bar = bars.count("kernels", tasks.len() as u64);
    let (next, built) = (AtomicUsize::new(0), Mutex::new(Ok(Vec::new())));
    let work = || {
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let started = Instant::now();
            let result = task.build(folder);
            let mut all = built.lock().expect("nobody panics while holding it");
            let Ok(done) = all.as_mut() else { return };
            match result {
                Ok(bytes) => done.push(Built {
                    source: task.source(),
                    architecture: task.architecture(),
                    bytes,
                    seconds: started.elapsed().as_secs_f64(),
                }),
                Err(error) => {
                    *all = Err(Failure::Run(error.to_string()));
                    return;
                }
            }
            bar.inc(1);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(work);
        }
    });
    bar.finish_and_clear();
    built.into_inner().expect("nobody panics while holding it")
}

/// A line for each source and architecture.
fn table(built: &[Built]) -> String {
    let mut lines: BTreeMap<(&str, &str), (usize, usize, f64)> = BTreeMap::new();
    for Built { source, architecture, bytes, seconds } in built {
        let line = lines.entry((source, architecture)).or_default();
        *line = (line.0 + 1, line.1 + bytes, line.2 + seconds);
    }
    let mut text = format!("{:<24} {:<8} {:>8} {:>12} {:>8}\n", "kernel", "for", "variants", "size", "seconds");
    for ((source, architecture), (variants, bytes, seconds)) in lines {
        text += &format!("{source:<24} {architecture:<8} {variants:>8} {:>12} {seconds:>8.1}\n", size(bytes as u64));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_sums_the_variants_of_a_source() {
        let built = |source, bytes, seconds| Built { source, architecture: "sm_80".into(), bytes, seconds };
        let text = table(&[built("sample", 1024, 0.5), built("linear", 10, 0.1), built("sample", 1024, 1.0)]);
        let lines: Vec<Vec<&str>> = text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines, [["linear", "sm_80", "1", "10", "B", "0.1"], ["sample", "sm_80", "2", "2.00", "KiB", "1.5"]]);
    }
}
