//! GGUF files, versions 2 and 3: parsed without trusting a single length in them.
//!
//! Every count is bounded by the bytes left, every sum is checked, and nothing is allocated by a number from the
//! header. Values of arrays stay where they lie in the file until a known key asks for them.

mod config;
mod cursor;
mod layout;
mod metadata;
mod names;
mod tokenizer;

use crate::chat::SpecialTokens;
use crate::config::{Architecture, ModelConfig, unsupported_model};
use crate::error::Fault;
use crate::tensor::TensorEntry;
use cursor::Cursor;
use metadata::Metadata;
use std::collections::BTreeMap;
pub use tokenizer::GgufTokenizer;

/// What a GGUF file says, in Hugging Face terms.
pub(crate) struct Gguf {
    pub(crate) config: ModelConfig,
    pub(crate) tensors: BTreeMap<String, TensorEntry>,
    pub(crate) tokenizer: GgufTokenizer,
    pub(crate) chat_template: Option<String>,
    pub(crate) special_tokens: SpecialTokens,
}

const MAGIC: [u8; 4] = *b"GGUF";

/// Parses the whole header.
pub(crate) fn parse(bytes: &[u8]) -> Result<Gguf, Fault> {
    let mut cursor = Cursor::new(bytes);
    if cursor.take("magic", MAGIC.len())? != MAGIC {
        return Err(Fault::corrupt("magic", "is not GGUF"));
    }
    match cursor.u32("version")? {
        2 | 3 => {}
        version if version.swap_bytes() <= 3 => {
            return Err(Fault::unsupported("version", "big-endian files are not supported"));
        }
        version => return Err(Fault::unsupported("version", format!("{version} is not supported; supported: 2, 3"))),
    }
    let num_tensors = cursor.u64("tensor count")?;
    let num_values = cursor.u64("metadata count")?;
    let metadata = Metadata::parse(&mut cursor, num_values)?;
    if let Some(parts @ 2..) = metadata.usize("split.count")? {
        let problem = format!("files split into {parts} parts are not supported; merge them into one");
        return Err(Fault::unsupported("split.count", problem));
    }
    let stored = layout::parse(&mut cursor, num_tensors, metadata.alignment()?)?;

    let name = metadata.text_required("general.architecture")?;
    let architecture = Architecture::from_gguf(name).ok_or_else(|| unsupported_model("general.architecture", name))?;
    let config = config::read(architecture, &metadata, &stored, bytes)?;
    let tokenizer = GgufTokenizer::read(&metadata)?;
    let special_tokens = tokenizer.special_tokens(metadata.token_id("tokenizer.ggml.padding_token_id")?);
    Ok(Gguf {
        tensors: names::translate(&config, stored)?,
        chat_template: metadata.text("tokenizer.chat_template")?.map(str::to_owned),
        tokenizer,
        special_tokens,
        config,
    })
}
