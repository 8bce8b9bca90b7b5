//! `firebrick serve`: opens the port, loads the model behind it, serves until told to stop.

mod bind;
mod config;
mod fleet;
pub mod model;
mod page;
mod signals;

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use firebrick::Options;
use firebrick_server::{AppState, EngineState, Model, ServerConfig, Tls, drain, serve as serve_http, serve_metrics};
use tokio::sync::{mpsc, watch};

use crate::args::ServeArgs;
use crate::failure::Failure;
use crate::logging::{self, LogOptions};
use crate::progress::Bars;
use bind::{Address, Opened, Place};
use fleet::Fleet;
use signals::Signals;

/// Runs the server; returns once it has drained.
pub fn serve(args: ServeArgs, notices: &[String]) -> Result<ExitCode, Failure> {
    let bars = Bars::new();
    let log = LogOptions { level: &args.log_level, format: args.log_format, file: args.log_file.as_deref() };
    logging::start(&log, &bars)?;
    for notice in notices {
        tracing::warn!("{notice}");
    }
    let options = Options { seed: args.seed, ..args.scheduling.apply(args.device.options()?) };
    let fleet = Fleet::new(&args, options, &bars)?;
    let api_keys = config::api_keys(&args.operations)?;
    let place = Place::choose(&args, !api_keys.is_empty())?;
    let tls = config::tls(&args.operations)?;
    let config = config::server_config(&args, &api_keys)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(run(Start { fleet, config, place, tls }, args));
    // A model that is still being loaded for an operator is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// Everything that is decided before the port opens.
struct Start {
    fleet: Fleet,
    config: ServerConfig,
    place: Place,
    tls: Option<Tls>,
}

async fn run(start: Start, args: ServeArgs) -> Result<ExitCode, Failure> {
    let Opened { listener, url } = start.place.open(start.tls).await?;
    tracing::info!("firebrick {} serves {}", env!("CARGO_PKG_VERSION"), start.fleet.names().join(", "));
    tracing::info!("listening on {url}; /health answers 503 until the model is loaded");
    let shows_page = start.config.page.is_some();
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

    let fleet = Arc::new(start.fleet);
    let (died, mut deaths) = mpsc::unbounded_channel();
    let watch = Watch { died, stats: !args.disable_log_stats };
    let loading = tokio::task::spawn_blocking({
        let (fleet, state, watch) = (fleet.clone(), state.clone(), watch.clone());
        move || {
            fleet.load_all(|model, facts| {
                facts.log(model.name());
                watch.over(&*state.add_model(model)?);
                Ok(())
            })
        }
    });
    tokio::select! {
        // Nothing has been promised to anybody yet; the thread that loads cannot be interrupted, so the process ends.
        signal = signals.next() => {
            tracing::info!("{signal} while loading; ending");
            std::process::exit(0);
        }
        loaded = loading => loaded.map_err(|_| Failure::Run("loading the model failed by a bug; please report it".into()))??,
    };
    state.set_loader(Arc::new(move |order| {
        let (model, facts) = fleet.load_another(order).map_err(|failure| failure.to_string())?;
        facts.log(model.name());
        watch.over(&model);
        Ok(model)
    }));
    state.set_started();
    if shows_page {
        tracing::info!("page: {url}/ui/");
    }
    tracing::info!("try: curl {url}/v1/models");
    tracing::info!("Application startup complete.");

    tokio::select! {
        signal = signals.next() => {
            drain_or_end(&state, signal, args.drain_timeout, &mut signals).await;
            closing.send_replace(true);
            while servers.join_next().await.is_some() {}
            tracing::info!("ended");
            Ok(ExitCode::SUCCESS)
        }
        Some(reason) = deaths.recv() => {
            // Time for the open requests to be told.
            tokio::time::sleep(Duration::from_millis(500)).await;
            Err(Failure::Run(format!("the engine has died: {reason}")))
        }
    }
}

/// What is done beside serving with every engine, until it ends.
#[derive(Clone)]
struct Watch {
    died: mpsc::UnboundedSender<String>,
    stats: bool,
}

impl Watch {
    /// Tells when the engine dies, and now and then what it does.
    fn over(&self, model: &Model) {
        let (engine, died) = (model.engine.clone(), self.died.clone());
        if self.stats {
            tokio::spawn(model::log_stats(engine.clone()));
        }
        tokio::spawn(async move {
            if let EngineState::Dead(reason) = engine.ended().await {
                // Nobody listens any more when the server is ending.
                let _ = died.send(reason);
            }
        });
    }
}

/// Signals so close to the first mean the same: `timeout` sends one to the process, and one to its group.
const SAME_SIGNAL: Duration = Duration::from_millis(50);

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
        signal = signals.next_but(SAME_SIGNAL) => {
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
