//! `firebrick serve`: opens the port, loads the model behind it, serves until told to stop.

mod bind;
mod config;
pub mod model;
mod signals;

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use firebrick::Options;
use firebrick_server::{AppState, ServerConfig, Tls, drain, serve as serve_http, serve_metrics};
use tokio::sync::watch;

use crate::args::ServeArgs;
use crate::failure::Failure;
use crate::logging::{self, LogOptions};
use crate::progress::Bars;
use bind::{Address, Opened, Place};
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
    let api_keys = config::api_keys(&args.operations)?;
    let place = Place::choose(&args, !api_keys.is_empty())?;
    let tls = config::tls(&args.operations)?;
    let config = config::server_config(&args, &api_keys)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(Start { name, options, config, place, tls, bars }, args))
}

/// Everything that is decided before the port opens.
struct Start {
    name: String,
    options: Options,
    config: ServerConfig,
    place: Place,
    tls: Option<Tls>,
    bars: Bars,
}

async fn run(start: Start, args: ServeArgs) -> Result<ExitCode, Failure> {
    let Opened { listener, url } = start.place.open(start.tls).await?;
    tracing::info!("firebrick {} serves {}", env!("CARGO_PKG_VERSION"), start.name);
    tracing::info!("listening on {url}; /health answers 503 until the model is loaded");
    let state = AppState::new(start.config);
    let mut signals = Signals::new()?;
    let (closing, _) = watch::channel(false);
    let mut servers = tokio::task::JoinSet::new();
    servers.spawn(serve_http(listener, state.clone(), closed(&closing)));
    if let Some(port) = args.metrics_port {
        let address = Address { host: args.metrics_host.clone(), port, flag: "--metrics-port" };
        let Opened { listener, url } = Place::Port(address).open(None).await?;
        tracing::info!("metrics on {url}/metrics");
        servers.spawn(serve_metrics(listener, state.clone(), closed(&closing)));
    }

    let plan = model::Plan::new(start.name, args.model.source_options(), start.options, &args.served);
    let plan = plan.recorded(args.record.clone());
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
