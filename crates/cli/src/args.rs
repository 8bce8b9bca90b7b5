//! The command line: subcommands and what happens to it before clap sees it.

mod model;
mod operations;
mod remote;
mod sampling;
mod serve;
mod served;
mod spelling;
mod values;

use std::env;
use std::ffi::{OsStr, OsString};

use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use model::{
    DeviceArg, DeviceArgs, DtypeArg, ModelArgs, SchedulingArgs, cuda_arch, dtype, kernels_beside_program,
    kv_cache_dtype,
};
pub use operations::OperationsArgs;
pub use remote::RemoteArgs;
pub use sampling::SamplingArgs;
pub use serve::{LogFormat, ServeArgs};
pub use served::{GenerationConfigSource, ServedArgs};
pub use values::{ModelLen, quantity, share, size_in_bytes};

use crate::failure::Failure;
use crate::vllm_flags;

const ABOUT: &str = "\
Firebrick serves large language models: one binary, an OpenAI-compatible API, and the same model
code on the CPU, on any GPU (wgpu) and on NVIDIA GPUs (CUDA).

A MODEL is a Hugging Face id (HuggingFaceTB/SmolLM2-135M-Instruct), a folder with config.json and
safetensors, or a .gguf file.";

const EXAMPLES: &str = "\
Examples:
  firebrick serve HuggingFaceTB/SmolLM2-135M-Instruct       an OpenAI-compatible server on port 8000
  firebrick run ./model.gguf                                chat in the terminal
  firebrick run ./model.gguf --prompt \"Why is the sky blue?\"

`firebrick COMMAND --help` explains a command, with more examples. vLLM's flags work:
`firebrick --model X --port 80` is `firebrick serve --model X --port 80`.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "firebrick", version, about = "Serve large language models", long_about = ABOUT)]
#[command(after_help = EXAMPLES, max_term_width = 120, arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP, with the OpenAI API
    Serve(Box<ServeArgs>),
    /// Chat with a model in the terminal, or answer one prompt
    Run(Box<crate::run::RunArgs>),
    /// Chat with a running server
    Chat(crate::talk::ChatArgs),
    /// Have a running server continue texts
    Complete(crate::talk::CompleteArgs),
    /// Answer the requests of a file in OpenAI's batch format
    RunBatch(Box<crate::run_batch::RunBatchArgs>),
    /// Say how much memory a model needs, without loading it
    Plan(Box<crate::plan::PlanArgs>),
    /// Measure throughput and latency, of the engine or of a server
    Bench(Box<crate::bench::BenchArgs>),
    /// Compare a model's numbers between backends, layer by layer
    Compare(Box<crate::compare::CompareArgs>),
    /// Learn how a serving engine works, with figures measured here; or test a server
    Learn(Box<crate::learn::LearnArgs>),
    /// List, download and delete models
    Models(crate::models::ModelsArgs),
    /// Compile the CUDA kernels of models ahead
    Kernels(crate::kernels::KernelsArgs),
    /// Repeat the decisions of a recorded server and compare
    Replay(crate::replay::ReplayArgs),
}

/// Reads the command line. Beside the command come warnings about vLLM's flags that have no effect here.
pub fn read(args: Vec<OsString>) -> Result<(Command, Vec<String>), Failure> {
    let spelled = spelling::normalise(args);
    let (args, notices) = vllm_flags::take_out(spelled)?;
    let cli = parse(args).unwrap_or_else(|error| error.exit());
    Ok((cli.command, notices))
}

fn parse(args: Vec<OsString>) -> Result<Cli, clap::Error> {
    let mut command = without_empty_variables(Cli::command());
    let mut matches = command.try_get_matches_from_mut(args)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// An environment variable that is empty, as compose files write those that are not set, says nothing.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| env::var_os(name).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| match arg.get_env() {
        Some(name) if is_empty(name) => arg.env(Resettable::Reset),
        _ => arg,
    });
    command.mut_subcommands(without_empty_variables)
}

#[cfg(test)]
mod tests {
    use super::*;
    use firebrick::KvCacheDtype;

    pub(super) fn parse(line: &str) -> Result<Command, String> {
        let args = line.split_whitespace().map(OsString::from).collect();
        let (args, _) = vllm_flags::take_out(spelling::normalise(args)).map_err(|failure| failure.to_string())?;
        super::parse(args).map(|cli| cli.command).map_err(|error| error.to_string())
    }

