//! The log: on standard error, and in a file for each day where one is asked for.

use std::io::IsTerminal;
use std::path::Path;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt as log_format};

use crate::args::LogFormat;
use crate::daily_file::DailyFile;
use crate::failure::Failure;
use crate::progress::Bars;

/// What is logged, and where.
pub struct LogOptions<'a> {
    /// `error`, `warn`, `info`, `debug` or `trace`; other crates' lines only from `warn` on.
    pub level: &'a str,
    /// How lines look.
    pub format: LogFormat,
    /// A file beside standard error.
    pub file: Option<&'a Path>,
}

/// Starts the log. `RUST_LOG` comes before the level.
pub fn start(options: &LogOptions, bars: &Bars) -> Result<(), Failure> {
    let filter = filter(options.level)?;
    let colors = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let screen = match options.format {
        LogFormat::Text => log_format::layer().with_target(false).with_ansi(colors).with_writer(bars.clone()).boxed(),
        LogFormat::Json => log_format::layer().json().with_writer(bars.clone()).boxed(),
    };
    let file = match options.file {
        Some(path) => {
            let file = open(path)?;
            Some(match options.format {
                LogFormat::Text => log_format::layer().with_target(false).with_ansi(false).with_writer(file).boxed(),
                LogFormat::Json => log_format::layer().json().with_writer(file).boxed(),
            })
        }
        None => None,
    };
    tracing_subscriber::registry().with(filter).with(screen).with(file).init();
    Ok(())
}

/// Commands that talk to a person log only what goes wrong.
pub fn start_quiet(bars: &Bars) -> Result<(), Failure> {
    start(&LogOptions { level: "warn", format: LogFormat::Text, file: None }, bars)
}

fn filter(level: &str) -> Result<EnvFilter, Failure> {
    if let Ok(directives) = std::env::var("RUST_LOG")
        && !directives.is_empty()
    {
        return EnvFilter::try_new(&directives)
            .map_err(|error| Failure::Usage(format!("RUST_LOG is `{directives}`: {error}; try RUST_LOG=info")));
    }
    let level = match level.to_ascii_lowercase().as_str() {
        "critical" => "error".to_owned(),
        "warning" => "warn".to_owned(),
        known @ ("off" | "error" | "warn" | "info" | "debug" | "trace") => known.to_owned(),
        other => {
            let message = format!("--log-level is `{other}`; it must be error, warn, info, debug, trace or off");
            return Err(Failure::Usage(message));
        }
    };
    let others = if level == "off" { "off" } else { "error" };
    // Probing for graphics drivers fails loudly on machines that have some kinds and not others.
    Ok(EnvFilter::new(format!("{others},wgpu_hal=off,firebrick={level}")))
}

fn open(path: &Path) -> Result<DailyFile, Failure> {
    DailyFile::open(path).map_err(|error| {
        Failure::Run(format!("cannot write the log file {}: {error}; check --log-file", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_level_is_refused() {
        assert!(std::env::var_os("RUST_LOG").is_some() || filter("loud").is_err());
    }
}
