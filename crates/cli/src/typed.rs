//! What a person types in a conversation: lines, texts of several lines between triple quotes, and commands.

use std::io::{self, BufRead, IsTerminal};

use crate::failure::Failure;
use crate::output::print;

/// What a line asks for.
pub enum Input {
    /// A message.
    Say(String),
    /// `/NAME ARGUMENT`.
    Command {
        /// What follows the slash.
        name: String,
        /// The rest of the line.
        argument: String,
    },
    /// There will be no more.
    End,
}

/// Says something to whoever types; where the input is a pipe or a file, nobody does, and the output has the answers alone.
pub fn invite(text: &str) {
    if io::stdin().is_terminal() {
        print(text);
    }
}

/// Waits for what is typed next.
pub fn read_input() -> Result<Input, Failure> {
    const QUOTES: &str = "\"\"\"";
    invite(">>> ");
    let Some(line) = read_line()? else { return Ok(Input::End) };
    if let Some(command) = line.strip_prefix('/') {
        let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        return Ok(Input::Command { name: name.to_owned(), argument: argument.trim().to_owned() });
    }
    let Some(first) = line.strip_prefix(QUOTES) else { return Ok(Input::Say(line)) };
    let mut text = first.to_owned();
    while !text.ends_with(QUOTES) {
        invite("... ");
        let Some(line) = read_line()? else { break };
        text.push('\n');
        text.push_str(&line);
    }
    Ok(Input::Say(text.trim_end_matches(QUOTES).to_owned()))
}

/// `None` at the end of the input.
fn read_line() -> Result<Option<String>, Failure> {
    let mut bytes = Vec::new();
    if io::stdin().lock().read_until(b'\n', &mut bytes)? == 0 {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned()))
}
