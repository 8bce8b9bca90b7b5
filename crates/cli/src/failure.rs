//! Why a command ends without success: one line for people and an exit code for programs.

use std::fmt;

/// A one-line reason, with what would help.
#[derive(Debug)]
pub enum Failure {
    /// The command line is at fault: exit code 2.
    Usage(String),
    /// Something else is: exit code 1.
    Run(String),
}

impl Failure {
    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Run(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(text) | Self::Run(text)) = self;
        let lines: Vec<&str> = text.split(['\r', '\n']).map(str::trim).filter(|line| !line.is_empty()).collect();
        f.write_str(&lines.join("; "))
    }
}

impl From<firebrick::Error> for Failure {
    fn from(error: firebrick::Error) -> Self {
        Self::Run(error.to_string())
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Run(text)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Run(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        assert_eq!(Failure::Run("a\n  b\n".into()).to_string(), "a; b");
    }
}
