//! What a generated text must match: a JSON schema, a regular expression, one of some choices, or a grammar.
//!
//! A [`GrammarSource`] is what a client writes. A [`GrammarCompiler`] knows a model's vocabulary and turns a source into
//! a [`Grammar`], whose [`GrammarMatcher`] says token by token what may come next. Sources come from clients and may be
//! hostile: their size, depth and combinations are limited before anything is compiled, compiling and matching have
//! fuel, and whatever fails is an error. Compiling still takes long enough to be done away from other work, on a thread
//! with a deep stack ([`COMPILE_STACK_BYTES`]).

mod ascii_classes;
mod cache;
mod compiler;
mod ebnf;
mod lark_text;
mod schema_walk;
mod source_limits;
mod spelling;

use serde_json::Value;

pub use compiler::{Grammar, GrammarCompiler, GrammarMatcher};
pub use schema_walk::for_each_schema;

/// The stack that [`GrammarCompiler::compile`] needs for the deepest sources within the limits.
pub const COMPILE_STACK_BYTES: usize = 64 << 20;

/// How the error begins when following a grammar costs too much.
pub const TOO_COMPLEX: &str = "the grammar is too complex";

/// What a text must match, as a client writes it.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSource {
    /// JSON that a schema describes. References are followed within the schema only.
    Json {
        /// The schema.
        schema: Value,
        /// What may stand between two parts; by default one space, or a line end with its indentation.
        whitespace: Option<Whitespace>,
    },
    /// A text that a regular expression matches as a whole. `\d` and `\w` are ASCII, in patterns of schemas too.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in the Lark notation of the llguidance library, or in EBNF, which has `::=`.
    Grammar(String),
    /// Free text in which certain beginnings are followed by JSON.
    StructuralTag(StructuralTag),
    /// JSON that a schema describes, or tool calls in its place.
    JsonOrCalls(JsonOrCalls),
}

/// White space between the parts of JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whitespace {
    /// None at all.
    None,
    /// What this regular expression matches, or nothing.
    Pattern(String),
}

/// An answer in JSON, or tool calls in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonOrCalls {
    /// The schema of the answer.
    pub answer: Value,
    /// As for [`GrammarSource::Json`].
    pub whitespace: Option<Whitespace>,
    /// The schema of a call, as the model's format writes calls.
    pub call: Value,
    /// What stands before and behind a call.
    pub begin: String,
    /// See `begin`.
    pub end: String,
    /// A call may be followed by others.
    pub several: bool,
}

/// Free text in which each of some triggers begins a tag with JSON inside.
#[derive(Clone, Debug, PartialEq)]
pub struct StructuralTag {
    /// The tags.
    pub structures: Vec<Structure>,
    /// Whichever of these appears in the text begins a tag; each tag's `begin` starts with one of them.
    pub triggers: Vec<String>,
}

/// One kind of tag.
#[derive(Clone, Debug, PartialEq)]
pub struct Structure {
    /// How it begins, trigger included.
    pub begin: String,
    /// What stands inside.
    pub schema: Value,
    /// How it ends.
    pub end: String,
}

/// Why a source is refused or a text cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// A limit, checked before compiling.
    #[error("the grammar has {what} of {found}, the limit is {max}")]
    Limit {
        /// What is counted.
        what: &'static str,
        /// How much there is.
        found: usize,
        /// How much is allowed.
        max: usize,
    },
    /// It is not well formed, asks for something that is not supported, or is too complex.
    #[error("the grammar cannot be used: {reason}")]
    Invalid {
        /// What the compiler said.
        reason: String,
    },
    /// The model's vocabulary cannot be used with grammars.
    #[error("this model's vocabulary cannot be constrained: {reason}")]
    Vocabulary {
        /// Why.
        reason: String,
    },
    /// A text cannot go on: what must come next has no token in this vocabulary.
    #[error("no token of this model's vocabulary continues the text within the grammar")]
    DeadEnd,
    /// A text cannot go on: following the grammar from here costs more than its limits allow. The fault of the grammar.
    #[error("{TOO_COMPLEX} to be followed further: {reason}")]
    TooComplex {
        /// Which limit was reached.
        reason: String,
    },
    /// A text cannot go on: a token was not allowed.
    #[error("the grammar could not be followed: {reason}")]
    Match {
        /// Why.
        reason: String,
    },
}
