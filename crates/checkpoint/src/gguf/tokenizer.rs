//! The vocabulary a GGUF file carries.

use super::metadata::Metadata;
use crate::chat::SpecialTokens;
use crate::error::Fault;

/// A tokenizer's data, as GGUF files hold it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufTokenizer {
    /// The algorithm: `gpt2` (byte-level BPE), `llama` (SentencePiece BPE), …
    pub model: String,
    /// Which pre-tokenizer splits the text, for byte-level BPE.
    pub pre: Option<String>,
    /// Text of each token, by id.
    pub tokens: Vec<String>,
    /// Score of each token, for SentencePiece; else empty.
    pub scores: Vec<f32>,
    /// Type of each token (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte); empty means normal.
    pub token_types: Vec<i32>,
    /// Merges in order of rank, each two tokens with a space between.
    pub merges: Vec<String>,
    /// First token of a sequence.
    pub bos: Option<u32>,
    /// Last token of a sequence.
    pub eos: Option<u32>,
    /// Stands for text that no token covers.
    pub unknown: Option<u32>,
    /// Encoding puts `bos` in front.
    pub add_bos: bool,
    /// Encoding puts `eos` at the end.
    pub add_eos: bool,
    /// SentencePiece puts a space in front of the text.
    pub add_space_prefix: bool,
}

impl GgufTokenizer {
    pub(super) fn read(metadata: &Metadata) -> Result<Self, Fault> {
        let tokens = metadata.texts("tokenizer.ggml.tokens")?;
        let scores = metadata.f32s("tokenizer.ggml.scores")?;
        let token_types = metadata.i32s("tokenizer.ggml.token_type")?;
        for (key, count) in [("tokenizer.ggml.scores", scores.len()), ("tokenizer.ggml.token_type", token_types.len())]
        {
            if count != 0 && count != tokens.len() {
                return Err(Fault::corrupt(key, format!("has {count} entries for {} tokens", tokens.len())));
            }
        }
        let id = |key| token_id(metadata, key, tokens.len());
        let model = metadata.text("tokenizer.ggml.model")?.unwrap_or_default();
        let pre = metadata.text("tokenizer.ggml.pre")?;
        // Files leave out what their algorithm implies: SentencePiece and Llama 3 begin with `bos`.
        let sentence_piece = model == "llama";
        let begins = sentence_piece || pre.is_some_and(|pre| ["llama3", "llama-v3", "llama-bpe"].contains(&pre));
        Ok(Self {
            model: model.to_owned(),
            pre: pre.map(str::to_owned),
            bos: id("tokenizer.ggml.bos_token_id")?,
            eos: id("tokenizer.ggml.eos_token_id")?,
            unknown: id("tokenizer.ggml.unknown_token_id")?,
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(begins),
            add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(sentence_piece),
            merges: metadata.texts("tokenizer.ggml.merges")?,
            tokens,
            scores,
            token_types,
        })
    }

    /// The marker tokens' text.
    pub(super) fn special_tokens(&self, padding: Option<u32>) -> SpecialTokens {
        let text = |id: Option<u32>| self.tokens.get(id? as usize).cloned();
        SpecialTokens { bos: text(self.bos), eos: text(self.eos), pad: text(padding), unk: text(self.unknown) }
    }
}

fn token_id(metadata: &Metadata, key: &str, num_tokens: usize) -> Result<Option<u32>, Fault> {
    match metadata.token_id(key)? {
        Some(id) if id as usize >= num_tokens => {
            Err(Fault::corrupt(key, format!("is {id}, the vocabulary has {num_tokens} tokens")))
        }
        id => Ok(id),
    }
}
