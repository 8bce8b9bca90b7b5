//! config.json: which architecture it is, what is refused at once, and the parts every family shares.

use super::{Architecture, Fields, ModelConfig, decoder, learned, limits, unsupported_model};
use crate::dtype::Dtype;
use crate::error::{Fault, printable};
use crate::quantised::Quantisation;
use serde_json::Value;

/// Reads config.json. `fallback_dtype` holds where the file names none.
pub(crate) fn from_json(text: &str, fallback_dtype: Dtype) -> Result<ModelConfig, Fault> {
    let root: Value = serde_json::from_str(text).map_err(|error| Fault::corrupt("JSON", error.to_string()))?;
    let fields = Fields::new(&root, "")?;
    let architecture = architecture(fields)?;
    // Multimodal files keep the language model's keys in an object of their own.
    let text_fields = match fields.get("text_config") {
        Some(nested) => Fields::new(nested, "text_config")?,
        None => fields,
    };
    let general = General::read(text_fields, fields, fallback_dtype)?;
    let config = match architecture {
        Architecture::Opt => learned::opt(text_fields, general)?,
        Architecture::Gpt2 => learned::gpt2(text_fields, general)?,
        _ => decoder::read(architecture, text_fields, general)?,
    };
    limits::check(&config)?;
    Ok(config)
}

/// What every family's file says in the same words.
pub(super) struct General {
    pub(super) dtype: Dtype,
    pub(super) quantisation: Option<Quantisation>,
    pub(super) bos_token_id: Option<u32>,
    pub(super) eos_token_ids: Vec<u32>,
    pub(super) tie_word_embeddings: Option<bool>,
}

impl General {
    /// The inner object wins; what it leaves out is looked up in the outer one.
    fn read(inner: Fields, outer: Fields, fallback: Dtype) -> Result<Self, Fault> {
        let mut eos_token_ids = inner.token_ids("eos_token_id")?;
        if eos_token_ids.is_empty() {
            eos_token_ids = outer.token_ids("eos_token_id")?;
        }
        Ok(Self {
            quantisation: Quantisation::read(inner)?.or(Quantisation::read(outer)?),
            dtype: dtype(inner)?.or(dtype(outer)?).unwrap_or(fallback),
            bos_token_id: inner.token_id("bos_token_id")?.or(outer.token_id("bos_token_id")?),
            eos_token_ids,
            tie_word_embeddings: inner.bool("tie_word_embeddings")?.or(outer.bool("tie_word_embeddings")?),
        })
    }
}

fn architecture(fields: Fields) -> Result<Architecture, Fault> {
    if let Some(names) = fields.array("architectures")?.filter(|names| !names.is_empty()) {
        let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
        return names
            .iter()
            .find_map(|name| Architecture::from_name(name))
            .ok_or_else(|| unsupported_model("architectures", &names.join(", ")));
    }
    let model_type = fields.text("model_type")?;
    let model_type = model_type.ok_or_else(|| Fault::corrupt("architectures", "is missing, and so is model_type"))?;
    Architecture::from_model_type(model_type).ok_or_else(|| unsupported_model("model_type", model_type))
}

fn dtype(fields: Fields) -> Result<Option<Dtype>, Fault> {
    for key in ["dtype", "torch_dtype"] {
        match fields.text(key)? {
            None | Some("auto") => {}
            Some(name) => {
                let plain = name.strip_prefix("torch.").unwrap_or(name);
                let dtype = plain.parse().map_err(|_| {
                    let supported = "supported: float32, float16, bfloat16";
                    Fault::unsupported(fields.name(key), format!("{} is not supported; {supported}", printable(name)))
                })?;
                return Ok(Some(dtype));
            }
        }
    }
    Ok(None)
}
