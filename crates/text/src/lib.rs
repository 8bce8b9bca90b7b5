//! Strings to tokens and back.
//!
//! A request's messages become a prompt ([`ChatTemplate`]), the prompt becomes tokens ([`Tokenizer::encode`]), and the
//! tokens that a model makes become text again, piece by piece ([`Detokenizer`]), until a stop string ends it
//! ([`StopMatcher`]) or a grammar is complete ([`GrammarMatcher`]). A [`MessageReader`] finds reasoning and tool calls in
//! that text. Everything is pure computation: no threads, no clock, no tensors, no HTTP, so that the same code
//! runs in a browser.

mod chat_message;
mod chat_template;
mod detokenizer;
mod dialect;
mod error;
mod gguf;
mod grammar;
mod message_event;
mod message_reader;
mod piece;
mod python_json;
mod python_repr;
mod reasoning;
mod stop;
mod strftime;
mod template_budget;
mod template_functions;
mod template_meter;
mod template_source;
mod tokenizer;
mod tools;
mod triggers;
mod utf8;
mod vocabulary;

pub use chat_message::{ContentPart, Message, MessageContent, RenderOptions, SpecialTokens};
pub use chat_template::{ChatTemplate, TemplateLimits};
pub use detokenizer::Detokenizer;
pub use dialect::{Dialect, UnknownFormat};
pub use error::{TemplateError, TokenizerError};
pub use gguf::{GgufVocabulary, gguf_pre_tokenizers};
pub use grammar::{
    COMPILE_STACK_BYTES, Grammar, GrammarCompiler, GrammarError, GrammarMatcher, GrammarSource, JsonOrCalls,
    StructuralTag, Structure, TOO_COMPLEX, Whitespace, for_each_schema,
};
pub use message_event::MessageEvent;
pub use message_reader::MessageReader;
pub use reasoning::ReasoningFormat;
pub use stop::{StopMatcher, StopOutput};
pub use tokenizer::Tokenizer;
pub use tools::{ToolFormat, ToolReading, WrittenCall, describe_tools};

/// The number of a token in a vocabulary. A plain `u32`, because it goes straight into tensors.
pub type TokenId = u32;
