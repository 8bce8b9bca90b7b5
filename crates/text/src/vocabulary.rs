//! The spelling of every token, by number: one table instead of hash look-ups and locks on the way out.

use std::collections::HashMap;

use crate::TokenId;
use crate::error::TokenizerError;

/// Larger token numbers are refused before a table is sized by them; the largest public vocabularies have 0.3 million.
const TOKEN_ID_MAX: usize = 1 << 24;

#[derive(Debug)]
struct Entry {
    text: Box<str>,
    special: bool,
}

/// Token number to spelling, and whether the token is special (a control token, not text).
#[derive(Debug)]
pub(crate) struct Vocabulary {
    entries: Vec<Option<Entry>>,
}

impl Vocabulary {
    /// Reads the table of a loaded tokenizer.
    pub fn of(tokenizer: &tokenizers::Tokenizer, origin: &str) -> Result<Self, TokenizerError> {
        let texts: HashMap<String, u32> = tokenizer.get_vocab(true);
        let size = texts.values().map(|&id| id as usize + 1).max().unwrap_or(0);
        if size == 0 {
            return Err(TokenizerError::invalid(origin, "model.vocab", "the vocabulary is empty"));
        }
        if size > TOKEN_ID_MAX {
            let reason = format!("token id {} is above the limit of {}", size - 1, TOKEN_ID_MAX - 1);
            return Err(TokenizerError::invalid(origin, "model.vocab", reason));
        }
        let mut entries: Vec<Option<Entry>> = Vec::new();
        entries.resize_with(size, || None);
        for (text, id) in texts {
            entries[id as usize] = Some(Entry { text: text.into(), special: false });
        }
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            if let Some(slot) = entries.get_mut(id as usize) {
                *slot = Some(Entry { text: token.content.into(), special: token.special });
            }
        }
        Ok(Self { entries })
    }

    /// Gives the tokens that share their spelling with another one a spelling: a hash map keeps only one of them.
    pub fn fill_missing(&mut self, tokens: Vec<String>, is_special: impl Fn(usize) -> bool) {
        if self.entries.len() < tokens.len() {
            self.entries.resize_with(tokens.len(), || None);
        }
        for (id, text) in tokens.into_iter().enumerate() {
            let slot = &mut self.entries[id];
            if slot.is_none() {
                *slot = Some(Entry { text: text.into(), special: is_special(id) });
            }
        }
    }

    pub fn text(&self, id: TokenId) -> Option<&str> {
        self.entries.get(id as usize)?.as_ref().map(|entry| &*entry.text)
    }

    pub fn is_special(&self, id: TokenId) -> bool {
        matches!(self.entries.get(id as usize), Some(Some(entry)) if entry.special)
    }

    /// One more than the largest token number.
    pub fn size(&self) -> usize {
        self.entries.len()
    }
}
