//! GGUF's model `gpt2`: byte-pair merges over the byte-level alphabet.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{GgufVocabulary, ORIGIN, pre_tokenizer};
use crate::error::TokenizerError;

pub(super) fn document(vocabulary: &GgufVocabulary) -> Result<Value, TokenizerError> {
    let rule = pre_tokenizer::find(vocabulary.pre.as_deref())?;
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    Ok(json!({
        "truncation": null,
        "padding": null,
        "normalizer": rule.normalizer(),
        "pre_tokenizer": rule.pre_tokenizer(),
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": rule.whole_words_first, "vocab": vocabulary.numbers(), "merges": merges(vocabulary)?,
        },
    }))
}

fn merges(vocabulary: &GgufVocabulary) -> Result<Vec<Value>, TokenizerError> {
    if vocabulary.merges.is_empty() {
        return Err(TokenizerError::invalid(ORIGIN, "tokenizer.ggml.merges", "is empty, and model gpt2 needs it"));
    }
    let known: HashSet<&str> = vocabulary.tokens.iter().map(String::as_str).collect();
    let mut joined = String::new();
    let mut merges = Vec::with_capacity(vocabulary.merges.len());
    for (index, merge) in vocabulary.merges.iter().enumerate() {
        let fault =
            |reason: String| TokenizerError::invalid(ORIGIN, &format!("tokenizer.ggml.merges[{index}]"), reason);
        // A space inside the byte-level alphabet is spelled otherwise, so the separator is the first one after a character.
        let separator = merge.char_indices().skip(1).find(|&(_, character)| character == ' ');
        let Some((at, _)) = separator else { return Err(fault(format!("{merge:?} is not a pair"))) };
        let (left, right) = (&merge[..at], &merge[at + 1..]);
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        if let Some(missing) = [left, right, joined.as_str()].into_iter().find(|token| !known.contains(token)) {
            return Err(fault(format!("{missing:?} is not in the vocabulary")));
        }
        merges.push(json!([left, right]));
    }
    Ok(merges)
}
