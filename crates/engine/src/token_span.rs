//! A run of a sequence's tokens, borrowed from where they lie.

use crate::TokenId;

/// A run of tokens that may begin in the prompt and end in the output, without copying either.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenSpan<'a> {
    /// The part inside the prompt.
    pub(crate) prompt: &'a [TokenId],
    /// The part inside the output.
    pub(crate) output: &'a [TokenId],
}

impl<'a> TokenSpan<'a> {
    pub(crate) fn len(&self) -> usize {
        self.prompt.len() + self.output.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = TokenId> + 'a {
        self.prompt.iter().chain(self.output).copied()
    }
}

impl PartialEq<[TokenId]> for TokenSpan<'_> {
    fn eq(&self, other: &[TokenId]) -> bool {
        self.len() == other.len() && {
            let (head, tail) = other.split_at(self.prompt.len());
            self.prompt == head && self.output == tail
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_equals_the_same_tokens_however_split() {
        let span = TokenSpan { prompt: &[1, 2], output: &[3] };
        assert!(span == *[1, 2, 3].as_slice());
        assert!(span != *[1, 2].as_slice());
        assert!(span != *[1, 2, 4].as_slice());
        assert!(span != *[1, 3, 3].as_slice());
    }
}
