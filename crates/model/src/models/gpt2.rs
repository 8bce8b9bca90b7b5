//! GPT-2 (Radford et al., 2019): learned positions, layer norms before each block, GELU, and projections stored as
//! `[in, out]`. Reference: transformers, `modeling_gpt2.py`.

use burn::tensor::Tensor;
use firebrick_ops::Stream;

use crate::layers::{Attention, Linear, LmHead, Mlp, Norm, TokenEmbedding};
use crate::loader::Loader;
use crate::{CausalLm, ForwardInput, KvCache, LayerOutputs, LoadError};

pub(crate) struct Gpt2 {
    embedding: TokenEmbedding,
    positions: TokenEmbedding,
    position_offset: usize,
    layers: Vec<Layer>,
    head: LmHead,
}

struct Layer {
    attention_norm: Norm,
    attention: Attention,
    mlp_norm: Norm,
    mlp: Mlp,
}

impl Gpt2 {
    pub(crate) fn load(loader: &mut Loader) -> Result<Self, LoadError> {
        let config = loader.config();
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let offset = config.position_offset.unwrap_or(0);
        let embedding = TokenEmbedding::load(loader, "transformer.wte.weight", config.vocab_size)?;
        let rows = config.max_position_embeddings + offset;
        let positions = TokenEmbedding::load(loader, "transformer.wpe.weight", rows)?;
        let layers = (0..config.num_layers)
            .map(|index| {
                let name = |part: &str| format!("transformer.h.{index}.{part}");
                let qkv = projection(loader, &name("attn.c_attn"), 3 * hidden, hidden)?;
                let output = projection(loader, &name("attn.c_proj"), hidden, hidden)?;
                let up = projection(loader, &name("mlp.c_fc"), inner, hidden)?;
                let down = projection(loader, &name("mlp.c_proj"), hidden, inner)?;
                Ok(Layer {
                    attention_norm: Norm::load_layer(loader, &name("ln_1"))?,
                    attention: Attention::from_projections(loader, qkv, output, index, None),
                    mlp_norm: Norm::load_layer(loader, &name("ln_2"))?,
                    mlp: Mlp::plain(loader, up, down),
                })
            })
            .collect::<Result<_, LoadError>>()?;
        let norm = Norm::load_layer(loader, "transformer.ln_f")?;
        let head = LmHead::load(loader, norm, &embedding)?;
        Ok(Self { embedding, positions, position_offset: offset, layers, head })
    }
}

/// A layer of GPT-2's `Conv1D` kind: `[in, out]` weights and a bias.
fn projection(loader: &mut Loader, name: &str, outputs: usize, inputs: usize) -> Result<Linear, LoadError> {
    let weight = loader.transposed_weight(&format!("{name}.weight"), outputs, inputs)?;
    Ok(Linear::new(weight, Some(loader.vector(&[(&format!("{name}.bias"), outputs)])?)))
}

impl CausalLm for Gpt2 {
    fn layers(&self, input: &ForwardInput, cache: &mut KvCache, mut outputs: Option<&mut LayerOutputs>) -> Tensor<2> {
        let places = input.metadata.positions.clone() + self.position_offset as i32;
        let mut hidden = Stream::from(self.embedding.forward(&input.tokens) + self.positions.forward(&places));
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
