//! The conversation: lines in, answers out as they are made.

use std::sync::Arc;

use firebrick::{FinishReason, Message};

use super::generation::{Answer, Generator};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::loading;
use crate::output::print;
use crate::typed::{Input, read_input};

const HELP: &str = "\
/help            this list
/reset           forget the conversation
/system TEXT     tell the model something before the conversation, and begin anew; without TEXT, nothing
/temperature T   0 always takes the most likely token, larger values are freer
/stats           speed of the last answer
/exit            end; Ctrl-D too
\"\"\"              begins and ends a text of several lines
Ctrl-C stops an answer.
";

struct Conversation<'a> {
    generator: &'a mut Generator,
    system: Option<String>,
    messages: Vec<Message>,
    raw: bool,
    last: Option<Answer>,
    interrupt: Arc<Interrupt>,
}

/// Talks until the user ends it.
pub fn converse(generator: &mut Generator, system: Option<String>, raw: bool) -> Result<(), Failure> {
    print(&format!("{}\n/help lists the commands, Ctrl-D ends.\n", loading::summary(generator.loaded())));
    let interrupt = Interrupt::watch()?;
    let mut conversation = Conversation { generator, system, messages: Vec::new(), raw, last: None, interrupt };
    conversation.reset();
    loop {
        match read_input()? {
            Input::End => break,
            Input::Say(text) if text.trim().is_empty() => {}
            Input::Say(text) => {
                let before = conversation.messages.len();
                if let Err(error) = conversation.say(&text) {
                    // What could not be answered is taken back, so that the conversation can go on.
                    conversation.messages.truncate(before);
                    eprintln!("error: {error}; /reset begins anew");
                }
            }
            Input::Command { name, argument } => {
                if conversation.command(&name, &argument) {
                    return Ok(());
                }
            }
        }
    }
    print("\n");
    Ok(())
}

impl Conversation<'_> {
    fn reset(&mut self) {
        self.messages = self.system.iter().map(|text| Message::new("system", text)).collect();
    }

    fn say(&mut self, text: &str) -> Result<(), Failure> {
        self.messages.push(Message::new("user", text));
        let prompt = match self.raw {
            true => self.generator.encode_text(text)?,
            false => self.generator.encode_chat(&self.messages)?,
        };
        self.interrupt.begin();
        let interrupt = self.interrupt.clone();
        let answer = self.generator.generate(prompt, &mut |text| {
            print(text);
            !interrupt.came()
        });
        self.interrupt.end();
        let answer = answer?;
        print(match answer.finish_reason {
            None => "\n(stopped)\n",
            Some(FinishReason::Length) => "\n(reached the limit of tokens)\n",
            _ => "\n",
        });
        if let Some(FinishReason::Error(reason)) = &answer.finish_reason {
            eprintln!("error: {reason}");
        }
        self.messages.push(Message::new("assistant", &answer.text));
        self.last = Some(answer);
        Ok(())
    }

    /// Returns whether the conversation is over.
    fn command(&mut self, name: &str, argument: &str) -> bool {
        match name {
            "exit" | "quit" | "bye" => return true,
            "help" | "?" => print(HELP),
            "reset" | "clear" => {
                self.reset();
                print("The conversation is forgotten.\n");
            }
            "system" => {
                self.system = Some(argument.to_owned()).filter(|text| !text.is_empty());
                self.reset();
                print("The conversation begins anew.\n");
            }
            "temperature" => match argument.parse() {
                Ok(temperature) if (0.0..=100.0).contains(&temperature) => {
                    self.generator.params.temperature = temperature;
                }
                _ => print("A temperature is a number from 0 to 100.\n"),
            },
            "stats" => print(&self.last.as_ref().map_or("Nothing has been said yet.\n".to_owned(), describe)),
            _ => print(&format!("There is no /{name}; /help lists the commands.\n")),
        }
        false
    }
}

fn describe(answer: &Answer) -> String {
    let later = answer.num_tokens.saturating_sub(1) as f64;
    let seconds = (answer.duration - answer.first_token).as_secs_f64();
    format!(
        "{} tokens in {:.2} s: the first after {:.2} s, then {:.1} tokens/s; {} prompt tokens came from the cache\n",
        answer.num_tokens,
        answer.duration.as_secs_f64(),
        answer.first_token.as_secs_f64(),
        later / seconds.max(1e-9),
        answer.cached_tokens
    )
}
