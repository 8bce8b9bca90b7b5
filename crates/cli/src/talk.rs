//! `firebrick chat` and `firebrick complete`: a conversation with a server, or texts that it continues.

use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use crate::args::RemoteArgs;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::output::print;
use crate::server_client::ServerClient;
use crate::typed::{Input, invite, read_input};

const CHAT_EXAMPLES: &str = "\
Examples:
  firebrick chat                                            a conversation with the server on port 8000
  firebrick chat --url http://gpu:8000/v1 --quick \"Why is the sky blue?\"
  firebrick chat --system-prompt \"Answer in French.\" --model-name llama";

const COMPLETE_EXAMPLES: &str = "\
Examples:
  firebrick complete                                        each line is continued by the server on port 8000
  firebrick complete --quick \"Once upon a time\" --max-tokens 64";

const HELP: &str = "\
/help   this list
/reset  forget the conversation
/exit   end; Ctrl-D too
\"\"\"     begins and ends a text of several lines
Ctrl-C stops an answer.
";

/// Chat with a running server.
///
/// With --quick only the answer is printed. Ctrl-C stops an answer, not the program.
#[derive(Args, Debug)]
#[command(after_help = CHAT_EXAMPLES)]
pub struct ChatArgs {
    #[command(flatten)]
    remote: RemoteArgs,

    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", help_heading = "Conversation")]
    system_prompt: Option<String>,

    /// Send this message, print the answer and end
    #[arg(long, short, value_name = "MESSAGE", help_heading = "Conversation")]
    quick: Option<String>,
}

/// Have a running server continue texts.
///
/// With --quick only the continuation is printed. Ctrl-C stops an answer, not the program.
#[derive(Args, Debug)]
#[command(after_help = COMPLETE_EXAMPLES)]
pub struct CompleteArgs {
    #[command(flatten)]
    remote: RemoteArgs,

    /// Continue this text and end
    #[arg(long, short, value_name = "TEXT", help_heading = "Text")]
    quick: Option<String>,
}

/// Runs `firebrick chat`.
pub fn chat(args: ChatArgs) -> Result<(), Failure> {
    let (client, model) = args.remote.connect()?;
    let first: Vec<Value> = args.system_prompt.iter().map(|text| json!({"role": "system", "content": text})).collect();
    let ask = |messages: &[Value], show: &mut dyn FnMut(Piece) -> bool| {
        let body = request(&args.remote, &model, ("messages", json!(messages)));
        stream(&client, "/v1/chat/completions", &body, show)
    };
    if let Some(message) = &args.quick {
        let messages = [first, vec![json!({"role": "user", "content": message})]].concat();
        return finish_line(&ask(&messages, &mut print_text)?);
    }
    invite(&format!("{} serves {model}\n/help lists the commands, Ctrl-D ends.\n", client.base_url()));
    let mut messages = first.clone();
    converse(|text, interrupt| {
        let Some(text) = text else {
            messages = first.clone();
            return Ok(());
        };
        messages.push(json!({"role": "user", "content": text}));
        match ask(&messages, &mut |piece| print_all(piece) && !interrupt.came()) {
            Ok(answer) => {
                messages.push(json!({"role": "assistant", "content": answer}));
                Ok(())
            }
            Err(error) => {
                // What could not be answered is taken back, so that the conversation can go on.
                messages.pop();
                Err(error)
            }
        }
    })
}

/// Runs `firebrick complete`.
pub fn complete(args: CompleteArgs) -> Result<(), Failure> {
    let (client, model) = args.remote.connect()?;
    let ask = |prompt: &str, show: &mut dyn FnMut(Piece) -> bool| {
        let body = request(&args.remote, &model, ("prompt", json!(prompt)));
        stream(&client, "/v1/completions", &body, show)
    };
    if let Some(prompt) = &args.quick {
        return finish_line(&ask(prompt, &mut print_text)?);
    }
    invite(&format!("{} serves {model}\n/help lists the commands, Ctrl-D ends.\n", client.base_url()));
    converse(|text, interrupt| match text {
        Some(text) => ask(&text, &mut |piece| print_all(piece) && !interrupt.came()).map(drop),
        None => Ok(()),
    })
}

fn request(args: &RemoteArgs, model: &str, (name, prompt): (&str, Value)) -> Value {
    let mut body = json!({"model": model, "stream": true, name: prompt});
    if let Some(max_tokens) = args.max_tokens {
        body["max_tokens"] = json!(max_tokens);
    }
    if let Some(temperature) = args.temperature {
        body["temperature"] = json!(temperature);
    }
    body
}

/// A part of an answer.
enum Piece<'a> {
    Reasoning(&'a str),
    Text(&'a str),
}

/// Follows an answer until it ends or `show` has had enough; returns its text.
fn stream(
    client: &ServerClient,
    path: &str,
    body: &Value,
    show: &mut dyn FnMut(Piece) -> bool,
) -> Result<String, Failure> {
    let mut text = String::new();
    let mut reasons = false;
    for event in client.stream(path, body)? {
        let event = event?;
        let choice = &event["choices"][0];
        let delta = &choice["delta"];
        let reasoning = delta["reasoning"].as_str().or_else(|| delta["reasoning_content"].as_str());
        let piece = delta["content"].as_str().or_else(|| choice["text"].as_str()).unwrap_or_default();
        text.push_str(piece);
        let reasoning = match reasoning.unwrap_or_default() {
            "" if reasons && !piece.is_empty() => "\n\n",
            reasoning => reasoning,
        };
        reasons = piece.is_empty() && (reasons || !reasoning.is_empty());
        // Also for events without text, so that an answer can be stopped before its first word.
        if !show(Piece::Reasoning(reasoning)) || !show(Piece::Text(piece)) {
            break;
        }
    }
    Ok(text)
}

fn print_text(piece: Piece) -> bool {
    if let Piece::Text(text) = piece {
        print(text);
    }
    true
}

fn print_all(piece: Piece) -> bool {
    match piece {
        Piece::Reasoning(text) | Piece::Text(text) => print(text),
    }
    true
}

fn finish_line(answer: &str) -> Result<(), Failure> {
    if !answer.ends_with('\n') {
        print("\n");
    }
    Ok(())
}

/// Hands over each message that is typed, and `None` where the conversation is to be forgotten.
fn converse(mut say: impl FnMut(Option<String>, &Arc<Interrupt>) -> Result<(), Failure>) -> Result<(), Failure> {
    let interrupt = Interrupt::watch()?;
    loop {
        match read_input()? {
            Input::End => break,
            Input::Say(text) if text.trim().is_empty() => {}
            Input::Say(text) => {
                interrupt.begin();
                let said = say(Some(text), &interrupt);
                print(if interrupt.came() { "\n(stopped)\n" } else { "\n" });
                interrupt.end();
                if let Err(error) = said {
                    eprintln!("error: {error}");
                }
            }
            Input::Command { name, .. } => match name.as_str() {
                "exit" | "quit" | "bye" => return Ok(()),
                "help" | "?" => print(HELP),
                "reset" | "clear" => {
                    say(None, &interrupt)?;
                    print("The conversation is forgotten.\n");
                }
                _ => print(&format!("There is no /{name}; /help lists the commands.\n")),
            },
        }
    }
    invite("\n");
    Ok(())
}
