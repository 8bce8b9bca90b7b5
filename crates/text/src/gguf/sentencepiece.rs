//! GGUF's model `llama`: SentencePiece's byte-pair encoding, where a token's score says how early it is merged.
//!
//! GGUF carries no merges. A merge is a token that two tokens spell together; its rank is its score. Merging the best
//! ranked pair first, and the leftmost among equals, is what SentencePiece does.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{GgufVocabulary, ORIGIN};
use crate::error::TokenizerError;
use crate::piece;

/// Real vocabularies stay below 200 bytes; the work for a token grows with the square of its length.
const TOKEN_BYTES_MAX: usize = 4096;
const MARKER: &str = "\u{2581}";

pub(super) fn document(vocabulary: &GgufVocabulary) -> Result<Value, TokenizerError> {
    let unknown = vocabulary.spelling(vocabulary.unknown, "unknown_token_id")?;
    let has_bytes = vocabulary.tokens.iter().any(|token| piece::byte_token(token).is_some());
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": MARKER});
    let normalizer = if vocabulary.add_space_prefix {
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": MARKER}, replace]})
    } else {
        replace
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": MARKER}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if vocabulary.add_space_prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "truncation": null,
        "padding": null,
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": has_bytes, "ignore_merges": false,
            "vocab": vocabulary.numbers(), "merges": merges(vocabulary)?,
        },
    }))
}

fn merges(vocabulary: &GgufVocabulary) -> Result<Vec<Value>, TokenizerError> {
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        numbers.entry(token).or_insert(id);
    }
    let mut found: Vec<(f32, usize, &str, &str)> = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        if token.len() > TOKEN_BYTES_MAX {
            let reason = format!("has {} bytes, the limit is {TOKEN_BYTES_MAX}", token.len());
            return Err(TokenizerError::invalid(ORIGIN, &format!("tokenizer.ggml.tokens[{id}]"), reason));
        }
        if numbers[token.as_str()] != id || vocabulary.scores[id].is_nan() {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if numbers.contains_key(left) && numbers.contains_key(right) {
                found.push((vocabulary.scores[id], id, left, right));
            }
        }
    }
    // Equal scores: the smaller token number first, so that the order never depends on the sort.
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.len().cmp(&b.2.len())));
    Ok(found.into_iter().map(|(_, _, left, right)| json!([left, right])).collect())
}
