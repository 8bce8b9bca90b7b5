//! Steps as CUDA graphs: recorded once for each shape, replayed with one launch.
//!
//! Few shapes occur because batches are padded: the numbers of tokens and sequences to a bucket, block tables to a width.
//! Padding computes on a block of the cache that no sequence owns, and its logits are dropped. Decode steps with short
//! contexts, the most frequent ones, are recorded before the first request; the others when they first occur.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Int, Tensor};
use firebrick_engine::Batch;
use firebrick_ops::{
    CapturedGraph, SECTION_ALIGNMENT, SampleOptions, SamplePlan, Sampled, device_memory, free_device_memory,
    int_tensor, overwrite, sample, section,
};

use crate::inputs::{Longest, SpareBlock, StepShape, carry, pack, unpack};
use crate::local::{Model, Output};
use crate::sampler;

/// Sequences of a decode step.
const DECODE_BUCKETS: [usize; 16] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024];
/// Tokens of a step that computes prompts as well. Larger steps keep the GPU busy for longer than they take to enqueue.
const MIXED_TOKEN_BUCKETS: [usize; 6] = [32, 128, 256, 512, 768, 1024];
/// Sequences of such a step, the padding among them.
const MIXED_SEQUENCE_BUCKETS: [usize; 4] = [16, 64, 257, 513];
/// Tokens of context that the narrowest block tables have room for; the next ones have four times as many.
const CONTEXT_MIN: usize = 1024;
/// Recordings leave one part in this many of the device's memory free: what is launched kernel by kernel needs room, and a
/// recording keeps the memory of its activations.
const FREE_PARTS: u64 = 32;
/// Recordings that may fail before no more are tried.
const FAILURES_MAX: usize = 3;

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
    model: Arc<Mutex<Model>>,
    device: Device,
    spare: SpareBlock,
    blocks_per_row_max: usize,
    vocab_size: usize,
    /// `None`: it could not be recorded.
    graphs: HashMap<Key, Option<StepGraph>>,
    num_failures: usize,
    /// Whether the device had room for another recording when it was last asked.
    has_room: bool,
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
    /// Records decode steps of up to `max_num_seqs` sequences with short contexts.
    pub(crate) fn new(
        model: Arc<Mutex<Model>>,
        device: &Device,
        spare: SpareBlock,
        (max_model_len, max_num_seqs, vocab_size): (usize, usize, usize),
    ) -> Self {
        let mut graphs = Self {
            model,
            device: device.clone(),
            spare,
            blocks_per_row_max: max_model_len.div_ceil(spare.block_size as usize),
            vocab_size,
            graphs: HashMap::new(),
            num_failures: 0,
            has_room: true,
        };
        let largest = bucket(&DECODE_BUCKETS, max_num_seqs).unwrap_or(usize::MAX);
        for sequences in DECODE_BUCKETS.into_iter().rev().filter(|&sequences| sequences <= largest) {
            let nothing = Batch { query_starts: vec![0], ..Batch::default() };
            let shape = graphs.decode_shape(sequences, 1);
            let plan = sampler::plan(&[], shape.samples, vocab_size);
            let key = Key { shape, decode: true, sampling: Choice::of(&plan) };
            let words = words(&nothing, shape, spare, &plan);
            let length = words.len();
            graphs.record(key, int_tensor(words, [length], device));
        }
        graphs
    }

    /// Runs a step after the one that chose `chosen`; `None` when no graph covers the batch.
    pub(crate) fn run(&mut self, batch: &Batch, chosen: Option<&Sampled>) -> Option<Output> {
        let (shape, decode) = self.shape(batch)?;
        let plan = sampler::plan(&batch.samples, shape.samples, self.vocab_size);
        let key = Key { shape, decode, sampling: Choice::of(&plan) };
        let words = words(batch, shape, self.spare, &plan);
        let buffer = if let Some(graph) = self.graphs.get(&key) {
            // Written in place: the result is the same tensor.
            overwrite(graph.as_ref()?.words.clone(), words)
        } else if self.num_failures < FAILURES_MAX && self.has_room() {
            let length = words.len();
            int_tensor(words, [length], &self.device)
        } else {
            return None;
        };
        if let Some(chosen) = chosen {
            carry(&buffer, shape, chosen);
        }
        if !self.graphs.contains_key(&key) {
            // Recording runs the step on these very words; a replay computes the same keys and values again.
            self.record(key, buffer)?;
        }
        let recorded = self.graphs.get_mut(&key)?.as_mut()?.graph.replay();
        Some(match recorded {
            Recorded::Logits(logits) => Output::Logits(logits),
            Recorded::Sampled(sampled) => Output::Sampled(sampled),
        })
    }

    /// Whether another step can be recorded; never again once it cannot.
    fn has_room(&mut self) -> bool {
        if !self.has_room {
            return false;
        }
        let memory = device_memory(&self.device).zip(free_device_memory(&self.device));
        if memory.is_some_and(|(total, free)| free < total / FREE_PARTS) {
            let recorded = self.graphs.len();
            tracing::info!(recorded, "no more steps are recorded as CUDA graphs: the memory is needed for other steps");
            self.has_room = false;
        }
        self.has_room
    }

    /// The shape to which a batch is padded, and whether it is a decode step; `None` when it is too large.
    fn shape(&self, batch: &Batch) -> Option<(StepShape, bool)> {
        let (tokens, sequences) = (batch.num_tokens(), batch.num_sequences());
        if tokens == sequences {
            return Some((self.decode_shape(bucket(&DECODE_BUCKETS, sequences)?, batch.blocks_per_row), true));
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
        let mut width = CONTEXT_MIN / self.spare.block_size as usize;
        while width < blocks_per_row {
            width *= 4;
        }
        width.min(self.blocks_per_row_max)
    }

    /// Records a step on a buffer that holds the words of one now.
    fn record(&mut self, key: Key, words: Tensor<1, Int>) -> Option<()> {
        let Key { shape, decode, sampling } = key;
        let [length] = words.dims();
        let longest = Longest {
            query: if decode { 1 } else { shape.tokens },
            context: shape.blocks_per_row * self.spare.block_size as usize,
        };
        let input = unpack(&words, shape, longest);
        let choice = sampling.map(|choice| {
            let start = shape.buffer_len();
            (section(&words, start, length - start), choice.options(shape.samples))
        });
        let model = Arc::clone(&self.model);
        let recorded = CapturedGraph::record(&self.device, move || {
            let mut model = model.lock().expect("a forward pass does not panic while it holds the model");
            let logits = model.forward(&input);
            match &choice {
                Some((plan, options)) => Recorded::Sampled(sample(&logits, plan, *options)),
                None => Recorded::Logits(logits),
            }
        });
        if recorded.is_none() {
            tracing::warn!(?shape, "a step could not be recorded as a CUDA graph; such steps are launched one by one");
            self.num_failures += 1;
        }
        let graph = recorded.map(|graph| StepGraph { words, graph });
        let recorded = graph.is_some().then_some(());
        self.graphs.insert(key, graph);
        recorded
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
