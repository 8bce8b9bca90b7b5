//! `firebrick models`: what is on this machine, more of it, or less.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use firebrick::{SourceOptions, cached_models, remove_cached, resolve_with};

use crate::failure::Failure;
use crate::logging;
use crate::output::{print, size};
use crate::progress::Bars;

const EXAMPLES: &str = "\
Examples:
  firebrick models pull HuggingFaceTB/SmolLM2-135M-Instruct
  firebrick models list
  firebrick models rm HuggingFaceTB/SmolLM2-135M-Instruct

The cache is the one of all Hugging Face tools: $HF_HOME/hub, else ~/.cache/huggingface/hub.";

/// List, download and delete models.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ModelsArgs {
    #[command(subcommand)]
    action: Action,

    /// Where downloaded models are kept [default: $HF_HOME/hub, else ~/.cache/huggingface/hub]
    #[arg(long, value_name = "FOLDER", global = true)]
    download_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the models on this machine
    List,
    /// Download a model, or a newer version of it
    Pull {
        /// A Hugging Face id: org/name, org/name@revision or org/name/file.gguf
        model: String,
    },
    /// Delete a model from the cache
    Rm {
        /// Its name, as `list` shows it
        model: String,
    },
}

/// Runs the command.
pub fn models(args: ModelsArgs) -> Result<(), Failure> {
    let bars = Bars::new();
    logging::start_quiet(&bars)?;
    let cache = args.download_dir;
    match args.action {
        Action::List => {
            let models = cached_models(cache.as_deref());
            if models.is_empty() {
                eprintln!("no models here yet; `firebrick models pull org/name` downloads one");
            }
            let line = |model: &firebrick::CachedModel| format!("{:>12}  {}\n", size(model.bytes), model.repository);
            print(&models.iter().map(line).collect::<String>());
        }
        Action::Pull { model } => {
            let options = SourceOptions { cache, refresh: true, ..SourceOptions::default() };
            let source = resolve_with(&model, &options, &mut bars.download(&model))?;
            print(&format!("{}\n", source.path.display()));
        }
        Action::Rm { model } => {
            let removed = remove_cached(&model, cache.as_deref())?;
            print(&format!("removed {}, {} are free again\n", removed.repository, size(removed.bytes)));
        }
    }
    Ok(())
}
