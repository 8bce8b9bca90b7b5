//! Steps as graphs: recorded once for each shape, replayed with one call.
//!
//! Few shapes occur because batches are padded: the numbers of tokens and sequences to a bucket, block tables to a width.
//! Padding computes on a block of the cache that no sequence owns, and its logits are dropped. Which steps are recorded,
//! and when, is the [`Policy`] of the device's backend.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Int, Tensor};
use firebrick_engine::Batch;
use firebrick_ops::{
    Backend, CapturedGraph, GraphMemory, SECTION_ALIGNMENT, SampleOptions, SamplePlan, Sampled, backend_of,
    device_memory, free_device_memory, kept_int_tensor, sample, section,
};

use crate::inputs::{LengthBounds, SpareBlock, StepShape, carry, pack, rewrite, unpack};
use crate::local::{Model, Output};
use crate::sampler;

/// Sequences of a decode step.
const DECODE_BUCKETS: [usize; 16] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024];
/// Most of those that are recorded before the first request: recordings keep room for the largest one's logits, and larger steps
/// are rare.
const SEQUENCES_AT_START: usize = 512;
/// Tokens of a step that computes prompts as well. Larger steps keep the GPU busy for longer than they take to enqueue.
const MIXED_TOKEN_BUCKETS: [usize; 6] = [32, 128, 256, 512, 768, 1024];
/// Sequences of such a step, the padding among them.
const MIXED_SEQUENCE_BUCKETS: [usize; 4] = [16, 64, 257, 513];
/// Recordings leave one part in this many of the device's memory free: what is launched kernel by kernel needs room, and
/// recordings keep that of their activations.
const FREE_PARTS: u64 = 32;
/// Recordings that may fail before no more are tried.
const FAILURES_MAX: usize = 3;

/// Which steps a backend replays. Numbers of a row do not depend on it.
#[derive(Clone, Copy, Debug)]
struct Policy {
    /// Decode steps with short contexts, the most frequent ones, are recorded before the first request.
    at_start: bool,
    /// Steps that compute prompts are replayed too.
    mixed: bool,
    /// Tokens of context that the narrowest block tables have room for; the next ones have four times as many.
    context_min: usize,
    /// Most sequences of a replayed decode step.
    num_sequences_max: usize,
    /// When a shape is recorded: at its first occurrence, or at a later one.
    occurrence: usize,
    /// Most graphs.
    num_graphs_max: usize,
}

impl Policy {
    /// `None`: the backend has no graphs.
    fn of(backend: Backend) -> Option<Self> {
        match backend {
            Backend::Cpu => None,
            Backend::Cuda => Some(Self {
                at_start: true,
                mixed: true,
                context_min: 1024,
                num_sequences_max: usize::MAX,
                occurrence: 1,
                num_graphs_max: usize::MAX,
            }),
            // A recording costs two steps, which take seconds on a software adapter: only what occurs again is worth it.
            // Larger steps keep a GPU busy for longer than they take to enqueue. The device does not say how much memory
            // is left, so the number of graphs is bounded instead. Attention to 256 tokens at most is one dispatch a layer.
            Backend::Wgpu => Some(Self {
                at_start: false,
                mixed: false,
                context_min: 256,
                num_sequences_max: 64,
                occurrence: 2,
                num_graphs_max: 32,
            }),
        }
    }
}

/// What a graph was recorded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    shape: StepShape,
    /// Every sequence has one token.
    decode: bool,
    /// The choice of tokens that is part of it; `None`: it ends with the logits.
    sampling: Option<Choice>,
}

/// A choice of tokens that can be recorded: without lists, whose lengths change from step to step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Choice {
    has_filters: bool,
}

impl Choice {
    /// What can be recorded of a plan for all rows of a shape.
    fn of(plan: &SamplePlan) -> Option<Self> {
        let SampleOptions { has_filters, .. } = plan.options;
        plan.is_uniform().then_some(Self { has_filters })
    }

    fn options(self, rows: usize) -> SampleOptions {
        SampleOptions { rows, has_edits: false, has_filters: self.has_filters, logprobs_max: None }
    }
}

/// The graphs of one model.
pub(crate) struct StepGraphs {
    policy: Policy,
    model: Arc<Mutex<Model>>,
    device: Device,
    spare: SpareBlock,
    blocks_per_row_max: usize,
    vocab_size: usize,
    graphs: HashMap<Key, State>,
    memory: GraphMemory,
    num_recorded: usize,
    num_failures: usize,
    /// Whether the device had room for another recording when it was last asked.
    has_room: bool,
}

