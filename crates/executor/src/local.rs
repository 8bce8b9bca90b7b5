//! One model on one device.

use std::future::Future;
use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Tensor};
use firebrick_checkpoint::{Checkpoint, KvDtype};
use firebrick_engine::{Batch, ExecuteError, Executor, StepOutput};
use firebrick_model::{CausalLm, ForwardInput, KvCache, LoadError, LoadOptions, Progress};
use firebrick_ops::{Backend, Sampled, WorkStream, backend_of, gather_rows};

use crate::graph::StepGraphs;
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
    /// Format of keys and values; the device must be one that keeps them in it.
    pub dtype: KvDtype,
    /// Most sequences of one step.
    pub max_num_seqs: u32,
    /// Replay steps as graphs, where the device is one that has them.
    pub graphs: bool,
}

/// Runs batches on one device, one after the other.
pub struct LocalExecutor {
    model: Arc<Mutex<Model>>,
    graphs: Option<StepGraphs>,
    /// What the last step chose, for the tokens that the next one carries.
    chosen: Chosen,
    num_blocks: u32,
    device: Device,
    stream: WorkStream,
}

/// Where the choices of the last step are.
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
        let max_model_len = options.max_model_len;
        let vocab_size = checkpoint.config().vocab_size;
        let CacheOptions { num_blocks, block_size, .. } = cache;
        let model = firebrick_model::load(checkpoint, options, device, progress)?;
        let replays = cache.graphs && StepGraphs::exist_on(device);
        // Graphs pad their batches with rows that need a block of their own.
        let num_spare = usize::from(replays);
        let allocated = (num_blocks as usize + num_spare, block_size as usize);
        let kv_cache =
            KvCache::new(checkpoint.config(), cache.dtype, allocated, device).map_err(|error| match error {
                // The numbers are those of blocks that sequences may own.
                LoadError::CacheTooLarge { num_blocks, block_size, num_blocks_max } => LoadError::CacheTooLarge {
                    num_blocks: num_blocks - num_spare,
                    block_size,
                    num_blocks_max: num_blocks_max - num_spare,
                },
                other => other,
            })?;
        let model = Arc::new(Mutex::new(Model { model, cache: kv_cache }));
        let graphs = replays.then(|| {
            let spare = SpareBlock { block: num_blocks, block_size };
            StepGraphs::new(Arc::clone(&model), device, spare, (max_model_len, cache.max_num_seqs as usize, vocab_size))
        });
        Ok(Self {
            graphs: graphs.flatten(),
            chosen: Chosen::Nothing,
            model,
            num_blocks,
            device: device.clone(),
            stream,
        })
    }

    /// Steps that have been recorded as graphs so far.
    pub fn num_graphs(&self) -> usize {
        self.graphs.as_ref().map_or(0, StepGraphs::num_recorded)
    }

    /// Enqueues a step.
    fn start(&mut self, batch: &Batch) -> Step {
        let chosen = match &self.chosen {
            Chosen::OnDevice(sampled) if !batch.carried.is_empty() => Some((**sampled).clone()),
            _ => None,
        };
        if let Some(output) = self.replay(batch, chosen.as_ref()) {
            let sampling = (!batch.samples.is_empty()).then(|| match output {
                Output::Logits(logits) => sampler::start(logits, &batch.samples),
                Output::Sampled(sampled) => Sampling::of(sampled, &batch.samples),
            });
            return Step { sampling, prompts: Vec::new() };
        }
        let mut input = match &chosen {
            Some(chosen) => forward_input_after(batch, chosen, &self.device),
            None => forward_input(batch, &self.device),
        };
        let mut model = self.model.lock().expect("a forward pass does not panic while it holds the model");
        let Model { model, cache } = &mut *model;
        // What is reported of prompts is made of rows that are not sampled.
        let sampled_rows = if batch.prompt_rows.is_empty() { None } else { input.output_rows.take() };
        let hidden = model.hidden(&input, cache, None);
        let head = model.head();
        let sampling = (!batch.samples.is_empty()).then(|| {
            let sampled = sampled_rows.map_or_else(|| hidden.clone(), |rows| gather_rows(&hidden, &rows));
            sampler::start(head.logits(sampled), &batch.samples)
        });
        let prompts = batch.prompt_rows.iter().map(|rows| PromptReading::start(rows, &hidden, head)).collect();
        Step { sampling, prompts }
    }

    /// Replays a step as a graph, where one covers it. Steps that report prompts are launched kernel by kernel.
    fn replay(&mut self, batch: &Batch, chosen: Option<&Sampled>) -> Option<Output> {
        if !batch.prompt_rows.is_empty() {
            return None;
        }
        self.graphs.as_mut()?.run(batch, chosen)
    }
}

/// What a replayed step leaves on the device, one row per sample in the order of `batch.samples`, and perhaps more.
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
        self.chosen = match step.sampling.as_ref().map(Sampling::on_device) {
            None => Chosen::Nothing,
            Some(Some(sampled)) => Chosen::OnDevice(Box::new(sampled.clone())),
            Some(None) => Chosen::Elsewhere,
        };
        // The way back to the host begins before the next step, which may write over the results.
        stream.attach(stream.enter(|| step.finish()))
    }

    fn can_run_ahead(&self) -> bool {
        backend_of(&self.device) != Backend::Cpu && !matches!(self.chosen, Chosen::Elsewhere)
    }
}
