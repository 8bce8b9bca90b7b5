//! `firebrick run`: a conversation in the terminal, or the answer to one prompt.

mod chat;
mod generation;

use std::io::{self, IsTerminal, Read};

use clap::Args;
use firebrick::Message;

use crate::args::{DeviceArgs, ModelArgs, SamplingArgs};
use crate::failure::Failure;
use crate::output::print;
use crate::progress::Bars;
use crate::{loading, logging};
use generation::Generator;

const EXAMPLES: &str = "\
Examples:
  firebrick run HuggingFaceTB/SmolLM2-135M-Instruct       a conversation; /help explains it
  firebrick run ./model.gguf --prompt \"Name three rivers.\" --temperature 0
  cat question.txt | firebrick run ./model.gguf --max-tokens 200 > answer.txt";

/// Chat with a model in the terminal, or answer one prompt.
///
/// With --prompt, or with text on standard input, only the answer is printed. Ctrl-C stops an answer, not the program.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Answer this and end
    #[arg(long, short, value_name = "TEXT", help_heading = "Conversation")]
    pub prompt: Option<String>,

    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", help_heading = "Conversation")]
    pub system: Option<String>,

    /// Continue the prompt as plain text, without the chat template
    #[arg(long, help_heading = "Conversation")]
    pub raw: bool,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Runs the command.
pub fn run(args: RunArgs) -> Result<(), Failure> {
    let bars = Bars::new();
    logging::start_quiet(&bars)?;
    let name = args.model.required()?;
    let options = args.device.options()?;
    let prompt = match args.prompt {
        Some(prompt) => Some(prompt),
        None if !io::stdin().is_terminal() => Some(read_stdin()?),
        None => None,
    };
    let source = loading::find(&name, &args.model.source_options(), &bars)?;
    let options = firebrick::Options { max_num_seqs: Some(1), seed: random_seed(), ..options };
    let loaded = loading::load(&source.path, &options, &bars)?;
    let params = args.sampling.params(&loaded.generation).map_err(Failure::Usage)?;
    if !args.raw && loaded.chat_template.is_none() {
        eprintln!("note: the model has no chat template, so that it continues texts instead of answering");
    }
    let raw = args.raw || loaded.chat_template.is_none();
    let mut generator = Generator::new(loaded, params, args.sampling.stop.clone());
    let Some(prompt) = prompt else { return chat::converse(&mut generator, args.system, raw) };
    let mut messages: Vec<Message> = args.system.iter().map(|text| Message::new("system", text)).collect();
    messages.push(Message::new("user", &prompt));
    let tokens = if raw { generator.encode_text(&prompt)? } else { generator.encode_chat(&messages)? };
    let answer = generator.generate(tokens, &mut |text| {
        print(text);
        true
    })?;
    if !answer.text.ends_with('\n') {
        print("\n");
    }
    Ok(())
}

fn read_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    let read = io::stdin().read_to_string(&mut text);
    read.map_err(|error| Failure::Run(format!("cannot read the prompt from standard input: {error}")))?;
    let text = text.trim_end_matches(['\r', '\n']).to_owned();
    if text.is_empty() {
        return Err(Failure::Usage("standard input is empty; give a prompt there or with --prompt".into()));
    }
    Ok(text)
}

/// Another answer each time: the standard library's hasher keys are seeded by the operating system.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0_u8)
}
