//! One model on one device.

use std::future::Future;

use burn::tensor::Device;
use firebrick_checkpoint::{Checkpoint, Dtype};
use firebrick_engine::{Batch, ExecuteError, Executor, SampleOutcome};
use firebrick_model::{CausalLm, KvCache, LoadError, LoadOptions, Progress};

use crate::{forward_input, sample};

/// Runs batches on one device, one after the other.
pub struct LocalExecutor {
    model: Box<dyn CausalLm + Send>,
    cache: KvCache,
    num_blocks: u32,
    device: Device,
}

impl LocalExecutor {
    /// Loads the weights and allocates `num_blocks` blocks of `block_size` tokens of KV cache.
    pub fn load(
        checkpoint: &Checkpoint,
        options: LoadOptions,
        (num_blocks, block_size): (u32, u32),
        device: &Device,
        progress: Progress,
    ) -> Result<Self, LoadError> {
        let dtype: Dtype = options.dtype;
        let model = firebrick_model::load(checkpoint, options, device, progress)?;
        let cache = KvCache::new(checkpoint.config(), dtype, (num_blocks as usize, block_size as usize), device);
        Ok(Self { model, cache, num_blocks, device: device.clone() })
    }
}

impl Executor for LocalExecutor {
    fn kv_blocks(&self) -> u32 {
        self.num_blocks
    }

    fn execute(&mut self, batch: &Batch) -> impl Future<Output = Result<Vec<SampleOutcome>, ExecuteError>> + 'static {
        let input = forward_input(batch, &self.device);
        let wanted = !batch.samples.is_empty();
        let logits = self.model.forward(&input, &mut self.cache, None);
        let rows = batch.samples.clone();
        async move {
            if !wanted {
                return Ok(Vec::new());
            }
            let [_, vocab_size] = logits.dims();
            let data = logits.into_data_async().await.map_err(|error| ExecuteError(format!("{error:?}")))?;
            let values =
                data.convert::<f32>().try_to_vec::<f32>().map_err(|error| ExecuteError(format!("{error:?}")))?;
            Ok(sample(values, vocab_size, &rows))
        }
    }
}
