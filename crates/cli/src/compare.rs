//! `firebrick compare`: a numerical passport. One model on several backends, against the first of them or against
//! stored numbers: error of every layer, divergence of the logits, and the first token that differs.

mod numbers;
mod reference;
mod report;

use std::path::PathBuf;

use clap::Args;
use firebrick::{Backend, Error, tokenizer};
use firebrick_checkpoint::{Checkpoint, Dtype};

use crate::args::{DtypeArg, ModelArgs, dtype};
use crate::failure::Failure;
use crate::output::print;
use crate::progress::Bars;
use crate::{loading, logging};
use numbers::{Numbers, Runner};
use reference::Reference;
use report::Report;

const EXAMPLES: &str = "\
Examples:
  firebrick compare ./model.gguf --backends cpu,wgpu
  firebrick compare ./model --backends cuda,cpu --dtype float32 --prompt \"Once upon a time\" --check
  firebrick compare ./model --backends cpu --reference ./model/reference.safetensors --json";

/// Compare a model's numbers between backends, layer by layer.
///
/// The first backend is what the others are compared with, unless there is a reference.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CompareArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Backends, comma-separated: cpu, wgpu, cuda
    #[arg(long, value_name = "LIST", default_value = "cpu,wgpu", value_delimiter = ',', value_parser = backend, help_heading = "Comparison")]
    pub backends: Vec<Backend>,

    /// Text to compute with
    #[arg(long, value_name = "TEXT", default_value = "The capital of France is", help_heading = "Comparison")]
    pub prompt: String,

    /// Tokens to generate greedily after it
    #[arg(long, value_name = "TOKENS", default_value = "32", help_heading = "Comparison")]
    pub max_tokens: usize,

    /// Stored numbers to compare with: a safetensors file with prompt.0, hidden.0.LAYER, logits.0 and greedy.0; its
    /// prompt replaces --prompt [default: reference.safetensors in the model's folder, if there is one]
    #[arg(long, value_name = "FILE", help_heading = "Comparison")]
    pub reference: Option<PathBuf>,

    /// Form of the weights: auto (each backend's own), float32, float16, bfloat16
    #[arg(long, default_value = "auto", value_parser = dtype, help_heading = "Comparison")]
    pub dtype: DtypeArg,

    /// End with exit code 1 if any generated token differs, or nothing was compared
    #[arg(long, help_heading = "Results")]
    pub check: bool,

    /// Print JSON instead of a table
    #[arg(long, help_heading = "Results")]
    pub json: bool,
}

fn backend(name: &str) -> Result<Backend, String> {
    let known = [Backend::Cpu, Backend::Wgpu, Backend::Cuda];
    let found = known.into_iter().find(|backend| backend.name() == name);
    found.ok_or_else(|| format!("no backend `{name}`; there are cpu, wgpu and cuda"))
}

/// Runs the command.
pub fn compare(args: CompareArgs) -> Result<(), Failure> {
    let bars = Bars::new();
    logging::start_quiet(&bars)?;
    let source = loading::find(&args.model.required()?, &args.model.source_options(), &bars)?;
    let checkpoint = Checkpoint::open(&source.path).map_err(Error::from)?;
    let beside = source.path.join("reference.safetensors");
    let reference = match args.reference.or_else(|| beside.exists().then_some(beside)) {
        Some(path) => Some((path.display().to_string(), Reference::open(&path)?)),
        None => None,
    };
    let prompt = match &reference {
        Some((_, reference)) => reference.prompt.clone(),
        None => tokenizer(&checkpoint)?.try_encode(&args.prompt, true).map_err(Error::from)?,
    };
    let length = prompt.len() + args.max_tokens;
    if prompt.is_empty() || length > checkpoint.config().max_position_embeddings {
        return Err(Failure::Usage(format!(
            "the prompt has {} tokens and --max-tokens is {}, but the model is made for 1 to {} tokens",
            prompt.len(),
            args.max_tokens,
            checkpoint.config().max_position_embeddings
        )));
    }
    let mut runs = Vec::new();
    for backend in &args.backends {
        let bar = bars.bytes(&format!("loading onto {}", backend.name()), None);
        let dtype = choose_dtype(args.dtype, &checkpoint, *backend);
        let runner = Runner::load(&checkpoint, *backend, dtype, length, &mut |bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        let num_tokens = reference.as_ref().map_or(args.max_tokens, |(_, reference)| reference.numbers.greedy.len());
        runs.push((backend.name().to_owned(), runner.run(&prompt, num_tokens.min(args.max_tokens))?));
    }
    let truth: (String, Numbers) = match reference {
        Some((path, reference)) => (path, reference.numbers),
        None => runs.remove(0),
    };
    let report = Report::new(checkpoint.config().architecture.name(), prompt.len(), &truth, &runs);
    print(&if args.json { format!("{:#}\n", report.to_json()) } else { report.to_string() });
    if args.check && report.is_empty() {
        let remedy = "name two with --backends, or another reference with --reference";
        return Err(Failure::Run(format!("--check: nothing was compared, since there is one backend alone; {remedy}")));
    }
    if args.check && report.diverges() {
        return Err(Failure::Run(format!("not all backends generate the tokens of {}", truth.0)));
    }
    Ok(())
}

/// wgpu has no bfloat16.
fn choose_dtype(wanted: DtypeArg, checkpoint: &Checkpoint, backend: Backend) -> Dtype {
    match (wanted.0.unwrap_or(checkpoint.config().dtype), backend) {
        (Dtype::BF16, Backend::Wgpu) => Dtype::F16,
        (dtype, _) => dtype,
    }
}
