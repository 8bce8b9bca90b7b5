//! One model on one device.

use std::future::Future;
use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Tensor};
use firebrick_checkpoint::{Checkpoint, Dtype};
use firebrick_engine::{Batch, ExecuteError, Executor, SampleOutcome};
use firebrick_model::{CausalLm, ForwardInput, KvCache, LoadError, LoadOptions, Progress};
#[cfg(feature = "cuda")]
use firebrick_ops::Sampled;
use firebrick_ops::{Backend, WorkStream, backend_of};

#[cfg(feature = "cuda")]
use crate::graph::StepGraphs;
#[cfg(feature = "cuda")]
use crate::inputs::SpareBlock;
#[cfg(feature = "cuda")]
use crate::sampler::Sampling;
use crate::{forward_input, sampler};

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
    /// Most sequences of one step.
    pub max_num_seqs: u32,
    /// Replay steps as CUDA graphs, where the device is one that has them.
    pub cuda_graphs: bool,
}

/// Runs batches on one device, one after the other.
pub struct LocalExecutor {
    model: Arc<Mutex<Model>>,
    #[cfg(feature = "cuda")]
    graphs: Option<StepGraphs>,
    num_blocks: u32,
    device: Device,
    stream: WorkStream,
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
        let stream = WorkStream::new();
        stream.enter(|| Self::load_on(stream, (checkpoint, options), cache, device, progress))
    }

    fn load_on(
        stream: WorkStream,
        (checkpoint, options): (&Checkpoint, LoadOptions),
        cache: CacheOptions,
        device: &Device,
        progress: Progress,
    ) -> Result<Self, LoadError> {
        let dtype: Dtype = options.dtype;
        #[cfg(feature = "cuda")]
        let max_model_len = options.max_model_len;
        #[cfg(feature = "cuda")]
        let vocab_size = checkpoint.config().vocab_size;
        let CacheOptions { num_blocks, block_size, .. } = cache;
        let model = firebrick_model::load(checkpoint, options, device, progress)?;
        let replays = cfg!(feature = "cuda") && backend_of(device) == Backend::Cuda && cache.cuda_graphs;
        // Graphs pad their batches with rows that need a block of their own.
        let allocated = (num_blocks as usize + usize::from(replays), block_size as usize);
        let kv_cache = KvCache::new(checkpoint.config(), dtype, allocated, device);
        let model = Arc::new(Mutex::new(Model { model, cache: kv_cache }));
        #[cfg(feature = "cuda")]
        let graphs = replays.then(|| {
            let spare = SpareBlock { block: num_blocks, block_size };
            StepGraphs::new(Arc::clone(&model), device, spare, (max_model_len, cache.max_num_seqs as usize, vocab_size))
        });
        Ok(Self {
            #[cfg(feature = "cuda")]
            graphs,
            model,
            num_blocks,
            device: device.clone(),
            stream,
        })
    }

    /// Enqueues a step.
    fn run(&mut self, batch: &Batch) -> Output {
        #[cfg(feature = "cuda")]
        if let Some(output) = self.graphs.as_mut().and_then(|graphs| graphs.run(batch)) {
            return output;
        }
        let input = forward_input(batch, &self.device);
        let mut model = self.model.lock().expect("a forward pass does not panic while it holds the model");
        Output::Logits(model.forward(&input))
    }
}

/// What a step leaves on the device, one row per sample in the order of `batch.samples`, and perhaps more.
pub(crate) enum Output {
    Logits(Tensor<2>),
    /// Tokens, chosen as part of the step.
    #[cfg(feature = "cuda")]
    Sampled(Sampled),
}

impl Executor for LocalExecutor {
    fn kv_blocks(&self) -> u32 {
        self.num_blocks
    }

    fn execute(&mut self, batch: &Batch) -> impl Future<Output = Result<Vec<SampleOutcome>, ExecuteError>> + 'static {
        let stream = self.stream;
        let sampling = stream.enter(|| {
            let output = self.run(batch);
            (!batch.samples.is_empty()).then(|| match output {
                Output::Logits(logits) => sampler::start(logits, &batch.samples),
                #[cfg(feature = "cuda")]
                Output::Sampled(sampled) => Sampling::of(sampled, &batch.samples),
            })
        });
        stream.attach(async move {
            match sampling {
                Some(sampling) => sampling.finish().await,
                None => Ok(Vec::new()),
            }
        })
    }
}
