//! Everything that can be wrong with a model's files, each as one line that names the file and the field.

use std::io;

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be opened or read.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is no model at the path.
    #[error("{path}: {problem}")]
    NotAModel {
        /// The path asked for.
        path: String,
        /// What was expected there.
        problem: String,
    },
    /// A file contradicts its format or itself.
    #[error("{file}: {field}: {problem}")]
    Corrupt {
        /// The file.
        file: String,
        /// The field, key or tensor.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The file is sound but asks for something that is not implemented.
    #[error("{file}: {field}: {problem}")]
    Unsupported {
        /// The file.
        file: String,
        /// The field, key or tensor.
        field: String,
        /// What it asks for and what is supported instead.
        problem: String,
    },
    /// A tensor that the model needs is absent.
    #[error("the model's files hold no tensor {name}")]
    MissingTensor {
        /// Its Hugging Face name.
        name: String,
    },
    /// A tensor is stored in a type that cannot be read as weights.
    #[error("tensor {name} is stored as {stored}; supported: F32, F16, BF16")]
    UnreadableTensor {
        /// Its Hugging Face name.
        name: String,
        /// The stored type.
        stored: String,
    },
    /// A tensor's shape contradicts the configuration.
    #[error("tensor {name} has shape {found:?}, the configuration asks for {expected:?}")]
    WrongShape {
        /// Its Hugging Face name.
        name: String,
        /// The stored shape.
        found: Vec<usize>,
        /// The shape asked for.
        expected: Vec<usize>,
    },
}

/// A problem found while parsing, before it is known which file the bytes came from.
#[derive(Debug, PartialEq)]
pub(crate) struct Fault {
    field: String,
    problem: String,
    supported: bool,
}

impl Fault {
    /// The bytes contradict the format or each other.
    pub(crate) fn corrupt(field: impl AsRef<str>, problem: impl Into<String>) -> Self {
        Self { field: printable(field.as_ref()), problem: problem.into(), supported: true }
    }

    /// The bytes are sound but ask for something that is not implemented.
    pub(crate) fn unsupported(field: impl AsRef<str>, problem: impl Into<String>) -> Self {
        Self { field: printable(field.as_ref()), problem: problem.into(), supported: false }
    }

    /// Adds the file's name.
    pub(crate) fn in_file(self, file: &str) -> CheckpointError {
        let Self { field, problem, supported } = self;
        let file = file.to_owned();
        match supported {
            true => CheckpointError::Corrupt { file, field, problem },
            false => CheckpointError::Unsupported { file, field, problem },
        }
    }
}

/// Text from a file made fit for one line of a log: control characters escaped, length bounded.
pub(crate) fn printable(text: &str) -> String {
    const CHARACTERS_MAX: usize = 120;
    let mut shown: String = text.chars().take(CHARACTERS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(CHARACTERS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_files_cannot_break_the_line() {
        let error = Fault::corrupt("a\nb\u{1b}[2J", "x").in_file("model.gguf");
        assert_eq!(error.to_string(), "model.gguf: a\\nb\\u{1b}[2J: x");
        assert!(printable(&"x".repeat(1000)).chars().count() < 130);
    }
}
