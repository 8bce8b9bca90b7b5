//! `firebrick replay`: feeds a recording to a fresh engine and compares every decision.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use clap::Args;
use firebrick_engine::{Replay, TraceEntry};
use firebrick_server::RecordingHeader;

use crate::failure::Failure;
use crate::output::print;

const EXAMPLES: &str = "\
Examples:
  firebrick serve ./model.gguf --record today.trace
  firebrick replay today.trace";

/// Repeat the decisions of a recorded server and compare.
///
/// The recording holds what came in, what every step was planned to do, and the tokens that came back; no model is
/// needed. Ends with exit code 1 at the first decision that differs.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ReplayArgs {
    /// What `firebrick serve --record FILE` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Runs the command.
pub fn replay(args: &ReplayArgs) -> Result<(), Failure> {
    let shown = args.file.display();
    let file = File::open(&args.file).map_err(|error| Failure::Run(format!("cannot read {shown}: {error}")))?;
    let counts = run(BufReader::new(file)).map_err(|reason| Failure::Run(format!("{shown}: {reason}")))?;
    print(&format!("{shown}: {counts}: the same decisions\n"));
    Ok(())
}

fn run(mut lines: impl BufRead) -> Result<String, String> {
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| {
        line.clear();
        lines.read_until(b'\n', line).map(|length| length > 0).map_err(|error| error.to_string())
    };
    next(&mut line)?;
    let header: RecordingHeader =
        serde_json::from_slice(&line).map_err(|error| format!("not a recording of this version: {error}"))?;
    let mut replay = Replay::new(header.config, header.kv_blocks).map_err(|error| error.to_string())?;
    let (mut requests, mut aborts, mut steps, mut number) = (0_u64, 0_u64, 0_u64, 1_u64);
    while next(&mut line)? {
        number += 1;
        if line.last() != Some(&b'\n') {
            eprintln!("the last line is not whole: the server was killed while it recorded");
            break;
        }
        let entry: TraceEntry = serde_json::from_slice(&line).map_err(|error| format!("line {number}: {error}"))?;
        match &entry {
            TraceEntry::Add(_) => requests += 1,
            TraceEntry::Abort(_) => aborts += 1,
            TraceEntry::Begin(Some(_)) => steps += 1,
            _ => {}
        }
        replay.feed(&entry).map_err(|divergence| divergence.to_string())?;
    }
    Ok(format!("{requests} requests, {aborts} aborts, {steps} steps"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_recording_is_refused() {
        for text in ["", "{}\n", "nonsense\n", "[1]\n"] {
            let reason = run(text.as_bytes()).expect_err("no recording");
            assert!(reason.starts_with("not a recording"), "{reason}");
        }
    }
}
