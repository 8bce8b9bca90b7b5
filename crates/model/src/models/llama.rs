//! Llama (Touvron et al., 2023) and the models of its shape: Llama 2 and 3, SmolLM2, TinyLlama, Code Llama, Yi,
//! Mistral (sliding window; Jiang et al., 2023), Qwen2 and 2.5 (query, key and value biases; Yang et al., 2024), Qwen3
//! (per-head norms of queries and keys; Yang et al., 2025) and Phi 3 (fewer, larger matrices; Abdin et al., 2024).
//! Reference: transformers, `modeling_llama.py`.

use burn::tensor::Tensor;
use firebrick_ops::Stream;

use crate::layers::{Attention, LmHead, Mlp, Norm, TokenEmbedding};
use crate::loader::Loader;
use crate::{CausalLm, ForwardInput, KvCache, LayerOutputs, LoadError};

pub(crate) struct Llama {
    embedding: TokenEmbedding,
    layers: Vec<Layer>,
    head: LmHead,
}

struct Layer {
    attention_norm: Norm,
    attention: Attention,
    mlp_norm: Norm,
    mlp: Mlp,
}

impl Llama {
    pub(crate) fn load(loader: &mut Loader) -> Result<Self, LoadError> {
        let config = loader.config();
        let rope = config.rope.as_ref().map(|rope| loader.rope_table(rope));
        let embedding = TokenEmbedding::load(loader, "model.embed_tokens.weight", config.vocab_size)?;
        let layers = (0..config.num_layers)
            .map(|index| {
                let name = |part: &str| format!("model.layers.{index}.{part}");
                Ok(Layer {
                    attention_norm: Norm::load_rms(loader, &name("input_layernorm"))?,
                    attention: Attention::load(loader, &name("self_attn"), "o_proj", index, rope.clone())?,
                    mlp_norm: Norm::load_rms(loader, &name("post_attention_layernorm"))?,
                    mlp: Mlp::load_gated(loader, &name("mlp"))?,
                })
            })
            .collect::<Result<_, LoadError>>()?;
        let norm = Norm::load_rms(loader, "model.norm")?;
        let head = LmHead::load(loader, norm, &embedding)?;
        Ok(Self { embedding, layers, head })
    }
}

impl CausalLm for Llama {
    fn layers(&self, input: &ForwardInput, cache: &mut KvCache, mut outputs: Option<&mut LayerOutputs>) -> Tensor<2> {
        let mut hidden = Stream::from(self.embedding.forward(&input.tokens));
        for (index, layer) in self.layers.iter().enumerate() {
            let norms = (&layer.attention_norm, &layer.mlp_norm);
            hidden = layer.attention.add_forward(hidden, norms, input, cache.layer(index));
            let next = self.layers.get(index + 1).map(|layer| &layer.attention_norm);
            hidden = layer.mlp.add_forward(hidden, &layer.mlp_norm, next);
            if let Some(outputs) = outputs.as_deref_mut() {
                outputs.push(hidden.rows().clone());
            }
        }
        hidden.into_rows()
    }

    fn head(&self) -> &LmHead {
        &self.head
    }
}
