//! Tokens to text, one at a time: what `push` returns is final, and all of it joined is what `Tokenizer::decode` returns.

use std::sync::Arc;

use crate::TokenId;
use crate::piece::Piece;
use crate::tokenizer::Tokenizer;
use crate::utf8::{Replacement, take_certain, take_rest};

/// So many tokens before a continuation decide how it begins; a character has four bytes, so at most four tokens.
const CONTEXT_TOKENS: usize = 8;

/// Turns a stream of tokens into a stream of text; each token costs its own length, whatever came before.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// Special tokens that are shown all the same.
    shown: Arc<[TokenId]>,
    /// The beginning of a character whose end has not come yet.
    pending: Vec<u8>,
    first: bool,
    /// Characters that the beginning of the whole text still loses.
    strip: Option<(char, usize)>,
}

impl Detokenizer {
    pub(crate) fn new(tokenizer: Tokenizer, skip_special_tokens: bool) -> Self {
        let strip = tokenizer.piece_rule().strip_at_start();
        Self { tokenizer, skip_special_tokens, shown: Arc::new([]), pending: Vec::new(), first: true, strip }
    }

    /// Shows these special tokens even where others are left out.
    pub fn show(&mut self, special: Arc<[TokenId]>) {
        self.shown = special;
    }

    /// Tells the detokenizer what stands before the first token to come, so that a continuation keeps its leading space
    /// where the beginning of a text would lose it. The prompt's own text is not returned.
    pub fn continue_after(&mut self, prompt: &[TokenId]) {
        for &token in &prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..] {
            self.push(token);
        }
        self.pending.clear();
    }

    /// The text that is certain now that `token` is known; often one word, sometimes nothing. A token outside the
    /// vocabulary adds nothing.
    pub fn push(&mut self, token: TokenId) -> String {
        let mut text = String::new();
        let vocabulary = self.tokenizer.vocabulary();
        if self.skip_special_tokens && vocabulary.is_special(token) && !self.shown.contains(&token) {
            return text;
        }
        let Some(spelling) = vocabulary.text(token) else { return text };
        let piece = self.tokenizer.piece_rule().piece(spelling, self.first);
        self.first = false;
        let replacement = self.replacement();
        match piece {
            Piece::Bytes(bytes) => {
                self.pending.extend(bytes);
                take_certain(&mut self.pending, replacement, &mut text);
            }
            Piece::Text(piece) => {
                take_rest(&mut self.pending, replacement, &mut text);
                text.push_str(&piece);
            }
        }
        self.strip_start(text)
    }

    /// Ends the stream: the beginning of a character that never ended becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let (mut text, replacement) = (String::new(), self.replacement());
        take_rest(&mut self.pending, replacement, &mut text);
        self.strip_start(text)
    }

    fn replacement(&self) -> Replacement {
        self.tokenizer.piece_rule().replacement()
    }

    fn strip_start(&mut self, mut text: String) -> String {
        if let Some((character, left)) = self.strip
            && !text.is_empty()
        {
            let count = text.chars().take(left).take_while(|&c| c == character).count();
            text.drain(..count * character.len_utf8());
            self.strip = (text.is_empty() && count < left).then_some((character, left - count));
        }
        text
    }
}
