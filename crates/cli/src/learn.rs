//! `firebrick learn`: how a serving engine works, in ten steps that measure on this machine; or four tests of a server.

mod classroom;
mod comparison;
mod drawing;
mod server_tests;
mod steps;

use clap::{Args, ValueEnum};

use crate::args::{DeviceArgs, ModelArgs};
use crate::failure::Failure;
use crate::output::print;
use crate::progress::Bars;
use crate::{loading, logging};

use classroom::Classroom;
use server_tests::Server;

const EXAMPLES: &str = "\
Examples:
  firebrick learn ./model.gguf                                    ten steps, measured here
  firebrick learn ./model.gguf --step 3                           one of them
  firebrick learn --url http://127.0.0.1:8000                     four tests of a server
  firebrick learn --url http://127.0.0.1:8000 --test batch --num-requests 20
  firebrick learn --url http://127.0.0.1:8000 --interactive       talk to it";

/// Learn how a serving engine works, step by step, with figures measured on this machine.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct LearnArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// Run this step only, 1 to 10
    #[arg(long, value_name = "NUMBER", conflicts_with = "url", value_parser = clap::value_parser!(u8).range(1..=10))]
    step: Option<u8>,

    /// Test a server with the OpenAI API instead
    #[arg(long, value_name = "URL", help_heading = "A server")]
    url: Option<String>,

    /// Which test; all of them unless one is named
    #[arg(long, value_enum, requires = "url", help_heading = "A server")]
    test: Option<Test>,

    /// Concurrent requests of the test `batch`
    #[arg(long, value_name = "REQUESTS", default_value = "5", requires = "url", help_heading = "A server")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    num_requests: u16,

    /// Talk to the server, a line at a time
    #[arg(long, requires = "url", conflicts_with = "test", help_heading = "A server")]
    interactive: bool,

    /// Key of the server
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true, help_heading = "A server")]
    api_key: Option<String>,

    #[command(flatten)]
    device: DeviceArgs,
}

/// A test of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Test {
    /// One request
    Single,
    /// Several requests at once
    Batch,
    /// Blocks that short and long answers need
    Paging,
    /// Temperatures 0, 0.7 and 1.5 side by side
    Sampling,
}

impl Test {
    /// In the order in which they run.
    const ALL: [Self; 4] = [Self::Single, Self::Batch, Self::Paging, Self::Sampling];
}

/// What a step found.
pub struct Finding {
    /// What was measured, a line each.
    pub lines: Vec<String>,
    /// What should be so.
    pub claim: String,
    /// Whether it is so here.
    pub holds: bool,
}

/// Runs the command. A claim that does not hold is said and ends the command with an error.
pub fn learn(args: LearnArgs) -> Result<(), Failure> {
    match &args.url {
        Some(url) => learn_from_server(url, &args),
        None => learn_here(&args),
    }
}

fn learn_here(args: &LearnArgs) -> Result<(), Failure> {
    let bars = Bars::new();
    logging::start_quiet(&bars)?;
    let name = args.model.required()?;
    let source = loading::find(&name, &args.model.source_options(), &bars)?;
    let options =
        firebrick::Options { max_num_seqs: Some(8), max_num_batched_tokens: Some(256), ..args.device.options()? };
    let mut classroom = Classroom::new(loading::load(&source.path, &options, &bars)?);
    let mut failed = Vec::new();
    for (number, step) in (1..).zip(&steps::STEPS) {
        if args.step.is_some_and(|wanted| wanted != number) {
            continue;
        }
        banner(&format!("Step {number} of {}: {}", steps::STEPS.len(), step.title));
        print(&format!("{}\n\n", step.text));
        if !report((step.run)(&mut classroom)?) {
            failed.push(number.to_string());
        }
    }
    conclude(&failed)
}

fn learn_from_server(url: &str, args: &LearnArgs) -> Result<(), Failure> {
    let server = Server::connect(url, args.api_key.clone(), args.model.model()?)?;
    if args.interactive {
        return server.converse();
    }
    let tests = args.test.map_or(Test::ALL.to_vec(), |test| vec![test]);
    let mut failed = Vec::new();
    for test in tests {
        let name = test.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        banner(&format!("Test: {name}"));
        if !report(server.run(test, usize::from(args.num_requests))?) {
            failed.push(name);
        }
    }
    conclude(&failed)
}

fn banner(text: &str) {
    let line = "=".repeat(72);
    print(&format!("\n{line}\n{text}\n{line}\n"));
}

fn report(finding: Finding) -> bool {
    for line in &finding.lines {
        print(&format!("  {line}\n"));
    }
    let (sign, addition) = if finding.holds { ("OK", "") } else { ("NO", " That does not hold here.") };
    print(&format!("\n  [{sign}] {}{addition}\n", finding.claim));
    finding.holds
}

fn conclude(failed: &[String]) -> Result<(), Failure> {
    if failed.is_empty() {
        print("\nEvery claim holds here.\n");
        return Ok(());
    }
    Err(Failure::Run(format!("claims that do not hold here: {}", failed.join(", "))))
}