/// What is known of the steps of a kind.
enum State {
    /// How often one has occurred.
    Seen(usize),
    Recorded(Box<StepGraph>),
    /// It could not be recorded.
    Failed,
}

/// One recorded step and the buffer that it reads.
struct StepGraph {
    words: Tensor<1, Int>,
    graph: CapturedGraph<Recorded>,
}

#[derive(Clone)]
enum Recorded {
    Logits(Tensor<2>),
    Sampled(Sampled),
}

impl StepGraphs {
    /// The graphs of a model on a device that has such.
    pub(crate) fn new(
        model: Arc<Mutex<Model>>,
        device: &Device,
        spare: SpareBlock,
        (max_model_len, max_num_seqs, vocab_size): (usize, usize, usize),
    ) -> Option<Self> {
        let mut graphs = Self {
            policy: Policy::of(backend_of(device))?,
            model,
            device: device.clone(),
            spare,
            blocks_per_row_max: max_model_len.div_ceil(spare.block_size as usize),
            vocab_size,
            graphs: HashMap::new(),
            memory: GraphMemory::default(),
            num_recorded: 0,
            num_failures: 0,
            has_room: true,
        };
        if graphs.policy.at_start {
            graphs.record_decode_steps(max_num_seqs);
        }
        Some(graphs)
    }

    /// Whether a device has graphs.
    pub(crate) fn exist_on(device: &Device) -> bool {
        Policy::of(backend_of(device)).is_some()
    }

    /// How many have been recorded.
    pub(crate) fn num_recorded(&self) -> usize {
        self.num_recorded
    }

    /// Records decode steps of up to `max_num_seqs` sequences, or [`SEQUENCES_AT_START`], with short contexts.
    fn record_decode_steps(&mut self, max_num_seqs: usize) {
        let largest = bucket(&DECODE_BUCKETS, max_num_seqs.min(SEQUENCES_AT_START)).unwrap_or(SEQUENCES_AT_START);
        for sequences in DECODE_BUCKETS.into_iter().rev().filter(|&sequences| sequences <= largest) {
            let nothing = Batch { query_starts: vec![0], ..Batch::default() };
            let shape = self.decode_shape(sequences, 1);
            let plan = sampler::plan(&[], shape.samples, self.vocab_size);
            let key = Key { shape, decode: true, sampling: Choice::of(&plan) };
            let words = words(&nothing, shape, self.spare, &plan);
            self.record(key, kept_int_tensor(words, &self.device));
        }
    }

    /// Runs a step after the one that chose `chosen`; `None` when no graph covers the batch.
    pub(crate) fn run(&mut self, batch: &Batch, chosen: Option<&Sampled>) -> Option<Output> {
        let (shape, decode) = self.shape(batch)?;
        let plan = sampler::plan(&batch.samples, shape.samples, self.vocab_size);
        let key = Key { shape, decode, sampling: Choice::of(&plan) };
        let state = self.graphs.entry(key).or_insert(State::Seen(0));
        let recorded_words = match state {
            State::Failed => return None,
            State::Recorded(graph) => Some(graph.words.clone()),
            State::Seen(times) => {
                *times += 1;
                if *times < self.policy.occurrence || !self.may_record() {
                    return None;
                }
                None
            }
        };
        let is_recorded = recorded_words.is_some();
        let words = words(batch, shape, self.spare, &plan);
        let buffer = match recorded_words {
            // Written in place: the result is the same tensor.
            Some(buffer) => rewrite(buffer, words, shape, chosen),
            None => {
                let buffer = kept_int_tensor(words, &self.device);
                chosen.inspect(|chosen| carry(&buffer, shape, chosen));
                buffer
            }
        };
        if !is_recorded {
            // Recording runs the step on these very words; a replay computes the same keys and values again.
            self.record(key, buffer);
        }
        let Some(State::Recorded(graph)) = self.graphs.get(&key) else { return None };
        // A device that has failed says so when the results of what is launched instead are asked for.
        let recorded = graph.graph.replay().inspect_err(|error| tracing::error!(?error, "a step was not replayed"));
        Some(match recorded.ok()? {
            Recorded::Logits(logits) => Output::Logits(logits),
            Recorded::Sampled(sampled) => Output::Sampled(sampled),
        })
    }

