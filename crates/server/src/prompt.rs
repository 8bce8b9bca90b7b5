//! What a request continues: messages, texts or tokens, on their way to tokens.

use firebrick_engine::TokenId;
use firebrick_text::{Message, RenderOptions, TemplateError, Tokenizer, describe_tools};
use serde_json::{Map, Value};

use crate::error::{ApiError, ErrorKind};
use crate::limits::Limits;
use crate::openai::Prompt;
use crate::parameter::at_most;
use crate::state::{Model, unix_seconds};

/// Enough of a prompt's end to tell whether it opens reasoning.
const ENDING_CHARS: usize = 64;

/// What a request continues, unchecked.
pub enum Source {
    /// A conversation.
    Chat(Conversation),
    /// Texts or tokens.
    Prompt {
        /// One or many.
        prompt: Prompt,
        /// Put the model's special tokens around texts.
        add_special_tokens: bool,
    },
}

/// A conversation and how it becomes a prompt.
#[derive(Default)]
pub struct Conversation {
    /// The messages.
    pub messages: Vec<Message>,
    /// What the model may call, as templates take it.
    pub tools: Option<Value>,
    /// Begin the assistant's turn; by default unless the last message is continued.
    pub add_generation_prompt: Option<bool>,
    /// Continue the last message.
    pub continue_final_message: bool,
    /// Variables for the template.
    pub template_variables: Map<String, Value>,
    /// Put the model's special tokens around the rendered text; templates usually write them themselves.
    pub add_special_tokens: bool,
}

/// A prompt within the limits.
pub struct ValidPrompt {
    /// Its tokens; at least one, all in the vocabulary.
    pub tokens: Vec<TokenId>,
    /// Its text, when the answer begins with it.
    pub echo: Option<String>,
    /// The last characters of its text, which say whether an answer begins inside reasoning; empty for tokens.
    pub ending: String,
}

impl ValidPrompt {
    /// Keeps the last tokens only; what is echoed is what is kept.
    pub fn keep_last(&mut self, kept: usize, echo: bool, tokenizer: &Tokenizer) {
        let dropped = self.tokens.len().saturating_sub(kept);
        if dropped > 0 {
            self.tokens.drain(..dropped);
            self.echo = echo.then(|| tokenizer.decode(&self.tokens, false));
        }
    }
}

impl Source {
    /// Whether generated text continues the prompt's text, as in completions; a chat answer is a text of its own.
    pub fn continues_prompt(&self) -> bool {
        match self {
            Self::Chat(conversation) => conversation.continue_final_message,
            Self::Prompt { .. } => true,
        }
    }

    /// Checks counts, before any work.
    pub fn check(&self, n: u32, limits: &Limits) -> Result<(), ApiError> {
        let (name, count) = match self {
            Self::Chat(conversation) => return check_messages(&conversation.messages, limits),
            Self::Prompt { prompt: Prompt::Texts(texts), .. } => ("prompt", texts.len()),
            Self::Prompt { prompt: Prompt::Tokens(lists), .. } => ("prompt", lists.len()),
        };
        if count == 0 {
            return Err(ApiError::parameter(name, "prompt must not be empty"));
        }
        at_most(name, "prompts", count, limits.prompts_max)?;
        at_most("n", "choices in all", count * n as usize, limits.sequences_max)
    }

    /// Turns everything into tokens.
    pub fn into_prompts(self, model: &Model, echo: bool) -> Result<Vec<ValidPrompt>, ApiError> {
        match self {
            Self::Chat(conversation) => {
                let add_special_tokens = conversation.add_special_tokens;
                let text = render(conversation, model)?;
                Ok(vec![from_text(text, add_special_tokens, echo, model)?])
            }
            Self::Prompt { prompt: Prompt::Texts(texts), add_special_tokens } => {
                texts.into_iter().map(|text| from_text(text, add_special_tokens, echo, model)).collect()
            }
            Self::Prompt { prompt: Prompt::Tokens(lists), .. } => {
                lists.into_iter().map(|tokens| from_tokens(tokens, echo, model)).collect()
            }
        }
    }
}

