//! The normalised description of a model, the same whether it came from config.json or from GGUF metadata.

mod architecture;
mod decoder;
mod fields;
mod json;
mod learned;
pub(crate) mod limits;
mod parameters;
mod rope;
#[cfg(test)]
mod tests;

pub use architecture::Architecture;
pub(crate) use architecture::unsupported_model;
pub(crate) use fields::Fields;
pub(crate) use json::from_json;
pub use rope::{LongRope, RopeConfig, RopeScaling};

use crate::dtype::Dtype;
use crate::quantised::Quantisation;

/// The function between the two halves of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
    /// max(x, 0).
    Relu,
}

/// What a layer's queries may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Every earlier token.
    Full,
    /// Itself and the `sliding_window - 1` tokens before it.
    Sliding,
}

/// Everything an architecture needs to know about its sizes and variants.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which model code runs it.
    pub architecture: Architecture,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Positions the model was made for.
    pub max_position_embeddings: usize,
    /// Epsilon of every norm.
    pub norm_eps: f32,
    /// The MLP's activation.
    pub activation: Activation,
    /// The output projection is the token embedding; no `lm_head.weight` is needed.
    pub tie_word_embeddings: bool,
    /// Query, key and value projections have biases.
    pub attention_bias: bool,
    /// The attention's output projection has a bias.
    pub attention_output_bias: bool,
    /// The MLP's projections have biases.
    pub mlp_bias: bool,
    /// Rotary positions; `None` where positions are learned (OPT, GPT-2).
    pub rope: Option<RopeConfig>,
    /// Theta of sliding layers where it differs from `rope` (Gemma 3); they use no scaling.
    pub local_rope_theta: Option<f32>,
    /// Row of the learned position table for position 0 (OPT: 2, GPT-2: 0); `None` where positions are rotary.
    pub position_offset: Option<usize>,
    /// Queries and keys are normalised per head.
    pub qk_norm: bool,
    /// Tokens a sliding layer sees, the query's own included; `None` when no layer slides.
    pub sliding_window: Option<usize>,
    /// The kind of each layer; `num_layers` long.
    pub layer_kinds: Vec<LayerKind>,
    /// Factor of the attention logits: `1/sqrt(head_dim)` or `1/sqrt(query_pre_attn_scalar)`.
    pub attention_scale: f32,
    /// Attention logits pass `cap · tanh(x / cap)`.
    pub attention_softcap: Option<f32>,
    /// Output logits pass `cap · tanh(x / cap)`.
    pub final_logit_softcap: Option<f32>,
    /// Factor of the token embedding (Gemma: `sqrt(hidden_size)`), else 1.
    pub embedding_scale: f32,
    /// Added to norm weights (Gemma: 1), else 0.
    pub norm_weight_offset: f32,
    /// Norms come before attention and MLP (all but the smallest OPT variants).
    pub layer_norm_before: bool,
    /// The format the weights were made in; where a file does not say, the one most of its bytes are in. Quantised
    /// files: float16, or bfloat16 for Gemma 3, whose activations exceed float16.
    pub dtype: Dtype,
    /// How weights of linear layers are stored, where not as plain numbers or GGUF's blocks.
    pub quantisation: Option<Quantisation>,
    /// First token of a prompt.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Width of all query heads together.
    pub fn query_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key heads together; the values' width is the same.
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// The MLP has a gate beside its up projection.
    pub fn has_gated_mlp(&self) -> bool {
        self.position_offset.is_none()
    }
}
