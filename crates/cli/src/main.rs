//! The `firebrick` command: wires the library to a terminal, files and signals, and decides nothing of its own.

mod args;
mod bench;
mod compare;
mod daily_file;
mod failure;
mod interrupt;
mod kernels;
mod learn;
mod loading;
mod logging;
mod models;
mod output;
mod plan;
mod progress;
mod replay;
mod run;
mod run_batch;
mod serve;
mod server_client;
mod talk;
mod typed;
mod vllm_flags;

use std::process::ExitCode;

use args::Command;
use failure::Failure;

fn main() -> ExitCode {
    let result = args::read(std::env::args_os().collect()).and_then(dispatch);
    firebrick::settle_devices();
    result.unwrap_or_else(|failure| {
        eprintln!("error: {failure}");
        ExitCode::from(failure.code())
    })
}

fn dispatch((command, notices): (Command, Vec<String>)) -> Result<ExitCode, Failure> {
    match command {
        Command::Serve(args) => return serve::serve(*args, &notices),
        Command::RunBatch(args) => run_batch::run_batch(*args, &notices)?,
        Command::Run(args) => run::run(*args)?,
        Command::Chat(args) => talk::chat(args)?,
        Command::Complete(args) => talk::complete(args)?,
        Command::Plan(args) => plan::plan(*args)?,
        Command::Bench(args) => bench::bench(*args)?,
        Command::Compare(args) => compare::compare(*args)?,
        Command::Learn(args) => learn::learn(*args)?,
        Command::Models(args) => models::models(args)?,
        Command::Kernels(args) => kernels::kernels(args)?,
        Command::Replay(args) => replay::replay(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}
