//! `firebrick run-batch`: the requests of a file in OpenAI's batch format, answered into another file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use firebrick::Options;
use firebrick_server::{AppState, BatchAnswer, BatchFile, EngineState, Limits, ServerConfig, drain};
use futures::{StreamExt, stream};
use indicatif::ProgressBar;

use crate::args::{DeviceArgs, ModelArgs, SchedulingArgs, ServedArgs, quantity};
use crate::failure::Failure;
use crate::output::print;
use crate::progress::Bars;
use crate::{loading, logging, serve};

const EXAMPLES: &str = "\
Examples:
  firebrick run-batch -i requests.jsonl -o answers.jsonl HuggingFaceTB/SmolLM2-135M-Instruct

A line of the input, and what becomes of it:
  {\"custom_id\": \"1\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\",
   \"body\": {\"model\": \"…\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}}
  {\"id\": \"batch_req_…\", \"custom_id\": \"1\", \"response\": {\"status_code\": 200, \"request_id\": \"…\", \"body\": {…}}, \"error\": null}";

/// Answer the requests of a file in OpenAI's batch format.
///
/// Each line of the input is a request to one of the server's paths, and gets a line of the output, in the same order.
/// A line that is wrong is answered with what is wrong; the others go on.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct RunBatchArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// Lines of JSON, each with custom_id, method, url and body
    #[arg(long, short, value_name = "FILE", help_heading = "Files")]
    input_file: PathBuf,

    /// Where the answers go; a file of that name is replaced
    #[arg(long, short, value_name = "FILE", help_heading = "Files")]
    output_file: PathBuf,

    /// Bytes of a line
    #[arg(long, value_name = "BYTES", default_value = "8M", value_parser = quantity, help_heading = "Files")]
    max_line_size: usize,

    #[command(flatten)]
    served: ServedArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    scheduling: SchedulingArgs,

    /// Requests that bring no seed derive theirs from this
    #[arg(long, default_value = "0", help_heading = "Scheduling")]
    seed: u64,
}

/// Runs the command.
pub fn run_batch(args: RunBatchArgs, notices: &[String]) -> Result<(), Failure> {
    let bars = Bars::new();
    logging::start_quiet(&bars)?;
    for notice in notices {
        tracing::warn!("{notice}");
    }
    let name = args.model.required()?;
    let options = Options { seed: args.seed, ..args.scheduling.apply(args.device.options()?) };
    let num_lines = count_lines(&args.input_file)?;
    let input = open(&args.input_file)?;
    let output = create(&args.output_file, &args.input_file)?;
    let source = loading::find(&name, &args.model.source_options(), &bars)?;
    let (model, _) = serve::model::Plan::new(name, options, &args.served).load(&source.path, &bars)?;
    let engine = model.engine.clone();
    // Twice as many as run, so that no step waits for a line to be read.
    let at_once = 2 * engine.config().max_num_seqs as usize;
    let limits = Limits { body_bytes_max: args.max_line_size, ..Limits::default() };
    let state = AppState::new(ServerConfig { limits, log_requests: false, ..ServerConfig::default() });
    state.set_model(model);

    let bar = match num_lines {
        Some(lines) => bars.count("answering", lines),
        None => ProgressBar::hidden(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let started = Instant::now();
    let counts = runtime.block_on(async {
        let lines = Lines { reader: input, number: 0, bytes_max: args.max_line_size };
        let counts = answer_all(BatchFile::new(&state), lines, at_once, Output { file: output, bar: &bar }).await;
        let died = match engine.state() {
            EngineState::Dead(reason) => Some(reason),
            _ => None,
        };
        drain(&state, Duration::ZERO).await;
        match died {
            Some(reason) => Err(Failure::Run(format!("the engine has died: {reason}"))),
            None => counts,
        }
    })?;
    bar.finish_and_clear();
    let (path, seconds) = (args.output_file.display(), started.elapsed().as_secs_f64());
    print(&format!("{path}: {} answers and {} errors in {seconds:.1} s\n", counts.answers, counts.errors));
    Ok(())
}

/// What the lines became.
struct Counts {
    answers: u64,
    errors: u64,
}

struct Output<'a> {
    file: File,
    bar: &'a ProgressBar,
}

async fn answer_all(
    batch: BatchFile,
    lines: Lines<BufReader<File>>,
    at_once: usize,
    mut output: Output<'_>,
) -> Result<Counts, Failure> {
    let mut counts = Counts { answers: 0, errors: 0 };
    let mut answers = stream::iter(lines).map(|line| answer(batch.clone(), line)).buffered(at_once);
    while let Some(answer) = answers.next().await {
        let BatchAnswer { mut line, succeeded } = answer?;
        line.push('\n');
        let written = output.file.write_all(line.as_bytes());
        written.map_err(|error| Failure::Run(format!("the output cannot be written: {error}")))?;
        *(if succeeded { &mut counts.answers } else { &mut counts.errors }) += 1;
        output.bar.inc(1);
    }
    Ok(counts)
}

async fn answer(batch: BatchFile, line: io::Result<Line>) -> Result<BatchAnswer, Failure> {
    let Line { number, text } = line.map_err(|error| Failure::Run(format!("the input cannot be read: {error}")))?;
    let Some(text) = text else {
        return Ok(batch.refuse(number, &format!("longer than {} bytes; see --max-line-size", batch.line_bytes_max())));
    };
    let refuse = batch.clone();
    // A task of its own, so that lines are read and written by all processors.
    let answered = tokio::spawn(async move { batch.answer(number, &text).await }).await;
    Ok(answered.unwrap_or_else(|_| refuse.refuse(number, "internal error")))
}

/// A line that says something.
struct Line {
    number: u64,
    /// `None` where it is longer than allowed.
    text: Option<Vec<u8>>,
}

/// The lines of a file that are not empty, each within a limit.
struct Lines<R> {
    reader: R,
    number: u64,
    bytes_max: usize,
}

impl<R: BufRead> Lines<R> {
    /// The next line, also an empty one; `None` at the end.
    fn read(&mut self) -> io::Result<Option<Line>> {
        let mut text = Vec::new();
        let limit = self.bytes_max as u64 + 1;
        if self.reader.by_ref().take(limit).read_until(b'\n', &mut text)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        let is_whole = text.last() == Some(&b'\n') || text.len() <= self.bytes_max;
        if !is_whole {
            skip_line(&mut self.reader)?;
        }
        Ok(Some(Line { number: self.number, text: is_whole.then_some(text) }))
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = self.read().transpose()?;
            let is_empty =
                line.as_ref().is_ok_and(|line| line.text.as_ref().is_some_and(|text| text.trim_ascii().is_empty()));
            if !is_empty {
                return Some(line);
            }
        }
    }
}

/// Reads to the end of a line without keeping it.
fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let taken = end.map_or(buffer.len(), |end| end + 1);
        reader.consume(taken);
        if end.is_some() {
            return Ok(());
        }
    }
}

