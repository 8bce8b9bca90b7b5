//! One model on one device.

use std::future::Future;
use std::sync::{Arc, Mutex};

use burn::tensor::Device;
#[cfg(feature = "cuda")]
use burn::tensor::Tensor;
use firebrick_checkpoint::{Checkpoint, Dtype};
use firebrick_engine::{Batch, ExecuteError, Executor, StepOutput};
#[cfg(feature = "cuda")]
use firebrick_model::ForwardInput;
use firebrick_model::{CausalLm, KvCache, LoadError, LoadOptions, Progress};
#[cfg(feature = "cuda")]
use firebrick_ops::Sampled;
use firebrick_ops::{Backend, WorkStream, backend_of};

#[cfg(feature = "cuda")]
use crate::graph::StepGraphs;
#[cfg(feature = "cuda")]
use crate::inputs::{SpareBlock, forward_input_after};
use crate::prompt_rows::PromptReading;
use crate::sampler::Sampling;
use crate::{forward_input, sampler};

/// Weights and cache: what a forward pass needs besides its input.
pub(crate) struct Model {
    model: Box<dyn CausalLm + Send>,
    cache: KvCache,
}

impl Model {
    /// Logits of the rows that the input names.
    #[cfg(feature = "cuda")]
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
    /// What the last step chose, for the tokens that the next one carries.
    #[cfg(feature = "cuda")]
    chosen: Chosen,
    num_blocks: u32,
    device: Device,
    stream: WorkStream,
}

/// Where the choices of the last step are.
#[cfg(feature = "cuda")]
enum Chosen {
    Nothing,
    OnDevice(Box<Sampled>),
    Elsewhere,
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
        let kv_cache = KvCache::new(checkpoint.config(), dtype, allocated, device)?;
        let model = Arc::new(Mutex::new(Model { model, cache: kv_cache }));
        #[cfg(feature = "cuda")]
        let graphs = replays.then(|| {
            let spare = SpareBlock { block: num_blocks, block_size };
            StepGraphs::new(Arc::clone(&model), device, spare, (max_model_len, cache.max_num_seqs as usize, vocab_size))
        });
        Ok(Self {
            #[cfg(feature = "cuda")]
            graphs,
            #[cfg(feature = "cuda")]
            chosen: Chosen::Nothing,
            model,
            num_blocks,
            device: device.clone(),
            stream,
        })
    }

    /// Enqueues a step.
    fn start(&mut self, batch: &Batch) -> Step {
        #[cfg(feature = "cuda")]
        let chosen = match &self.chosen {
            Chosen::OnDevice(sampled) if !batch.carried.is_empty() => Some((**sampled).clone()),
            _ => None,
        };
        #[cfg(feature = "cuda")]
        if let Some(output) = self.replay(batch, chosen.as_ref()) {
            let sampling = (!batch.samples.is_empty()).then(|| match output {
                Output::Logits(logits) => sampler::start(logits, &batch.samples),
                Output::Sampled(sampled) => Sampling::of(sampled, &batch.samples),
            });
            return Step { sampling, prompts: Vec::new() };
        }
        #[cfg(feature = "cuda")]
        let input = match &chosen {
            Some(chosen) => forward_input_after(batch, chosen, &self.device),
            None => forward_input(batch, &self.device),
        };
        #[cfg(not(feature = "cuda"))]
        let input = forward_input(batch, &self.device);
        let mut model = self.model.lock().expect("a forward pass does not panic while it holds the model");
        let Model { model, cache } = &mut *model;
        let hidden = model.hidden(&input, cache, None);
        let head = model.head();
        let sampling = (!batch.samples.is_empty())
            .then(|| sampler::start(head.logits(&hidden, &input.logit_rows), &batch.samples));
        let prompts = batch.prompt_rows.iter().map(|rows| PromptReading::start(rows, &hidden, head)).collect();
        Step { sampling, prompts }
    }

    /// Replays a step as a graph, where one covers it. Steps that report prompts are launched kernel by kernel.
    #[cfg(feature = "cuda")]
    fn replay(&mut self, batch: &Batch, chosen: Option<&Sampled>) -> Option<Output> {
        if !batch.prompt_rows.is_empty() {
            return None;
        }
        self.graphs.as_mut()?.run(batch, chosen)
    }
}

/// What a replayed step leaves on the device, one row per sample in the order of `batch.samples`, and perhaps more.
#[cfg(feature = "cuda")]
pub(crate) enum Output {
    Logits(Tensor<2>),
    /// Tokens, chosen as part of the step.
    Sampled(Sampled),
}

/// The results of a step under way.
struct Step {
    sampling: Option<Sampling>,
    prompts: Vec<PromptReading>,
}

impl Step {
    /// The results, once the device has them; those of the draws begin their way to the host now.
    fn finish(self) -> impl Future<Output = Result<StepOutput, ExecuteError>> {
        let samples = self.sampling.map(Sampling::finish);
        async move {
            let mut output = StepOutput::default();
            if let Some(samples) = samples {
                output.samples = samples.await?;
            }
            for prompt in self.prompts {
                output.prompts.push(prompt.finish().await?);
            }
            Ok(output)
        }
    }
}

impl Executor for LocalExecutor {
    fn kv_blocks(&self) -> u32 {
        self.num_blocks
    }

    fn execute(&mut self, batch: &Batch) -> impl Future<Output = Result<StepOutput, ExecuteError>> + 'static {
        let stream = self.stream;
        let step = stream.enter(|| self.start(batch));
        #[cfg(feature = "cuda")]
        {
            self.chosen = match step.sampling.as_ref().map(Sampling::on_device) {
                None => Chosen::Nothing,
                Some(Some(sampled)) => Chosen::OnDevice(Box::new(sampled.clone())),
                Some(None) => Chosen::Elsewhere,
            };
        }
        // The way back to the host begins before the next step, which may write over the results.
        stream.attach(stream.enter(|| step.finish()))
    }

    fn can_run_ahead(&self) -> bool {
        #[cfg(feature = "cuda")]
        return backend_of(&self.device) == Backend::Cuda && !matches!(self.chosen, Chosen::Elsewhere);
        #[cfg(not(feature = "cuda"))]
        false
    }
}
