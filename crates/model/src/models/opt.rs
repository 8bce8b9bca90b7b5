//! OPT (Zhang et al., 2022): learned positions, layer norms before each block, ReLU. Reference: transformers,
//! `modeling_opt.py`.

use burn::tensor::Tensor;
use firebrick_ops::Stream;

use crate::layers::{Attention, Linear, LmHead, Mlp, Norm, TokenEmbedding};
use crate::loader::Loader;
use crate::{CausalLm, ForwardInput, KvCache, LayerOutputs, LoadError};

pub(crate) struct Opt {
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

impl Opt {
    pub(crate) fn load(loader: &mut Loader) -> Result<Self, LoadError> {
        let config = loader.config();
        if !config.layer_norm_before {
            return Err(LoadError::Variant { architecture: "OPT", variant: "do_layer_norm_before=false" });
        }
        let offset = config.position_offset.unwrap_or(0);
        let embedding = TokenEmbedding::load(loader, "model.decoder.embed_tokens.weight", config.vocab_size)?;
        let rows = config.max_position_embeddings + offset;
        let positions = TokenEmbedding::load(loader, "model.decoder.embed_positions.weight", rows)?;
        let layers = (0..config.num_layers)
            .map(|index| {
                let name = |part: &str| format!("model.decoder.layers.{index}.{part}");
                let (hidden, inner) = (config.hidden_size, config.intermediate_size);
                let up = Linear::load(loader, &[(name("fc1"), inner)], hidden, config.mlp_bias)?;
                let down = Linear::load(loader, &[(name("fc2"), hidden)], inner, config.mlp_bias)?;
                Ok(Layer {
                    attention_norm: Norm::load_layer(loader, &name("self_attn_layer_norm"))?,
                    attention: Attention::load(loader, &name("self_attn"), "out_proj", index, None)?,
                    mlp_norm: Norm::load_layer(loader, &name("final_layer_norm"))?,
                    mlp: Mlp::plain(loader, up, down),
                })
            })
            .collect::<Result<_, LoadError>>()?;
        let norm = Norm::load_layer(loader, "model.decoder.final_layer_norm")?;
        let head = LmHead::load(loader, norm, &embedding)?;
        Ok(Self { embedding, positions, position_offset: offset, layers, head })
    }
}

impl CausalLm for Opt {
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
