//! One model on one device.

use std::future::Future;
use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Tensor};
use firebrick_checkpoint::{Checkpoint, Dtype};
#[cfg(feature = "cuda")]
use firebrick_engine::SampleRow;
use firebrick_engine::{Batch, ExecuteError, Executor, SampleOutcome};
use firebrick_model::{CausalLm, ForwardInput, KvCache, LoadError, LoadOptions, Progress};
use firebrick_ops::{Backend, backend_of};

#[cfg(feature = "cuda")]
use crate::graph::DecodeGraphs;
use crate::{forward_input, sample};

/// Weights and cache: what a forward pass needs besides its input.
pub(crate) struct Model {
    model: Box<dyn CausalLm + Send>,
    cache: KvCache,
}

impl Model {
    /// Logits of the rows that the input names.
    pub(crate) fn forward(&mut self, input: &ForwardInput) -> Tensor<2> {
        self.model.forward(input, &mut self.cache, None)
    }
}

/// The size of the KV cache and how its steps are launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Blocks that sequences may own.
    pub num_blocks: u32,
    /// Tokens per block.
    pub block_size: u32,
    /// Replay decode steps as CUDA graphs, where the device is one that has them.
    pub cuda_graphs: bool,
}

/// Runs batches on one device, one after the other.
pub struct LocalExecutor {
    model: Arc<Mutex<Model>>,
    #[cfg(feature = "cuda")]
    graphs: Option<DecodeGraphs>,
    num_blocks: u32,
    device: Device,
}

impl LocalExecutor {
    /// Loads the weights and allocates the KV cache.
    pub fn load(
        checkpoint: &Checkpoint,
        options: LoadOptions,
        cache: CacheOptions,
        device: &Device,
        progress: Progress,
    ) -> Result<Self, LoadError> {
        let dtype: Dtype = options.dtype;
        #[cfg(feature = "cuda")]
        let max_model_len = options.max_model_len;
        let CacheOptions { num_blocks, block_size, cuda_graphs } = cache;
        let model = firebrick_model::load(checkpoint, options, device, progress)?;
        let replays = cfg!(feature = "cuda") && backend_of(device) == Backend::Cuda && cuda_graphs;
        // Graphs pad their batches with rows that need a block of their own.
        let allocated = (num_blocks as usize + usize::from(replays), block_size as usize);
        let cache = KvCache::new(checkpoint.config(), dtype, allocated, device);
        let model = Arc::new(Mutex::new(Model { model, cache }));
        Ok(Self {
            #[cfg(feature = "cuda")]
            graphs: replays
                .then(|| DecodeGraphs::new(Arc::clone(&model), device, (num_blocks, block_size), max_model_len)),
            model,
            num_blocks,
            device: device.clone(),
        })
    }

    /// Logits with one row per sample, in the order of `batch.samples`, or one row per sequence and perhaps more.
    fn forward(&mut self, batch: &Batch) -> (Tensor<2>, Rows) {
        #[cfg(feature = "cuda")]
        if let Some(logits) = self.graphs.as_mut().and_then(|graphs| graphs.run(batch)) {
            return (logits, Rows::OfSequences);
        }
        let input = forward_input(batch, &self.device);
        let mut model = self.model.lock().expect("a forward pass does not panic while it holds the model");
        (model.forward(&input), Rows::OfSamples)
    }
}

/// What the rows of logits stand for.
#[derive(Clone, Copy)]
enum Rows {
    OfSamples,
    #[cfg(feature = "cuda")]
    OfSequences,
}

/// From one row per sequence, and perhaps more, to one per sample.
#[cfg(feature = "cuda")]
fn rows_of_samples(mut values: Vec<f32>, vocab_size: usize, samples: &[SampleRow]) -> Vec<f32> {
    if samples.iter().enumerate().all(|(index, sample)| sample.row as usize == index) {
        values.truncate(samples.len() * vocab_size);
        return values;
    }
    let mut chosen = Vec::with_capacity(samples.len() * vocab_size);
    for sample in samples {
        chosen.extend_from_slice(&values[sample.row as usize * vocab_size..][..vocab_size]);
    }
    chosen
}

impl Executor for LocalExecutor {
    fn kv_blocks(&self) -> u32 {
        self.num_blocks
    }

    fn execute(&mut self, batch: &Batch) -> impl Future<Output = Result<Vec<SampleOutcome>, ExecuteError>> + 'static {
        let (logits, rows) = self.forward(batch);
        let samples = batch.samples.clone();
        async move {
            if samples.is_empty() {
                return Ok(Vec::new());
            }
            let [_, vocab_size] = logits.dims();
            let data = logits.into_data_async().await.map_err(|error| ExecuteError(format!("{error:?}")))?;
            let values =
                data.convert::<f32>().try_to_vec::<f32>().map_err(|error| ExecuteError(format!("{error:?}")))?;
            let values = match rows {
                Rows::OfSamples => values,
                #[cfg(feature = "cuda")]
                Rows::OfSequences => rows_of_samples(values, vocab_size, &samples),
            };
            Ok(sample(values, vocab_size, &samples))
        }
    }
}
