//! The rotary decoder families: Llama, Mistral, Qwen 2 and 3, Phi 3, Gemma 3.
//!
//! Defaults are those of each family's reference configuration class, because files leave out what equals them.

use super::json::General;
use super::rope::{self, RopeLayers};
use super::{Activation, Architecture, Fields, LayerKind, ModelConfig, RopeConfig, RopeScaling};
use crate::error::{Fault, printable};

/// What a family assumes where a file is silent.
struct Defaults {
    /// `None`: hidden size over heads.
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rope_theta: f32,
    tie_word_embeddings: bool,
    sliding_window: Option<usize>,
}

impl Defaults {
    fn of(architecture: Architecture) -> Self {
        let llama = Self {
            head_dim: None,
            max_position_embeddings: 2048,
            rope_theta: 10_000.0,
            tie_word_embeddings: false,
            sliding_window: None,
        };
        match architecture {
            Architecture::Mistral => Self { max_position_embeddings: 131_072, sliding_window: Some(4096), ..llama },
            Architecture::Qwen2 => Self { max_position_embeddings: 32_768, sliding_window: Some(4096), ..llama },
            Architecture::Qwen3 => {
                Self { head_dim: Some(128), max_position_embeddings: 32_768, sliding_window: Some(4096), ..llama }
            }
            Architecture::Phi3 => Self { max_position_embeddings: 4096, ..llama },
            Architecture::Gemma3 => Self {
                head_dim: Some(256),
                max_position_embeddings: 131_072,
                rope_theta: 1_000_000.0,
                tie_word_embeddings: true,
                sliding_window: Some(4096),
            },
            _ => llama,
        }
    }
}

pub(super) fn read(architecture: Architecture, fields: Fields, general: General) -> Result<ModelConfig, Fault> {
    let defaults = Defaults::of(architecture);
    let gemma = architecture == Architecture::Gemma3;
    let sizes = Sizes::read(fields, gemma)?;
    let head_dim = match fields.usize("head_dim")?.or(defaults.head_dim) {
        Some(head_dim) => head_dim,
        None => sizes.hidden_size.checked_div(sizes.num_heads).unwrap_or(0),
    };
    let (theta, scaling) = rope::read(fields, RopeLayers::Full, defaults.rope_theta)?;
    let rotary_dim = (rope::rotated_part(fields)? * head_dim as f32) as usize;
    let attention_bias = fields.bool("attention_bias")?.unwrap_or(false);
    let bias_everywhere = attention_bias && architecture != Architecture::Mistral;
    let (layer_kinds, sliding_window) = layers(architecture, fields, sizes.num_layers, defaults.sliding_window)?;
    let scalar = if gemma { fields.f32("query_pre_attn_scalar")?.unwrap_or(256.0) } else { head_dim as f32 };
    if gemma {
        fields.refuse_if("use_bidirectional_attention", true)?;
    }
    Ok(ModelConfig {
        architecture,
        vocab_size: sizes.vocab_size,
        hidden_size: sizes.hidden_size,
        intermediate_size: sizes.intermediate_size,
        num_layers: sizes.num_layers,
        num_heads: sizes.num_heads,
        num_kv_heads: sizes.num_kv_heads,
        head_dim,
        max_position_embeddings: fields.usize("max_position_embeddings")?.unwrap_or(defaults.max_position_embeddings),
        norm_eps: fields.f32("rms_norm_eps")?.unwrap_or(1e-6),
        activation: activation(fields, gemma)?,
        tie_word_embeddings: general.tie_word_embeddings.unwrap_or(defaults.tie_word_embeddings),
        attention_bias: bias_everywhere || architecture == Architecture::Qwen2,
        attention_output_bias: bias_everywhere && architecture != Architecture::Qwen2,
        mlp_bias: architecture == Architecture::Llama && fields.bool("mlp_bias")?.unwrap_or(false),
        rope: Some(RopeConfig { theta, scaling, rotary_dim }),
        local_rope_theta: if gemma { Some(local_theta(fields)?) } else { None },
        position_offset: None,
        qk_norm: gemma || architecture == Architecture::Qwen3,
        sliding_window,
        layer_kinds,
        attention_scale: 1.0 / scalar.sqrt(),
        attention_softcap: if gemma { fields.f32("attn_logit_softcapping")? } else { None },
        final_logit_softcap: if gemma { fields.f32("final_logit_softcapping")? } else { None },
        embedding_scale: if gemma { (sizes.hidden_size as f32).sqrt() } else { 1.0 },
        norm_weight_offset: if gemma { 1.0 } else { 0.0 },
        layer_norm_before: true,
        dtype: general.dtype,
        quantisation: general.quantisation,
        bos_token_id: general.bos_token_id,
        eos_token_ids: general.eos_token_ids,
    })
}

