//! GGUF's tensor names in Hugging Face's words, and what must be undone to the values.

use super::layout::Stored;
use crate::config::{Architecture, ModelConfig};
use crate::error::Fault;
use crate::tensor::{Fix, TensorEntry};
use std::collections::BTreeMap;

/// Parts of a layer: GGUF's name after `blk.N.`, Hugging Face's after `model.layers.N.`.
const DECODER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
/// The norm before the MLP: its name depends on whether there is one after attention too.
const LLAMA_NORMS: &[(&str, &str)] = &[("ffn_norm", "post_attention_layernorm")];
const GEMMA3_NORMS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
/// After `blk.N.` and `transformer.h.N.`.
const GPT2: &[(&str, &str)] = &[
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];
const DECODER_OUTER: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
const GPT2_OUTER: &[(&str, &str)] = &[
    ("token_embd", "transformer.wte"),
    ("position_embd", "transformer.wpe"),
    ("output_norm", "transformer.ln_f"),
    ("output", "lm_head"),
];

/// Rotary factors, which the configuration holds instead.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Names every tensor; one without a Hugging Face name is refused, because leaving it out would change the model.
pub(super) fn translate(
    config: &ModelConfig,
    stored: BTreeMap<String, Stored>,
) -> Result<BTreeMap<String, TensorEntry>, Fault> {
    let mut tensors = BTreeMap::new();
    for (name, stored) in stored {
        if name == ROPE_FACTORS {
            continue;
        }
        let translated = translate_name(config.architecture, &name)
            .ok_or_else(|| Fault::unsupported(&name, format!("tensor is unknown to {}", config.architecture)))?;
        let fix = fix(config, &translated);
        let entry = entry(stored, fix).map_err(|problem| Fault::corrupt(&name, problem))?;
        tensors.insert(translated, entry);
    }
    Ok(tensors)
}

fn translate_name(architecture: Architecture, name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let (outer, prefix) = match architecture {
        Architecture::Gpt2 => (GPT2_OUTER, "transformer.h"),
        _ => (DECODER_OUTER, "model.layers"),
    };
    let Some(in_layer) = stem.strip_prefix("blk.") else {
        return Some(format!("{}.{kind}", find(&[outer], stem)?));
    };
    let (layer, part) = in_layer.split_once('.')?;
    // Written back as a number, so that "007" is not a second name for layer 7.
    let number: u32 = layer.parse().ok().filter(|number: &u32| number.to_string() == layer)?;
    let part = match architecture {
        Architecture::Gpt2 => find(&[GPT2], part)?,
        Architecture::Gemma3 => find(&[DECODER, GEMMA3_NORMS], part)?,
        _ => find(&[DECODER, LLAMA_NORMS], part)?,
    };
    Some(format!("{prefix}.{number}.{part}.{kind}"))
}

fn find(tables: &[&[(&str, &'static str)]], name: &str) -> Option<&'static str> {
    tables.iter().copied().flatten().find(|(gguf, _)| *gguf == name).map(|(_, translated)| *translated)
}

fn fix(config: &ModelConfig, name: &str) -> Fix {
    match config.architecture {
        Architecture::Llama if name.contains(".q_proj.") => Fix::Unpermute { num_heads: config.num_heads },
        Architecture::Llama if name.contains(".k_proj.") => Fix::Unpermute { num_heads: config.num_kv_heads },
        Architecture::Gemma3 if name.ends_with("norm.weight") => Fix::SubtractOne,
        Architecture::Gpt2 if name.contains(".c_") && name.ends_with(".weight") => Fix::Transpose,
        _ => Fix::None,
    }
}

/// Checks that the fix can be applied, so that reading cannot fail.
fn entry(stored: Stored, fix: Fix) -> Result<TensorEntry, String> {
    let mut shape = stored.shape;
    match fix {
        Fix::Unpermute { num_heads } if !shape[0].is_multiple_of(2 * num_heads) || shape.len() > 2 => {
            return Err(format!("shape {shape:?} does not split into the halves of {num_heads} heads"));
        }
        Fix::Transpose if shape.len() != 2 => return Err(format!("has shape {shape:?}, expected two dimensions")),
        Fix::Transpose => shape.reverse(),
        _ => {}
    }
    Ok(TensorEntry { file: 0, range: stored.range, stored: stored.dtype, shape, fix })
}
