//! The families with learned positions: OPT and GPT-2.

use super::json::General;
use super::{Activation, Architecture, Fields, LayerKind, ModelConfig};
use crate::error::Fault;

pub(super) fn opt(fields: Fields, general: General) -> Result<ModelConfig, Fault> {
    let hidden_size = fields.usize_required("hidden_size")?;
    let projected = fields.usize("word_embed_proj_dim")?.unwrap_or(hidden_size);
    if projected != hidden_size {
        let problem = format!("{projected} is not supported; it must equal hidden_size {hidden_size}");
        return Err(Fault::unsupported("word_embed_proj_dim", problem));
    }
    fields.refuse_if("_remove_final_layer_norm", true)?;
    fields.refuse_if("layer_norm_elementwise_affine", false)?;
    let bias = fields.bool("enable_bias")?.unwrap_or(true);
    let sizes = Sizes {
        hidden_size,
        intermediate_size: fields.usize_required("ffn_dim")?,
        num_layers: fields.usize_required("num_hidden_layers")?,
        num_heads: fields.usize_required("num_attention_heads")?,
    };
    Ok(ModelConfig {
        vocab_size: fields.usize("vocab_size")?.unwrap_or(50_272),
        max_position_embeddings: fields.usize("max_position_embeddings")?.unwrap_or(2048),
        activation: fields.activation("activation_function")?.unwrap_or(Activation::Relu),
        attention_bias: bias,
        attention_output_bias: bias,
        mlp_bias: bias,
        position_offset: Some(2),
        layer_norm_before: fields.bool("do_layer_norm_before")?.unwrap_or(true),
        ..sizes.config(Architecture::Opt, general)?
    })
}

pub(super) fn gpt2(fields: Fields, general: General) -> Result<ModelConfig, Fault> {
    fields.refuse_if("scale_attn_weights", false)?;
    fields.refuse_if("scale_attn_by_inverse_layer_idx", true)?;
    fields.refuse_if("add_cross_attention", true)?;
    if let Some(method) = &general.quantisation {
        let problem = format!("{method} is not supported for GPT-2, whose weights are stored the other way round");
        return Err(Fault::unsupported("quantization_config", problem));
    }
    let hidden_size = fields.usize_required("n_embd")?;
    let sizes = Sizes {
        hidden_size,
        intermediate_size: fields.usize("n_inner")?.unwrap_or(hidden_size.saturating_mul(4)),
        num_layers: fields.usize_required("n_layer")?,
        num_heads: fields.usize_required("n_head")?,
    };
    Ok(ModelConfig {
        vocab_size: fields.usize("vocab_size")?.unwrap_or(50_257),
        max_position_embeddings: fields.usize("n_positions")?.or(fields.usize("n_ctx")?).unwrap_or(1024),
        norm_eps: fields.f32("layer_norm_epsilon")?.unwrap_or(1e-5),
        activation: fields.activation("activation_function")?.unwrap_or(Activation::GeluTanh),
        ..sizes.config(Architecture::Gpt2, general)?
    })
}

struct Sizes {
    hidden_size: usize,
    intermediate_size: usize,
    num_layers: usize,
    num_heads: usize,
}

impl Sizes {
    /// What the two families have in common; the fields that differ hold GPT-2's values.
    fn config(self, architecture: Architecture, general: General) -> Result<ModelConfig, Fault> {
        super::limits::check_layers(self.num_layers)?;
        let head_dim = self.hidden_size.checked_div(self.num_heads).unwrap_or(0);
        Ok(ModelConfig {
            architecture,
            vocab_size: 0,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_layers: self.num_layers,
            num_heads: self.num_heads,
            num_kv_heads: self.num_heads,
            head_dim,
            max_position_embeddings: 0,
            norm_eps: 1e-5,
            activation: Activation::GeluTanh,
            tie_word_embeddings: general.tie_word_embeddings.unwrap_or(true),
            attention_bias: true,
            attention_output_bias: true,
            mlp_bias: true,
            rope: None,
            local_rope_theta: None,
            position_offset: Some(0),
            qk_norm: false,
            sliding_window: None,
            layer_kinds: vec![LayerKind::Full; self.num_layers],
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            attention_softcap: None,
            final_logit_softcap: None,
            embedding_scale: 1.0,
            norm_weight_offset: 0.0,
            layer_norm_before: true,
            dtype: general.dtype,
            quantisation: general.quantisation,
            bos_token_id: general.bos_token_id,
            eos_token_ids: general.eos_token_ids,
        })
    }
}
