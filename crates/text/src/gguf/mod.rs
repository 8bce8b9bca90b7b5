//! The vocabulary of a GGUF file as a tokenizer.
//!
//! GGUF stores tokens, scores or merges, and only a *name* for the splitting rule; the rules themselves are in
//! `pre_tokenizer.rs`. Here all of it becomes the document that a `tokenizer.json` would hold, so that one loader
//! serves both.

mod byte_level;
mod pre_tokenizer;
mod sentencepiece;

use serde_json::{Map, Value, json};

use crate::error::TokenizerError;

pub use pre_tokenizer::gguf_pre_tokenizers;

/// How errors name the place that a vocabulary came from.
pub(crate) const ORIGIN: &str = "GGUF tokenizer";

/// GGUF's token type of control tokens.
pub(crate) const CONTROL: i32 = 3;
const UNKNOWN: i32 = 2;
const USER_DEFINED: i32 = 4;

/// The `tokenizer.ggml.*` values of a GGUF file.
#[derive(Debug, Clone, Default)]
pub struct GgufVocabulary {
    /// `model`: `gpt2` (byte-level merges) or `llama` (SentencePiece merges by score).
    pub model: String,
    /// `pre`: the name of the splitting rule, one of [`gguf_pre_tokenizers`]; only for `gpt2`.
    pub pre: Option<String>,
    /// `tokens`: the spelling of every token.
    pub tokens: Vec<String>,
    /// `scores`: of every token, for `llama`.
    pub scores: Vec<f32>,
    /// `token_type`: of every token; may be empty, then all are normal.
    pub token_types: Vec<i32>,
    /// `merges`: pairs separated by a space, best first, for `gpt2`.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `unknown_token_id`.
    pub unknown: Option<u32>,
    /// `add_bos_token`: whether encoding with special tokens begins with `bos`. A file without the key means yes for
    /// `llama` and for the splitting rules `llama-bpe` and `tekken`, no for the others.
    pub add_bos: bool,
    /// `add_eos_token`: whether encoding with special tokens ends with `eos`.
    pub add_eos: bool,
    /// `add_space_prefix`: whether a text begins with a space of its own, for `llama`.
    pub add_space_prefix: bool,
}

impl GgufVocabulary {
    fn token_type(&self, id: usize) -> i32 {
        self.token_types.get(id).copied().unwrap_or(1)
    }

    /// Spelling to number; of tokens that are spelled alike, the first counts.
    fn numbers(&self) -> Map<String, Value> {
        let mut numbers = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            numbers.entry(token.clone()).or_insert_with(|| Value::from(id));
        }
        numbers
    }

    fn spelling(&self, id: Option<u32>, field: &str) -> Result<Option<&str>, TokenizerError> {
        let Some(id) = id else { return Ok(None) };
        match self.tokens.get(id as usize) {
            Some(token) => Ok(Some(token)),
            None => {
                let reason = format!("token {id} is outside the vocabulary of {} tokens", self.tokens.len());
                Err(TokenizerError::invalid(ORIGIN, &format!("tokenizer.ggml.{field}"), reason))
            }
        }
    }
}

/// The `tokenizer.json` that says the same as the GGUF values.
pub(crate) fn tokenizer_json(vocabulary: &GgufVocabulary) -> Result<Value, TokenizerError> {
    check_lengths(vocabulary)?;
    let mut document = match vocabulary.model.as_str() {
        "gpt2" => byte_level::document(vocabulary)?,
        "llama" => sentencepiece::document(vocabulary)?,
        other => {
            return Err(TokenizerError::unsupported(ORIGIN, "tokenizer.ggml.model", other, "gpt2, llama"));
        }
    };
    document["version"] = json!("1.0");
    document["added_tokens"] = added_tokens(vocabulary);
    document["post_processor"] = post_processor(vocabulary)?;
    Ok(document)
}

fn check_lengths(vocabulary: &GgufVocabulary) -> Result<(), TokenizerError> {
    let tokens = vocabulary.tokens.len();
    if tokens == 0 {
        return Err(TokenizerError::invalid(ORIGIN, "tokenizer.ggml.tokens", "is empty"));
    }
    let needs_scores = vocabulary.model == "llama";
    for (field, length, needed) in
        [("scores", vocabulary.scores.len(), needs_scores), ("token_type", vocabulary.token_types.len(), false)]
    {
        if length != tokens && (needed || length != 0) {
            let reason = format!("has {length} entries for {tokens} tokens");
            return Err(TokenizerError::invalid(ORIGIN, &format!("tokenizer.ggml.{field}"), reason));
        }
    }
    Ok(())
}

/// Control and user-defined tokens are found in a text before it is split.
fn added_tokens(vocabulary: &GgufVocabulary) -> Value {
    let mut seen = std::collections::HashSet::new();
    let is_added = |id: usize| matches!(vocabulary.token_type(id), CONTROL | USER_DEFINED | UNKNOWN);
    let tokens = vocabulary.tokens.iter().enumerate();
    tokens
        .filter(|(id, token)| is_added(*id) && !token.is_empty() && seen.insert(token.as_str()))
        .map(|(id, token)| {
            let special = vocabulary.token_type(id) != USER_DEFINED;
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            })
        })
        .collect()
}

fn post_processor(vocabulary: &GgufVocabulary) -> Result<Value, TokenizerError> {
    let bos = vocabulary.spelling(vocabulary.bos.filter(|_| vocabulary.add_bos), "bos_token_id")?;
    let eos = vocabulary.spelling(vocabulary.eos.filter(|_| vocabulary.add_eos), "eos_token_id")?;
    if bos.is_none() && eos.is_none() {
        return Ok(Value::Null);
    }
    let special = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let around =
        |id: &str| -> Vec<Value> { bos.map(special).into_iter().chain([text(id)]).chain(eos.map(special)).collect() };
    let pair: Vec<Value> = around("A").into_iter().chain(around("B")).collect();
    let mut tokens = Map::new();
    for (token, id) in [(bos, vocabulary.bos), (eos, vocabulary.eos)] {
        if let (Some(token), Some(id)) = (token, id) {
            tokens.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
        }
    }
    Ok(json!({"type": "TemplateProcessing", "single": around("A"), "pair": pair, "special_tokens": tokens}))
}
