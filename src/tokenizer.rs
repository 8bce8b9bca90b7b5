//! The tokenizer that belongs to a checkpoint.

use firebrick_checkpoint::{Checkpoint, GgufTokenizer, ModelConfig, TokenizerSource};
use firebrick_text::{GgufVocabulary, SpecialTokens, Tokenizer};

use crate::{Error, Options};

/// The tokenizer that a checkpoint brings.
pub fn tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer, Error> {
    Ok(match checkpoint.tokenizer_source() {
        TokenizerSource::Json(path) => Tokenizer::from_file(&path)?,
        TokenizerSource::JsonBytes(bytes) => Tokenizer::from_bytes(&bytes)?,
        TokenizerSource::Gguf(vocabulary) => Tokenizer::from_gguf(gguf_vocabulary(vocabulary))?,
    })
}

/// A tokenizer of another model may have tokens that this one has not.
pub(crate) fn check_tokenizer(tokenizer: &Tokenizer, config: &ModelConfig, options: &Options) -> Result<(), Error> {
    match &options.tokenizer {
        Some(path) if tokenizer.vocab_size() > config.vocab_size => Err(Error::Option(format!(
            "--tokenizer {} has {} tokens, but the model knows {}; take a tokenizer that was made for it",
            path.display(),
            tokenizer.vocab_size(),
            config.vocab_size
        ))),
        _ => Ok(()),
    }
}

fn gguf_vocabulary(from: GgufTokenizer) -> GgufVocabulary {
    GgufVocabulary {
        model: from.model,
        pre: from.pre,
        tokens: from.tokens,
        scores: from.scores,
        token_types: from.token_types,
        merges: from.merges,
        bos: from.bos,
        eos: from.eos,
        unknown: from.unknown,
        add_bos: from.add_bos,
        add_eos: from.add_eos,
        add_space_prefix: from.add_space_prefix,
    }
}

pub(crate) fn special_tokens(checkpoint: &Checkpoint) -> SpecialTokens {
    let from = checkpoint.special_tokens();
    SpecialTokens { bos: from.bos, eos: from.eos, pad: from.pad, unk: from.unk }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_tokenizer_with_more_tokens_than_the_model_is_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantised/awq");
        let config = Checkpoint::open(&folder).expect("the fixture opens").config().clone();
        let vocabulary: std::collections::HashMap<String, usize> =
            (0..=config.vocab_size).map(|id| (format!("t{id}"), id)).collect();
        let model = serde_json::json!({"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"});
        let document = serde_json::json!({"version": "1.0", "added_tokens": [], "model": model}).to_string();
        let tokenizer = Tokenizer::from_bytes(document.as_bytes()).expect("a tokenizer");
        let given = Options { tokenizer: Some("other.json".into()), ..Options::default() };
        let refusal = check_tokenizer(&tokenizer, &config, &given).expect_err("refused").to_string();
        let (found, known) = (config.vocab_size + 1, config.vocab_size);
        assert!(refusal.contains(&format!("other.json has {found} tokens, but the model knows {known}")), "{refusal}");
        let own = check_tokenizer(&tokenizer, &config, &Options::default());
        assert!(own.is_ok(), "a model's own tokenizer is its own affair");
    }
}
