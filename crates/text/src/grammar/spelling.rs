//! Which texts a vocabulary can spell. Vocabularies with a token for every byte spell all; small ones do not.

use std::collections::HashSet;

/// The tokens of a vocabulary, as far as spelling needs them.
pub(super) enum Spelling {
    /// Every byte is a token.
    Everything,
    /// These pieces, none longer than `longest`.
    Pieces { pieces: HashSet<Vec<u8>>, longest: usize },
}

impl Spelling {
    /// Of a vocabulary's ordinary tokens.
    pub fn new<'a>(words: impl Iterator<Item = &'a Vec<u8>>) -> Self {
        let pieces: HashSet<Vec<u8>> = words.filter(|word| !word.is_empty()).cloned().collect();
        if (0..=u8::MAX).all(|byte| pieces.contains(&[byte][..])) {
            return Self::Everything;
        }
        let longest = pieces.iter().map(Vec::len).max().unwrap_or(0);
        Self::Pieces { pieces, longest }
    }

    /// Whether tokens in a row can be this text.
    pub fn can_spell(&self, text: &str) -> bool {
        let Self::Pieces { pieces, longest } = self else { return true };
        let bytes = text.as_bytes();
        let mut reached = vec![false; bytes.len() + 1];
        reached[0] = true;
        for start in 0..bytes.len() {
            if reached[start] {
                let ends = start + 1..=bytes.len().min(start + longest);
                ends.filter(|end| pieces.contains(&bytes[start..*end])).for_each(|end| reached[end] = true);
            }
        }
        reached[bytes.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_spelled_where_some_way_of_cutting_it_gives_tokens() {
        let words: Vec<Vec<u8>> = ["a", "ab", "bc", "c", "\u{e9}", ""].map(|word| word.as_bytes().to_vec()).into();
        let spelling = Spelling::new(words.iter());
        for text in ["", "a", "abc", "abcc", "aab", "\u{e9}a"] {
            assert!(spelling.can_spell(text), "{text}");
        }
        for text in ["b", "acb", "abd", "\u{e8}"] {
            assert!(!spelling.can_spell(text), "{text}");
        }
    }

    #[test]
    fn bytes_spell_everything() {
        let words: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
        assert!(Spelling::new(words.iter()).can_spell("\u{0}\u{10ffff}"));
        assert!(!Spelling::new(words[1..].iter()).can_spell("a\u{0}"), "all but one");
    }
}
