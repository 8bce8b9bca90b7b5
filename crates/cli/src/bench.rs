//! `firebrick bench`: how fast an engine or a server is.

mod arrivals;
mod client;
mod goodput;
mod offline;
mod report;
mod serving;
mod statistics;
mod suite;
mod workload;

pub use statistics::Sample;

use clap::{Args, Subcommand};

use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  firebrick bench throughput ./model.gguf --num-prompts 64 --input-len 128 --output-len 128
  firebrick bench latency ./model.gguf --batch-size 1 --input-len 32 --output-len 128
  firebrick bench serve --base-url http://127.0.0.1:8000 --num-prompts 100 --request-rate 4";

/// Measure throughput and latency, of the engine or of a server.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// Many requests at once on the engine itself: tokens per second
    Throughput(Box<offline::ThroughputArgs>),
    /// One batch again and again on the engine itself: seconds per batch
    Latency(Box<offline::LatencyArgs>),
    /// Requests to any server with the OpenAI API: time to first token, time per token, throughput
    Serve(Box<serving::ServingArgs>),
    /// A file of workloads on models of random weights: the same work for every engine
    Suite(Box<suite::SuiteArgs>),
}

/// Runs the command.
pub fn bench(args: BenchArgs) -> Result<(), Failure> {
    match args.kind {
        Kind::Throughput(args) => offline::throughput(*args),
        Kind::Latency(args) => offline::latency(*args),
        Kind::Serve(args) => serving::bench_serve(*args),
        Kind::Suite(args) => suite::suite(*args),
    }
}