    /// Whether another step may be recorded.
    fn may_record(&mut self) -> bool {
        self.num_failures < FAILURES_MAX && self.num_recorded < self.policy.num_graphs_max && self.has_room()
    }

    /// Whether the device has room for another recording; never again once it has not.
    fn has_room(&mut self) -> bool {
        if !self.has_room {
            return false;
        }
        let memory = device_memory(&self.device).zip(free_device_memory(&self.device));
        if memory.is_some_and(|(total, free)| free < total / FREE_PARTS) {
            let recorded = self.num_recorded;
            tracing::info!(recorded, "no more steps are recorded as graphs: the memory is needed for other steps");
            self.has_room = false;
        }
        self.has_room
    }

    /// The shape to which a batch is padded, and whether it is a decode step; `None` when such are not replayed.
    fn shape(&self, batch: &Batch) -> Option<(StepShape, bool)> {
        let (tokens, sequences) = (batch.num_tokens(), batch.num_sequences());
        if tokens == sequences {
            let sequences = bucket(&DECODE_BUCKETS, sequences)?;
            let shape = self.decode_shape(sequences, batch.blocks_per_row);
            return (sequences <= self.policy.num_sequences_max).then_some((shape, true));
        }
        if !self.policy.mixed {
            return None;
        }
        let tokens = bucket(&MIXED_TOKEN_BUCKETS, tokens)?;
        let sequences = bucket(&MIXED_SEQUENCE_BUCKETS, sequences + 1)?;
        let blocks_per_row = self.width(batch.blocks_per_row);
        Some((StepShape { tokens, sequences, samples: sequences, blocks_per_row }, false))
    }

    fn decode_shape(&self, sequences: usize, blocks_per_row: usize) -> StepShape {
        let blocks_per_row = self.width(blocks_per_row);
        StepShape { tokens: sequences, sequences, samples: sequences, blocks_per_row }
    }

    /// Columns of the block tables.
    fn width(&self, blocks_per_row: usize) -> usize {
        let mut width = self.policy.context_min.div_ceil(self.spare.block_size as usize);
        while width < blocks_per_row {
            width *= 4;
        }
        width.min(self.blocks_per_row_max)
    }

    /// Records a step on a buffer that holds the words of one now.
    fn record(&mut self, key: Key, words: Tensor<1, Int>) {
        let Key { shape, decode, sampling } = key;
        let [length] = words.dims();
        let bounds = LengthBounds {
            query_min: usize::from(decode),
            query_max: if decode { 1 } else { shape.tokens },
            context_max: shape.blocks_per_row * self.spare.block_size as usize,
        };
        let input = unpack(&words, shape, bounds);
        let choice = sampling.map(|choice| {
            let start = shape.buffer_len();
            (section(&words, start, length - start), choice.options(shape.samples))
        });
        let model = Arc::clone(&self.model);
        let recorded = CapturedGraph::record(&self.memory, &self.device, move || {
            let mut model = model.lock().expect("a forward pass does not panic while it holds the model");
            let logits = model.forward(&input);
            match &choice {
                Some((plan, options)) => Recorded::Sampled(sample(&logits, plan, *options)),
                None => Recorded::Logits(logits),
            }
        });
        let state = match recorded {
            Some(graph) => {
                self.num_recorded += 1;
                State::Recorded(Box::new(StepGraph { words, graph }))
            }
            None => {
                tracing::warn!(?shape, "a step could not be recorded as a graph; such steps are launched one by one");
                self.num_failures += 1;
                State::Failed
            }
        };
        self.graphs.insert(key, state);
    }
}

/// The index arrays of a step and, where it can be recorded, the choice of its tokens.
fn words(batch: &Batch, shape: StepShape, spare: SpareBlock, plan: &SamplePlan) -> Vec<i32> {
    let mut words = pack(batch, shape, spare);
    debug_assert!(words.len() == shape.buffer_len() && words.len().is_multiple_of(SECTION_ALIGNMENT));
    if plan.is_uniform() {
        words.extend(&plan.words);
    }
    words
}

/// The smallest bucket that holds `count`.
fn bucket(buckets: &[usize], count: usize) -> Option<usize> {
    buckets.iter().copied().find(|&bucket| bucket >= count)
}
