//! The architectures, and how one is chosen.

use burn::tensor::{Device, Tensor};
use firebrick_checkpoint::{Architecture, Checkpoint};
use firebrick_ops::gather_rows;

use crate::layers::LmHead;
use crate::loader::{LoadOptions, Loader, Progress};
use crate::models::{Gemma3, Gpt2, Llama, Opt};
use crate::{ForwardInput, KvCache, LayerOutputs, LoadError};

/// A decoder that predicts the next token.
pub trait CausalLm {
    /// The residual stream after the last layer: `[T, hidden]`, or the wanted rows alone, where those are fewer.
    fn layers(&self, input: &ForwardInput, cache: &mut KvCache, outputs: Option<&mut LayerOutputs>) -> Tensor<2>;

    /// What makes logits of the residual stream.
    fn head(&self) -> &LmHead;

    /// The residual stream after the last layer, of the wanted rows. Writes the batch's keys and values into `cache` and
    /// reads its sequences' earlier ones from it. Collects every layer's output into `outputs` if given.
    fn hidden(&self, input: &ForwardInput, cache: &mut KvCache, outputs: Option<&mut LayerOutputs>) -> Tensor<2> {
        let hidden = self.layers(input, cache, outputs);
        match &input.output_rows {
            Some(rows) if input.rows_of_last_layer().is_none() => gather_rows(&hidden, rows),
            _ => hidden,
        }
    }

    /// Logits `[wanted rows, vocab]`, 32-bit floats on backends that compute in them.
    fn forward(&self, input: &ForwardInput, cache: &mut KvCache, outputs: Option<&mut LayerOutputs>) -> Tensor<2> {
        self.head().logits(self.hidden(input, cache, outputs))
    }
}

/// Reads a checkpoint's weights onto a device.
pub fn load(
    checkpoint: &Checkpoint,
    options: LoadOptions,
    device: &Device,
    progress: Progress,
) -> Result<Box<dyn CausalLm + Send>, LoadError> {
    let mut loader = Loader::new(checkpoint, options, device, progress);
    Ok(match checkpoint.config().architecture {
        Architecture::Llama
        | Architecture::Mistral
        | Architecture::Qwen2
        | Architecture::Qwen3
        | Architecture::Phi3 => Box::new(Llama::load(&mut loader)?),
        Architecture::Gemma3 => Box::new(Gemma3::load(&mut loader)?),
        Architecture::Opt => Box::new(Opt::load(&mut loader)?),
        Architecture::Gpt2 => Box::new(Gpt2::load(&mut loader)?),
    })
}
