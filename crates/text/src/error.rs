//! What can go wrong between strings and tokens, with the facts in the message.

/// Why a tokenizer cannot be loaded or a text cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file could not be read.
    #[error("cannot read the tokenizer {path}: {reason}")]
    Read {
        /// The file.
        path: String,
        /// What the operating system said.
        reason: String,
    },
    /// A part of the tokenizer does not hold what it must.
    #[error("{origin}: {field}: {reason}")]
    Invalid {
        /// The file, or where the tokenizer came from.
        origin: String,
        /// The field at fault, as a path from the root.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer is well formed, but Firebrick does not implement a part of it.
    #[error("{origin}: {field}: {value} is not supported; supported: {supported}")]
    Unsupported {
        /// The file, or where the tokenizer came from.
        origin: String,
        /// The field that asks for it.
        field: String,
        /// What it asks for.
        value: String,
        /// What would be accepted.
        supported: String,
    },
    /// The text cannot be written in the tokenizer's vocabulary.
    #[error("a text of {text_bytes} bytes cannot be encoded: {reason}")]
    Encode {
        /// The length of the text.
        text_bytes: usize,
        /// What the tokenizer said.
        reason: String,
    },
}

impl TokenizerError {
    pub(crate) fn invalid(origin: &str, field: &str, reason: impl ToString) -> Self {
        Self::Invalid { origin: origin.to_owned(), field: field.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn unsupported(origin: &str, field: &str, value: impl ToString, supported: &str) -> Self {
        Self::Unsupported {
            origin: origin.to_owned(),
            field: field.to_owned(),
            value: value.to_string(),
            supported: supported.to_owned(),
        }
    }
}

/// Why a chat template cannot be used or did not produce a prompt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template's source is not a valid template.
    #[error("the chat template is not valid: {reason}")]
    Syntax {
        /// What the parser said, with the line.
        reason: String,
    },
    /// The template itself refused the messages (`raise_exception`): the fault of the request, not of the server.
    #[error("the chat template refuses these messages: {message}")]
    Raised {
        /// The template's own words.
        message: String,
    },
    /// The template failed while it ran.
    #[error("the chat template failed: {reason}")]
    Render {
        /// What failed, with the line.
        reason: String,
    },
    /// The template reached a limit, so it may be hostile or broken.
    #[error("the chat template exceeds its limit of {limit}")]
    Limit {
        /// The limit and its value.
        limit: String,
    },
    /// The options contradict each other or the messages.
    #[error("{reason}")]
    Options {
        /// The contradiction.
        reason: String,
    },
}
