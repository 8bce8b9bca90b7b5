//! `firebrick serve`: opens the port, loads the model behind it, serves until told to stop.

mod bind;
mod model;
mod signals;

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use firebrick::Options;
use firebrick_server::{
    ApiKeys, AppState, CorsConfig, Limits, ServerConfig, drain, serve as serve_http, serve_metrics,
};
use tokio::sync::watch;

use crate::args::ServeArgs;
use crate::failure::Failure;
use crate::logging::{self, LogOptions};
use crate::progress::Bars;
use bind::Address;
use signals::Signals;

/// Runs the server; returns once it has drained.
pub fn serve(args: ServeArgs, notices: &[String]) -> Result<ExitCode, Failure> {
    let bars = Bars::new();
    let log = LogOptions { level: &args.log_level, format: args.log_format, file: args.log_file.as_deref() };
    logging::start(&log, &bars)?;
    for notice in notices {
        tracing::warn!("{notice}");
    }
    let name = args.model.model().ok_or_else(|| {
        Failure::Usage(
            "no model given; name one as in `firebrick serve HuggingFaceTB/SmolLM2-135M-Instruct`, or set MODEL_NAME"
                .into(),
        )
    })?;
    let options = Options { seed: args.seed, ..args.scheduling.apply(args.device.options()?) };
    let config = server_config(&args)?;
    let address = Address::choose(&args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(Start { name, options, config, address, bars }, args))
}

/// Everything that is decided before the port opens.
struct Start {
    name: String,
    options: Options,
    config: ServerConfig,
    address: Address,
    bars: Bars,
}

async fn run(start: Start, args: ServeArgs) -> Result<ExitCode, Failure> {
    let listener = start.address.listen().await?;
    let url = bind::url(&listener);
    tracing::info!("firebrick {} serves {}", env!("CARGO_PKG_VERSION"), start.name);
    tracing::info!("listening on {url}; /health answers 503 until the model is loaded");
    let state = AppState::new(start.config);
    let mut signals = Signals::new()?;
    let (closing, _) = watch::channel(false);
    let mut servers = tokio::task::JoinSet::new();
    servers.spawn(serve_http(listener, state.clone(), closed(&closing)));
    if let Some(port) = args.metrics_port {
        let metrics = Address { host: args.metrics_host.clone(), port, flag: "--metrics-port" };
        let listener = metrics.listen().await?;
        tracing::info!("metrics on {}/metrics", bind::url(&listener));
        servers.spawn(serve_metrics(listener, state.clone(), closed(&closing)));
    }

    let plan = model::Plan::new(start.name, start.options, &args);
    let bars = start.bars.clone();
    let loading = tokio::task::spawn_blocking(move || plan.load(&bars));
    let (model, facts) = tokio::select! {
        // Nothing has been promised to anybody yet; the thread that loads cannot be interrupted, so the process ends.
        signal = signals.next() => {
            tracing::info!("{signal} while loading; ending");
            std::process::exit(0);
        }
        loaded = loading => loaded.map_err(|_| Failure::Run("loading the model failed by a bug; please report it".into()))??,
    };
    let engine = model.engine.clone();
    let served = model.name().to_owned();
    state.set_model(model);
    facts.log(&url, &served);
    if !args.disable_log_stats {
        tokio::spawn(model::log_stats(engine.clone()));
    }

    tokio::select! {
        signal = signals.next() => {
            drain_or_end(&state, signal, args.drain_timeout, &mut signals).await;
            closing.send_replace(true);
            while servers.join_next().await.is_some() {}
            tracing::info!("ended");
            Ok(ExitCode::SUCCESS)
        }
        reason = engine.dead() => {
            // Time for the open requests to be told.
            tokio::time::sleep(Duration::from_millis(500)).await;
            Err(Failure::Run(format!("the engine has died: {reason}")))
        }
    }
}

/// Lets the open requests finish; another signal ends the process at once.
async fn drain_or_end(state: &AppState, signal: &str, seconds: u64, signals: &mut Signals) {
    let open = state.num_active();
    tracing::info!("{signal}: no new requests; {open} are open and have {seconds} s to finish; again ends now");
    tokio::select! {
        finished = drain(state, Duration::from_secs(seconds)) => {
            if !finished {
                tracing::warn!("some requests were cut off after {seconds} s; --drain-timeout allows more");
            }
        }
        signal = signals.next() => {
            tracing::warn!("{signal} again: ending now");
            std::process::exit(0);
        }
    }
}

/// Ready once the servers are to close.
fn closed(closing: &watch::Sender<bool>) -> impl Future<Output = ()> + use<> {
    let mut closed = closing.subscribe();
    async move {
        // The sender lives until the servers have ended.
        let _ = closed.wait_for(|&closed| closed).await;
    }
}

fn server_config(args: &ServeArgs) -> Result<ServerConfig, Failure> {
    let list = |flag: &str, text: &str| -> Result<Vec<String>, Failure> {
        let help =
            || Failure::Usage(format!("{flag} is `{text}`, but must be a JSON list of strings such as '[\"*\"]'"));
        serde_json::from_str(text).map_err(|_| help())
    };
    let cors = match &args.allowed_origins {
        Some(origins) => Some(CorsConfig {
            origins: list("--allowed-origins", origins)?,
            methods: list("--allowed-methods", &args.allowed_methods)?,
            headers: list("--allowed-headers", &args.allowed_headers)?,
        }),
        None => None,
    };
    Ok(ServerConfig {
        limits: Limits {
            body_bytes_max: args.max_body_size,
            connections_max: args.max_connections.max(1),
            logprobs_max: args.max_logprobs,
            ..Limits::default()
        },
        api_keys: ApiKeys::new(&args.api_key),
        cors,
        log_requests: args.enable_log_requests && !args.disable_log_requests,
        version: env!("CARGO_PKG_VERSION"),
        ..ServerConfig::default()
    })
}