    fn serve(line: &str) -> ServeArgs {
        match parse(line) {
            Ok(Command::Serve(args)) => *args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_without_a_command_are_those_of_serve() {
        let args = serve("firebrick --model m --port 81 --max-model-len 2k");
        assert_eq!((args.model.models(), args.port), (vec!["m".to_owned()], 81));
        assert_eq!(args.device.max_model_len, Some(ModelLen::Tokens(2000)));
    }

    #[test]
    fn switches_are_written_in_every_usual_way() {
        assert!(serve("firebrick serve m").scheduling.enable_prefix_caching);
        for off in ["--no-enable-prefix-caching", "--enable-prefix-caching=false", "--no_enable_prefix_caching"] {
            assert!(!serve(&format!("firebrick serve m {off}")).scheduling.enable_prefix_caching, "{off}");
        }
        assert!(serve("firebrick serve --enable-prefix-caching m").scheduling.enable_prefix_caching);
    }

    #[test]
    fn switches_that_are_off_can_be_turned_off() {
        for flag in ["--no-enforce-eager", "--no_enforce_eager", "--enforce-eager=false", "--no-deterministic"] {
            let args = serve(&format!("firebrick serve m {flag}"));
            assert!(!args.scheduling.enforce_eager && !args.scheduling.deterministic, "{flag}");
        }
        assert!(serve("firebrick serve m --enforce-eager").scheduling.enforce_eager);
    }

    #[test]
    fn as_many_logprobs_as_possible_are_minus_one() {
        assert_eq!(serve("firebrick serve m --max-logprobs -1").max_logprobs, 20);
        assert!(parse("firebrick serve m --max-logprobs -2").is_err());
    }

    #[test]
    fn several_names_follow_one_flag() {
        let args = serve("firebrick serve m --served-model-name a b --host localhost");
        assert_eq!(args.served.served_model_name, ["a", "b"]);
    }

    #[test]
    fn several_models_are_given_in_either_spelling_to_serve_alone() {
        assert_eq!(serve("firebrick serve a b --port 81").model.models(), ["a", "b"]);
        let args = serve("firebrick --model a --model b --max-models 3");
        assert_eq!((args.model.models().len(), args.max_models), (2, Some(3)));
        assert!(parse("firebrick run a b").is_err());
        let Ok(Command::Run(args)) = parse("firebrick run --model a --model b") else { panic!("clap takes them") };
        assert!(args.model.required().expect_err("refused").to_string().contains("takes one"));
    }

    #[test]
    fn q_means_what_it_means_to_vllm() {
        for line in ["firebrick chat -q hello", "firebrick complete --quick hello --url http://host/v1"] {
            assert!(matches!(parse(line), Ok(Command::Chat(_) | Command::Complete(_))), "{line}");
        }
        assert_eq!(serve("firebrick serve m -q awq").device.quantization.as_deref(), Some("awq"));
        assert!(parse("firebrick serve m -q squeezellm").expect_err("refused").contains("awq, gptq"));
    }

    #[test]
    fn a_path_of_older_cards_is_a_known_architecture() {
        let path = |name: &str| parse(&format!("firebrick serve m --cuda-arch-path {name}"));
        let Ok(Command::Serve(args)) = path("sm_75") else { panic!("a T4's") };
        assert_eq!(args.device.cuda_arch_path, Some(75));
        for name in ["sm_61", "75", "sm_", "hopper"] {
            assert!(path(name).expect_err("refused").contains("sm_80"), "{name}");
        }
    }

    #[test]
    fn forms_of_the_cache_have_vllms_names() {
        for (name, dtype) in
            [("auto", KvCacheDtype::Auto), ("fp8", KvCacheDtype::Fp8E4m3), ("fp8_e4m3", KvCacheDtype::Fp8E4m3)]
        {
            assert_eq!(serve(&format!("firebrick serve m --kv-cache-dtype {name}")).device.kv_cache_dtype, dtype);
        }
        assert!(parse("firebrick serve m --kv-cache-dtype fp8_e5m2").expect_err("refused").contains("fp8_e4m3"));
    }

    #[test]
    fn keys_certificates_and_limits_are_read() {
        let args = serve("firebrick serve m --api-key a b --api-key c --request-timeout 1.5 --uds /run/api.sock");
        assert_eq!(args.operations.api_key, ["a", "b", "c"]);
        assert_eq!(args.operations.request_timeout, std::time::Duration::from_millis(1500));
        assert!(serve("firebrick serve m --disable-fastapi-docs").operations.disable_fastapi_docs);
        assert!(parse("firebrick serve m --ssl-certfile x.pem").is_err(), "a certificate needs its key");
        assert!(parse("firebrick serve m --uds /x --host 0.0.0.0").is_err(), "a socket or a port, not both");
        assert!(parse("firebrick serve m --request-timeout -1").is_err(), "time runs forward");
    }

    #[test]
    fn an_unknown_flag_is_refused_with_a_suggestion() {
        let message = parse("firebrick serve m --max-model-length 10").expect_err("there is no such flag");
        assert!(message.contains("--max-model-len"), "{message}");
    }
}