/// For the progress bar; a pipe can be read only once.
fn count_lines(path: &Path) -> Result<Option<u64>, Failure> {
    let file = open(path)?;
    if !file.get_ref().metadata()?.is_file() {
        return Ok(None);
    }
    // Only the beginnings of lines matter here.
    let mut lines = Lines { reader: file, number: 0, bytes_max: 64 << 10 };
    let count = lines.try_fold(0, |count, line| line.map(|_| count + 1));
    count.map(Some).map_err(|error| Failure::Run(format!("--input-file {}: {error}", path.display())))
}

fn open(path: &Path) -> Result<BufReader<File>, Failure> {
    let name = path.display();
    if name.to_string().contains("://") {
        return Err(Failure::Usage(format!(
            "--input-file {name}: only files of this machine are read; download it first"
        )));
    }
    let file = File::open(path).map_err(|error| Failure::Run(format!("--input-file {name}: {error}")))?;
    Ok(BufReader::new(file))
}

fn create(path: &Path, input: &Path) -> Result<File, Failure> {
    let name = path.display();
    if name.to_string().contains("://") {
        return Err(Failure::Usage(format!("--output-file {name}: only files of this machine are written")));
    }
    if path.exists() && path.canonicalize()? == input.canonicalize()? {
        return Err(Failure::Usage(format!("--output-file {name} is the input; name another file")));
    }
    File::create(path).map_err(|error| Failure::Run(format!("--output-file {name}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_their_numbers_and_a_limit() {
        let text = "one\n\n  \r\nfour, which is too long\nfive\nlast";
        let lines = Lines { reader: BufReader::with_capacity(4, text.as_bytes()), number: 0, bytes_max: 5 };
        let read: Vec<_> = lines
            .map(|line| line.expect("no error"))
            .map(|Line { number, text }| (number, text.map(|text| String::from_utf8(text).expect("text"))))
            .collect();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read, [(1, some("one\n")), (4, None), (5, some("five\n")), (6, some("last"))]);
    }

    #[test]
    fn a_file_is_not_answered_into_itself() {
        let path = std::env::temp_dir().join(format!("firebrick-batch-{}", std::process::id()));
        std::fs::write(&path, "x\n").expect("a file can be written");
        assert!(create(&path, &path).is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "x\n");
        std::fs::remove_file(&path).expect("it is ours");
        assert!(open(Path::new("https://host/x.jsonl")).is_err());
    }
}