fn from_text(text: String, add_special_tokens: bool, echo: bool, model: &Model) -> Result<ValidPrompt, ApiError> {
    refuse_hopeless(&text, model)?;
    let encoded = model.tokenizer.try_encode(&text, add_special_tokens);
    let tokens = encoded.map_err(|error| ApiError::parameter("prompt", error.to_string()))?;
    if tokens.is_empty() {
        return Err(ApiError::parameter("prompt", "the prompt is empty"));
    }
    let start = text.char_indices().rev().nth(ENDING_CHARS).map_or(0, |(at, _)| at);
    let ending = text[start..].to_owned();
    Ok(ValidPrompt { tokens, echo: echo.then_some(text), ending })
}

/// Refuses a text that no tokenizer could make short enough before seconds are spent on finding that out.
fn refuse_hopeless(text: &str, model: &Model) -> Result<(), ApiError> {
    let num_tokens_min = text.len() / model.tokenizer.token_bytes_max();
    let longest = model.max_model_len as usize;
    if num_tokens_min <= longest {
        return Ok(());
    }
    let message = format!(
        "This model's maximum context length is {longest} tokens. However, the prompt has {} bytes, which are at least \
         {num_tokens_min} tokens. Please reduce the length of the input.",
        text.len()
    );
    Err(ApiError::parameter("prompt", message))
}

fn from_tokens(tokens: Vec<TokenId>, echo: bool, model: &Model) -> Result<ValidPrompt, ApiError> {
    if tokens.is_empty() {
        return Err(ApiError::parameter("prompt", "the prompt is empty"));
    }
    let vocab_size = model.engine.config().vocab_size;
    if let Some(token) = tokens.iter().find(|&&token| token >= vocab_size) {
        let message = format!("token {token} is outside the vocabulary of {vocab_size}");
        return Err(ApiError::parameter("prompt", message));
    }
    let fits = tokens.len() < model.max_model_len as usize;
    let text = (echo && fits).then(|| model.tokenizer.decode(&tokens, false));
    Ok(ValidPrompt { tokens, echo: text, ending: String::new() })
}

fn check_messages(messages: &[Message], limits: &Limits) -> Result<(), ApiError> {
    if messages.is_empty() {
        return Err(ApiError::parameter("messages", "messages must not be empty"));
    }
    at_most("messages", "messages", messages.len(), limits.messages_max)
}

/// The prompt's text.
fn render(conversation: Conversation, model: &Model) -> Result<String, ApiError> {
    let Some(template) = &model.chat_template else {
        let message = "this model has no chat template, so it cannot chat; use /v1/completions, or start the server \
                       with --chat-template";
        return Err(ApiError::new(ErrorKind::BadRequest, message));
    };
    let continue_final_message = conversation.continue_final_message;
    let messages = match model.dialect.template_takes_tools {
        true => conversation.messages,
        false => describe_tools(conversation.messages, conversation.tools.as_ref()),
    };
    let mut kwargs = conversation.template_variables;
    for (name, value) in &model.template_defaults {
        kwargs.entry(name.clone()).or_insert_with(|| value.clone());
    }
    let options = RenderOptions {
        add_generation_prompt: conversation.add_generation_prompt.unwrap_or(!continue_final_message),
        continue_final_message,
        tools: conversation.tools.filter(|_| model.dialect.template_takes_tools),
        kwargs,
        unix_time_s: Some(unix_seconds() as i64),
    };
    template.render(&messages, &options).map_err(template_error)
}

fn template_error(error: TemplateError) -> ApiError {
    match &error {
        TemplateError::Raised { .. } | TemplateError::Limit { .. } => {
            ApiError::parameter("messages", error.to_string())
        }
        _ => ApiError::new(ErrorKind::BadRequest, error.to_string()),
    }
}
