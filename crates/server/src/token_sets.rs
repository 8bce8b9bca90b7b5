//! Which tokens a request allows and forbids, as the engine takes them.

use firebrick_engine::TokenId;
use firebrick_text::Tokenizer;

use crate::error::ApiError;
use crate::limits::Limits;
use crate::parameter::{at_most, token};
use crate::state::Model;

/// The only tokens that may be generated; an empty list would allow nothing and is refused.
pub fn allowed_token_ids(ids: Option<&[i64]>, vocab_size: u32) -> Result<Vec<TokenId>, ApiError> {
    const NAME: &str = "allowed_token_ids";
    let Some(ids) = ids else { return Ok(Vec::new()) };
    if ids.is_empty() {
        return Err(ApiError::parameter(NAME, "allowed_token_ids is empty, so that nothing could be generated"));
    }
    at_most(NAME, "allowed token ids", ids.len(), vocab_size as usize)?;
    ids.iter().map(|&id| token(NAME, id, vocab_size)).collect()
}

/// The tokens of each bad word, at the beginning of a text and within one.
pub fn bad_words(words: Option<&[String]>, model: &Model, limits: &Limits) -> Result<Vec<Vec<TokenId>>, ApiError> {
    const NAME: &str = "bad_words";
    let words = words.unwrap_or_default();
    at_most(NAME, "bad words", words.len(), limits.bad_words_max)?;
    let mut runs = Vec::new();
    for word in words {
        if word.trim().is_empty() {
            return Err(ApiError::parameter(NAME, "a bad word must not be empty"));
        }
        at_most(NAME, "bytes in one bad word", word.len(), limits.bad_word_bytes_max)?;
        runs.extend(spellings(word, &model.tokenizer)?);
    }
    let vocab_size = model.engine.config().vocab_size;
    for run in &runs {
        at_most(NAME, "tokens in one bad word", run.len(), TOKENS_MAX)?;
        run.iter().try_for_each(|id| token(NAME, i64::from(*id), vocab_size).map(drop))?;
    }
    Ok(runs)
}

/// The engine takes no longer runs.
const TOKENS_MAX: usize = 64;

/// A word as it stands, and after a space where the space only changes its first token.
fn spellings(word: &str, tokenizer: &Tokenizer) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let word = word.trim_start();
    let encode = |text: &str| {
        tokenizer.try_encode(text, false).map_err(|error| ApiError::parameter("bad_words", error.to_string()))
    };
    let (bare, spaced) = (encode(word)?, encode(&format!(" {word}"))?);
    let differs = spaced.first() != bare.first() && spaced.len() == bare.len();
    let mut spellings = vec![bare];
    if differs {
        spellings.push(spaced);
    }
    spellings.retain(|run| !run.is_empty());
    Ok(spellings)
}
