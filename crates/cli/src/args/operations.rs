//! `firebrick serve`: who may call, how much, over what, under vLLM's names where it has them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

use super::values::{quantity, seconds, switch};

/// Keys, certificates, addresses and limits of the server.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Access")]
pub struct OperationsArgs {
    /// Keys that clients must send as `Authorization: Bearer KEY`; several keys have prefix caches of their own
    #[arg(long, value_name = "KEY", num_args = 1.., env = "VLLM_API_KEY", hide_env_values = true)]
    pub api_key: Vec<String>,

    /// A file of such keys, one a line; empty lines and those that begin with # say nothing
    #[arg(long, value_name = "FILE", env = "FIREBRICK_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Key of /admin/requests, /admin/pause, /admin/resume, /v1/models/load, /v1/models/unload and, with --trace,
    /// /v1/trace, which do not exist without one
    #[arg(long, value_name = "KEY", env = "FIREBRICK_ADMIN_KEY", hide_env_values = true)]
    pub admin_key: Vec<String>,

    /// Listen on other than loopback addresses without an API key: everybody who reaches the port can use the model
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = switch, action = ArgAction::Set)]
    #[arg(env = "FIREBRICK_ALLOW_UNAUTHENTICATED")]
    pub allow_unauthenticated: bool,

    /// Certificate of the server in PEM form, followed by those that lead to a known authority; turns TLS on
    #[arg(long, value_name = "FILE", requires = "ssl_keyfile")]
    pub ssl_certfile: Option<PathBuf>,

    /// Private key of the certificate
    #[arg(long, value_name = "FILE", requires = "ssl_certfile")]
    pub ssl_keyfile: Option<PathBuf>,

    /// Authorities that clients' certificates must come from
    #[arg(long, value_name = "FILE", requires = "ssl_certfile")]
    pub ssl_ca_certs: Option<PathBuf>,

    /// Certificates of clients: 0 not asked for, 1 checked if shown, 2 required
    #[arg(long, value_name = "0|1|2", default_value = "0", value_parser = clap::value_parser!(u8).range(0..=2))]
    pub ssl_cert_reqs: u8,

    /// Listen on this Unix socket instead of a port
    #[arg(long, value_name = "PATH", conflicts_with = "host")]
    pub uds: Option<PathBuf>,

    /// Answer below this path too, for a proxy that does not remove it, such as /llm
    #[arg(long, value_name = "PATH")]
    pub root_path: Option<String>,

    /// Do not serve /docs and /openapi.json
    #[arg(long, alias = "disable-docs", value_name = "BOOL", default_value = "false", num_args = 0..=1)]
    #[arg(require_equals = true, default_missing_value = "true", value_parser = switch, action = ArgAction::Set)]
    pub disable_fastapi_docs: bool,

    /// Send traces of requests to this collector, as OTLP over HTTP in JSON; the port is usually 4318. OTEL_SERVICE_NAME
    /// and OTEL_EXPORTER_OTLP_HEADERS are heeded [default: no traces]
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", help_heading = "Logging")]
    pub otlp_traces_endpoint: Option<String>,

    /// Generating requests that may be open at the same time; more get 503 [default: no limit but the queue's]
    #[arg(long, value_name = "REQUESTS", value_parser = quantity, help_heading = "Limits")]
    pub max_concurrent_requests: Option<usize>,

    /// The same for each API key; more get 429 [default: no limit]
    #[arg(long, value_name = "REQUESTS", help_heading = "Limits")]
    pub max_concurrent_requests_per_key: Option<u32>,

    /// Requests that generate, tokenize or detokenize per minute for each API key, all callers sharing one where there are
    /// no keys; more get 429
    #[arg(long, value_name = "REQUESTS", help_heading = "Limits")]
    pub rate_limit_requests: Option<u32>,

    /// Tokens of prompts and answers per minute for each API key [default: no limit]
    #[arg(long, value_name = "TOKENS", help_heading = "Limits")]
    pub rate_limit_tokens: Option<u32>,

    /// Time for a request from its arrival to its last token; longer ones end with 504; 0 is no limit
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds, help_heading = "Limits")]
    pub request_timeout: Duration,

    /// Send a comment after so much silence in an event stream, for proxies that close quiet connections; 0 sends none
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds, help_heading = "Limits")]
    pub sse_keep_alive_interval: Duration,
}