struct Sizes {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_layers: usize,
    num_heads: usize,
    num_kv_heads: usize,
}

impl Sizes {
    /// Gemma 3's nested text configurations leave out sizes; the other families always state them.
    fn read(fields: Fields, gemma: bool) -> Result<Self, Fault> {
        let size = |key: &str, gemma_default: usize| match fields.usize(key)? {
            None if gemma => Ok(gemma_default),
            None => fields.usize_required(key),
            Some(size) => Ok(size),
        };
        let num_heads = size("num_attention_heads", 8)?;
        let num_kv_heads = fields.usize("num_key_value_heads")?.unwrap_or(if gemma { 4 } else { num_heads });
        Ok(Self {
            vocab_size: size("vocab_size", 262_208)?,
            hidden_size: size("hidden_size", 2304)?,
            intermediate_size: size("intermediate_size", 9216)?,
            num_layers: size("num_hidden_layers", 26)?,
            num_heads,
            num_kv_heads,
        })
    }
}

fn activation(fields: Fields, gemma: bool) -> Result<Activation, Fault> {
    if gemma {
        return Ok(fields.activation("hidden_activation")?.unwrap_or(Activation::GeluTanh));
    }
    Ok(fields.activation("hidden_act")?.unwrap_or(Activation::Silu))
}

/// Gemma 3's sliding layers have their own theta and never any scaling.
fn local_theta(fields: Fields) -> Result<f32, Fault> {
    const DEFAULT: f32 = 10_000.0;
    if let Some(theta) = fields.f32("rope_local_base_freq")? {
        return Ok(theta);
    }
    if fields.get("rope_parameters").is_none() {
        return Ok(DEFAULT);
    }
    match rope::read(fields, RopeLayers::Sliding, DEFAULT)? {
        (theta, RopeScaling::None) => Ok(theta),
        _ => Err(Fault::unsupported(fields.name("rope_parameters"), "scaling of sliding layers is not supported")),
    }
}

/// The kind of each layer, and the window if any of them slides.
fn layers(
    architecture: Architecture,
    fields: Fields,
    num_layers: usize,
    default_window: Option<usize>,
) -> Result<(Vec<LayerKind>, Option<usize>), Fault> {
    super::limits::check_layers(num_layers)?;
    // An explicit null means no window, unlike a missing key.
    let window = if fields.has("sliding_window") { fields.usize("sliding_window")? } else { default_window };
    let window = match architecture {
        Architecture::Llama => None,
        Architecture::Qwen2 | Architecture::Qwen3 if !fields.bool("use_sliding_window")?.unwrap_or(false) => None,
        _ => window,
    };
    let Some(window) = window else { return Ok((vec![LayerKind::Full; num_layers], None)) };
    let kinds = match fields.array("layer_types")? {
        Some(names) => named_kinds(fields, names, num_layers)?,
        None => default_kinds(architecture, fields, num_layers)?,
    };
    let slides = kinds.contains(&LayerKind::Sliding);
    Ok((kinds, slides.then_some(window)))
}

fn named_kinds(fields: Fields, names: &[serde_json::Value], num_layers: usize) -> Result<Vec<LayerKind>, Fault> {
    if names.len() != num_layers {
        let problem = format!("has {} entries for {num_layers} layers", names.len());
        return Err(Fault::corrupt(fields.name("layer_types"), problem));
    }
    let kind = |name: &serde_json::Value| match name.as_str() {
        Some("full_attention") => Ok(LayerKind::Full),
        Some("sliding_attention") => Ok(LayerKind::Sliding),
        _ => Err(Fault::unsupported(
            fields.name("layer_types"),
            format!("{} is not supported; supported: full_attention, sliding_attention", printable(&name.to_string())),
        )),
    };
    names.iter().map(kind).collect()
}

fn default_kinds(architecture: Architecture, fields: Fields, num_layers: usize) -> Result<Vec<LayerKind>, Fault> {
    let first_sliding = match architecture {
        Architecture::Qwen2 | Architecture::Qwen3 => fields.usize("max_window_layers")?.unwrap_or(28),
        _ => 0,
    };
    let period = match architecture {
        Architecture::Gemma3 => fields.usize("sliding_window_pattern")?.unwrap_or(6),
        _ => usize::MAX,
    };
    if period == 0 {
        return Err(Fault::corrupt(fields.name("sliding_window_pattern"), "is 0"));
    }
    let slides = |layer: usize| layer >= first_sliding && !(layer + 1).is_multiple_of(period);
    Ok((0..num_layers).map(|layer| if slides(layer) { LayerKind::Sliding } else { LayerKind::Full }).collect())
}
