//! What a model computes on one backend: layer outputs, logits, greedy tokens.

use burn::tensor::{Device, Tensor};
use firebrick::{Backend, Error, TokenId};
use firebrick_checkpoint::{Checkpoint, Dtype, ModelConfig};
use firebrick_model::{CausalLm, ForwardInput, Fp8, KvCache, LoadOptions, Progress};
use firebrick_ops::{AttentionMetadata, Derived, int_tensor, open_device};

use crate::failure::Failure;

const BLOCK_SIZE: usize = 16;

/// The numbers of one prompt.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// The residual stream after each layer, `[prompt, hidden]` each.
    pub layers: Vec<Vec<f32>>,
    /// `[prompt, vocabulary]`.
    pub logits: Vec<f32>,
    /// Columns of `logits`.
    pub vocab_size: usize,
    /// What follows the prompt.
    pub greedy: Vec<TokenId>,
}

/// A model on a backend, with room for one sequence.
pub struct Runner {
    model: Box<dyn CausalLm + Send>,
    cache: KvCache,
    num_blocks: usize,
    device: Device,
}

impl Runner {
    /// Loads the model.
    pub fn load(
        checkpoint: &Checkpoint,
        backend: Backend,
        dtype: Dtype,
        max_model_len: usize,
        progress: Progress,
    ) -> Result<Self, Error> {
        let device = open_device(backend)?;
        let config: &ModelConfig = checkpoint.config();
        let options = LoadOptions { dtype, packed: false, fp8: Fp8::Never, max_model_len };
        let model = firebrick_model::load(checkpoint, options, &device, progress)?;
        let num_blocks = max_model_len.div_ceil(BLOCK_SIZE);
        let cache = KvCache::new(config, dtype.into(), (num_blocks, BLOCK_SIZE), &device)?;
        Ok(Self { model, cache, num_blocks, device })
    }

    /// Computes the prompt in one step and continues it token by token.
    pub fn run(mut self, prompt: &[TokenId], num_tokens: usize) -> Result<Numbers, Failure> {
        let mut outputs = Vec::new();
        let input = self.input(prompt, 0, prompt.len());
        let logits = self.model.forward(&input, &mut self.cache, Some(&mut outputs));
        let [_, vocab_size] = logits.dims();
        let layers = outputs.into_iter().map(read).collect::<Result<_, _>>()?;
        let mut numbers = Numbers { layers, logits: read(logits)?, vocab_size, greedy: Vec::new() };
        let mut next = argmax(&numbers.logits[numbers.logits.len() - vocab_size..]);
        for step in 0..num_tokens {
            numbers.greedy.push(next);
            if step + 1 < num_tokens {
                let input = self.input(&[next], prompt.len() + step, 1);
                next = argmax(&read(self.model.forward(&input, &mut self.cache, None))?);
            }
        }
        Ok(numbers)
    }

    /// Tokens from position `start` of the only sequence, whose blocks are all there are, in order.
    fn input(&self, tokens: &[TokenId], start: usize, num_logits: usize) -> ForwardInput {
        let (device, length) = (&self.device, tokens.len());
        let last = (length - num_logits) as i32..length as i32;
        let positions: Vec<i32> = (start..start + length).map(|position| position as i32).collect();
        ForwardInput {
            tokens: int_tensor(tokens.iter().map(|&token| token as i32).collect(), [length], device),
            metadata: AttentionMetadata {
                positions: int_tensor(positions.clone(), [length], device),
                slot_mapping: int_tensor(positions, [length], device),
                sequence_of_token: int_tensor(vec![0; length], [length], device),
                block_tables: int_tensor((0..self.num_blocks as i32).collect(), [1, self.num_blocks], device),
                query_starts: int_tensor(vec![0, length as i32], [2], device),
                context_lens: int_tensor(vec![(start + length) as i32], [1], device),
                query_len_min: length,
                query_len_max: length,
                context_len_max: start + length,
                derived: Derived::default(),
            },
            output_rows: Some(int_tensor(last.collect(), [num_logits], device)),
        }
    }
}

fn read(tensor: Tensor<2>) -> Result<Vec<f32>, Failure> {
    let failed = |error: String| Failure::Run(format!("the device failed: {error}"));
    let data = pollster::block_on(tensor.into_data_async()).map_err(|error| failed(format!("{error:?}")))?;
    data.convert::<f32>().try_to_vec::<f32>().map_err(|error| failed(format!("{error:?}")))
}

/// The most likely token, the lowest id among equals.
fn argmax(logits: &[f32]) -> TokenId {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == largest).unwrap_or(0) as TokenId
}
