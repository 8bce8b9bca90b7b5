//! Gemma 3, text only (Gemma Team, 2025): norms before and after each block, per-head norms of queries and keys, and
//! five sliding-window layers with their own rotary base for every full one. Reference: transformers,
//! `modeling_gemma3.py`.

use burn::tensor::Tensor;
use firebrick_checkpoint::{LayerKind, RopeConfig, RopeScaling};

use crate::layers::{Attention, LmHead, Mlp, Norm, TokenEmbedding};
use crate::loader::Loader;
use crate::{CausalLm, ForwardInput, KvCache, LayerOutputs, LoadError};

pub(crate) struct Gemma3 {
    embedding: TokenEmbedding,
    embedding_scale: f32,
    layers: Vec<Layer>,
    head: LmHead,
}

struct Layer {
    attention_norm: Norm,
    attention: Attention,
    after_attention_norm: Norm,
    mlp_norm: Norm,
    mlp: Mlp,
    after_mlp_norm: Norm,
}

impl Gemma3 {
    pub(crate) fn load(loader: &mut Loader) -> Result<Self, LoadError> {
        let config = loader.config();
        let rope = config
            .rope
            .as_ref()
            .ok_or(LoadError::Variant { architecture: "Gemma 3", variant: "no rotary embedding" })?;
        let local =
            RopeConfig { theta: config.local_rope_theta.unwrap_or(rope.theta), scaling: RopeScaling::None, ..*rope };
        let full_table = loader.rope_table(rope);
        let local_table = loader.rope_table(&local);
        let embedding = TokenEmbedding::load(loader, "model.embed_tokens.weight", config.vocab_size)?;
        let layers = (0..config.num_layers)
            .map(|index| {
                let name = |part: &str| format!("model.layers.{index}.{part}");
                let table = match config.layer_kinds[index] {
                    LayerKind::Full => full_table.clone(),
                    LayerKind::Sliding => local_table.clone(),
                };
                Ok(Layer {
                    attention_norm: Norm::load_rms(loader, &name("input_layernorm"))?,
                    attention: Attention::load(loader, &name("self_attn"), "o_proj", index, Some(table))?,
                    after_attention_norm: Norm::load_rms(loader, &name("post_attention_layernorm"))?,
                    mlp_norm: Norm::load_rms(loader, &name("pre_feedforward_layernorm"))?,
                    mlp: Mlp::load_gated(loader, &name("mlp"))?,
                    after_mlp_norm: Norm::load_rms(loader, &name("post_feedforward_layernorm"))?,
                })
            })
            .collect::<Result<_, LoadError>>()?;
        let norm = Norm::load_rms(loader, "model.norm")?;
        let head = LmHead::load(loader, norm, &embedding)?;
        Ok(Self { embedding, embedding_scale: config.embedding_scale, layers, head })
    }
}

impl CausalLm for Gemma3 {
    fn layers(&self, input: &ForwardInput, cache: &mut KvCache, mut outputs: Option<&mut LayerOutputs>) -> Tensor<2> {
        let mut residual = self.embedding.forward(&input.tokens) * self.embedding_scale;
        // Each norm adds the block before it to the residual stream, so that the sum and the norm are one operation.
        let mut block_output: Option<Tensor<2>> = None;
        for (index, layer) in self.layers.iter().enumerate() {
            let normed;
            (normed, residual) = add_norm(&layer.attention_norm, block_output, residual);
            let (attended, kept) = layer.attention.forward(normed, residual, input, cache.layer(index));
            let attended = layer.after_attention_norm.forward(attended);
            let (normed, sum) = layer.mlp_norm.add_forward(attended, kept);
            residual = sum;
            let output = layer.after_mlp_norm.forward(layer.mlp.forward(normed, None));
            if let Some(outputs) = outputs.as_deref_mut() {
                outputs.push(output.clone() + residual.clone());
            }
            block_output = Some(output);
        }
        match block_output {
            Some(output) => output + residual,
            None => residual,
        }
    }

    fn head(&self) -> &LmHead {
        &self.head
    }
}

/// `(norm(x + residual), x + residual)`, where the first layer has no `x` yet.
fn add_norm(norm: &Norm, x: Option<Tensor<2>>, residual: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    match x {
        Some(x) => norm.add_forward(x, residual),
        None => (norm.forward(residual.clone()), residual),
    }
}
