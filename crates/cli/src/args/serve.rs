//! `firebrick serve`: its arguments, under vLLM's names.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

use super::model::{DeviceArgs, ModelArgs, SchedulingArgs};
use super::operations::OperationsArgs;
use super::served::ServedArgs;
use super::values::{logprobs, quantity, switch};
use crate::vllm_flags;

const EXAMPLES: &str = "\
Examples:
  firebrick serve HuggingFaceTB/SmolLM2-135M-Instruct
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'

  firebrick serve ./model.gguf --max-model-len 4k --host 0.0.0.0 --api-key SECRET
  firebrick --model ./model.gguf --port 8001       the spelling of vLLM's api_server
  firebrick serve ./small.gguf ./large.gguf --served-model-name small large       two models, told apart by `model`";

/// Serve one model or several over HTTP, with the OpenAI API.
///
/// The port opens at once; /health answers 503 until the model is loaded. Ctrl-C or SIGTERM stops accepting requests,
/// finishes those that run, and ends; a second one ends at once.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, after_long_help = vllm_flags::long_help(EXAMPLES))]
#[command(mut_arg("model_argument", |model| model.num_args(0..)))]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    #[command(flatten)]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub scheduling: SchedulingArgs,

    #[command(flatten)]
    pub operations: OperationsArgs,

    /// Requests that bring no seed derive theirs from this
    #[arg(long, default_value = "0", help_heading = "Scheduling")]
    pub seed: u64,

    #[command(flatten)]
    pub served: ServedArgs,

    /// Address to listen on [env: HOST] [default: 127.0.0.1; 0.0.0.0 where an API key is set]
    #[arg(long, value_name = "ADDRESS", help_heading = "Server")]
    pub host: Option<String>,

    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value = "8000", env = "PORT", help_heading = "Server")]
    pub port: u16,

    /// JSON list of the web pages that may call, such as '["https://example.org"]' [default: none, CORS off]
    #[arg(long, value_name = "JSON", help_heading = "Server")]
    pub allowed_origins: Option<String>,

    /// JSON list of the methods that web pages may use
    #[arg(long, value_name = "JSON", default_value = r#"["*"]"#, help_heading = "Server")]
    pub allowed_methods: String,

    /// JSON list of the headers that web pages may send
    #[arg(long, value_name = "JSON", default_value = r#"["*"]"#, help_heading = "Server")]
    pub allowed_headers: String,

    /// Serve /metrics on this port too, without a key, on --metrics-host [default: off]
    #[arg(long, value_name = "PORT", env = "METRICS_PORT", help_heading = "Server")]
    pub metrics_port: Option<u16>,

    /// Address of the metrics port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "Server")]
    pub metrics_host: String,

    /// Serve the page that draws the engine at work, and runs it in a browser tab, at /ui/: the one in this program, or
    /// the one in a folder, as in --ui=web-demo/page/dist
    #[arg(long, value_name = "FOLDER", require_equals = true, help_heading = "Server")]
    pub ui: Option<Option<PathBuf>>,

    /// Show the engine's state after each step, and the tokens in its blocks, at /v1/trace to those who have an --admin-key
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = switch, action = ArgAction::Set, help_heading = "Server")]
    pub trace: bool,

    /// Tokens in a chunk of a stream; the first token and the end of an answer never wait. Requests may ask for more
    #[arg(long, value_name = "TOKENS", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(help_heading = "Server")]
    pub stream_interval: u32,

    /// Milliseconds for which tokens of a stream wait for the next ones, while 64 requests are open: that many small
    /// writes cost more than the text. First tokens and ends never wait; 0 sends each at once
    #[arg(long, value_name = "MS", default_value = "8", value_parser = clap::value_parser!(u64).range(..=1000))]
    #[arg(help_heading = "Server")]
    pub stream_gather_ms: u64,

    /// Every chunk of a stream has the usage so far, and a last one all of it, whatever the client asked for
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = switch, action = ArgAction::Set, help_heading = "Server")]
    pub enable_force_include_usage: bool,

    /// Models at once: what their weights leave of the memory is divided into so many KV caches; more than are given
    /// leave room for models that /v1/models/load brings [default: as many as are given]
    #[arg(long, value_name = "MODELS", value_parser = quantity, help_heading = "Limits")]
    pub max_models: Option<usize>,

    /// Bytes of a request
    #[arg(long, value_name = "BYTES", default_value = "8M", value_parser = quantity, help_heading = "Limits")]
    pub max_body_size: usize,

    /// Open connections, each of which takes at most 64 KiB before its request is whole
    #[arg(long, value_name = "CONNECTIONS", default_value = "10000", value_parser = quantity, help_heading = "Limits")]
    pub max_connections: usize,

    /// Tokens of prompts whose answers have not begun; requests that come when there are so many are answered 503
    /// [default: no limit]
    #[arg(long, value_name = "TOKENS", value_parser = quantity, help_heading = "Limits")]
    pub max_num_queued_tokens: Option<usize>,

    /// Log-probabilities per token that a request may ask for, 20 (or -1) at most
    #[arg(long, value_name = "COUNT", default_value = "20", value_parser = logprobs, allow_hyphen_values = true)]
    #[arg(help_heading = "Limits")]
    pub max_logprobs: u32,

    /// Seconds that running requests may take to finish after Ctrl-C or SIGTERM
    #[arg(long, value_name = "SECONDS", default_value = "30", alias = "shutdown-timeout", help_heading = "Limits")]
    pub drain_timeout: u64,

    /// error, warn, info, debug or trace; RUST_LOG can say more
    #[arg(long, value_name = "LEVEL", default_value = "info", help_heading = "Logging")]
    pub log_level: String,

    /// How log lines look
    #[arg(long, value_enum, default_value = "text", help_heading = "Logging")]
    pub log_format: LogFormat,

    /// Write the log to this file too; each day has a file of its own (server.log: server-2026-01-31.log)
    #[arg(long, value_name = "FILE", help_heading = "Logging")]
    pub log_file: Option<PathBuf>,

    /// Log each request (never its texts); --no-enable-log-requests turns it off
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = switch, action = ArgAction::Set, help_heading = "Logging")]
    pub enable_log_requests: bool,

    /// Log no requests
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = switch, action = ArgAction::Set, help_heading = "Logging")]
    pub disable_log_requests: bool,

    /// Record what comes in and what the engine decides, prompts included; `firebrick replay FILE` checks it
    #[arg(long, value_name = "FILE", help_heading = "Logging")]
    pub record: Option<PathBuf>,

    /// Do not log the state of a busy engine every ten seconds
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = switch, action = ArgAction::Set, help_heading = "Logging")]
    pub disable_log_stats: bool,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}
