//! Steps as CUDA graphs: recorded once for each shape, replayed with one launch.
//!
//! Few shapes occur because batches are padded: the numbers of tokens and sequences to a bucket, block tables to a width.
//! Padding computes on a block of the cache that no sequence owns, and its logits are dropped. Decode steps with short
//! contexts, the most frequent ones, are recorded before the first request; the others when they first occur.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Int, Tensor};
use firebrick_engine::Batch;
use firebrick_ops::{CapturedGraph, int_tensor, overwrite};

use crate::inputs::{Longest, SpareBlock, StepShape, pack, unpack};
use crate::local::Model;

/// Sequences of a decode step.
const DECODE_BUCKETS: [usize; 16] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024];
/// Tokens of a step that computes prompts as well. Larger steps keep the GPU busy for longer than they take to enqueue.
const MIXED_TOKEN_BUCKETS: [usize; 6] = [32, 128, 256, 512, 768, 1024];
/// Sequences of such a step, the padding among them.
const MIXED_SEQUENCE_BUCKETS: [usize; 4] = [16, 64, 257, 513];
/// Tokens of context that the narrowest block tables have room for; the next ones have four times as many.
const CONTEXT_MIN: usize = 1024;
/// Recordings that may fail before no more are tried.
const FAILURES_MAX: usize = 3;

/// What a graph was recorded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    shape: StepShape,
    /// Every sequence has one token.
    decode: bool,
}

/// The graphs of one model.
pub(crate) struct StepGraphs {
    model: Arc<Mutex<Model>>,
    device: Device,
    spare: SpareBlock,
    blocks_per_row_max: usize,
    /// `None`: it could not be recorded.
    graphs: HashMap<Key, Option<StepGraph>>,
    num_failures: usize,
}

/// One recorded step and the buffer that it reads.
struct StepGraph {
    indices: Tensor<1, Int>,
    graph: CapturedGraph,
}

impl StepGraphs {
    /// Records decode steps of up to `max_num_seqs` sequences with short contexts.
    pub(crate) fn new(
        model: Arc<Mutex<Model>>,
        device: &Device,
        spare: SpareBlock,
        (max_model_len, max_num_seqs): (usize, usize),
    ) -> Self {
        let blocks_per_row_max = max_model_len.div_ceil(spare.block_size as usize);
        let mut graphs =
            Self { model, device: device.clone(), spare, blocks_per_row_max, graphs: HashMap::new(), num_failures: 0 };
        let largest = bucket(&DECODE_BUCKETS, max_num_seqs).unwrap_or(usize::MAX);
        for sequences in DECODE_BUCKETS.into_iter().rev().filter(|&sequences| sequences <= largest) {
            let key = Key { shape: graphs.decode_shape(sequences, 1), decode: true };
            let nothing = Batch { query_starts: vec![0], ..Batch::default() };
            let values = pack(&nothing, key.shape, spare);
            graphs.record(key, values);
        }
        graphs
    }

    /// Logits of a step, one row per sample and perhaps more; `None` when no graph covers the batch.
    pub(crate) fn run(&mut self, batch: &Batch) -> Option<Tensor<2>> {
        let key = self.key(batch)?;
        let values = pack(batch, key.shape, self.spare);
        if let Some(graph) = self.graphs.get_mut(&key) {
            let graph = graph.as_mut()?;
            // Written in place: the result is the same tensor.
            drop(overwrite(graph.indices.clone(), values));
            return Some(graph.graph.replay());
        }
        if self.num_failures >= FAILURES_MAX {
            return None;
        }
        // Recording has run the step on these very indices; a replay computes the same keys and values again.
        self.record(key, values)?;
        self.graphs.get_mut(&key)?.as_mut().map(|graph| graph.graph.replay())
    }

    /// The shape to which a batch is padded; `None` when it is too large.
    fn key(&self, batch: &Batch) -> Option<Key> {
        let (tokens, sequences) = (batch.num_tokens(), batch.num_sequences());
        if tokens == sequences {
            let sequences = bucket(&DECODE_BUCKETS, sequences)?;
            return Some(Key { shape: self.decode_shape(sequences, batch.blocks_per_row), decode: true });
        }
        let tokens = bucket(&MIXED_TOKEN_BUCKETS, tokens)?;
        let sequences = bucket(&MIXED_SEQUENCE_BUCKETS, sequences + 1)?;
        let blocks_per_row = self.width(batch.blocks_per_row);
        Some(Key { shape: StepShape { tokens, sequences, samples: sequences, blocks_per_row }, decode: false })
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

    /// Records a step on a buffer that holds `values` now.
    fn record(&mut self, key: Key, values: Vec<i32>) -> Option<()> {
        let Key { shape, decode } = key;
        let length = values.len();
        let indices = int_tensor(values, [length], &self.device);
        let longest = Longest {
            query: if decode { 1 } else { shape.tokens },
            context: shape.blocks_per_row * self.spare.block_size as usize,
        };
        let input = unpack(&indices, shape, longest);
        let model = Arc::clone(&self.model);
        let recorded = CapturedGraph::record(&self.device, move || {
            model.lock().expect("a forward pass does not panic while it holds the model").forward(&input)
        });
        if recorded.is_none() {
            tracing::warn!(?shape, "a step could not be recorded as a CUDA graph; such steps are launched one by one");
            self.num_failures += 1;
        }
        let graph = recorded.map(|graph| StepGraph { indices, graph });
        let recorded = graph.is_some().then_some(());
        self.graphs.insert(key, graph);
        recorded
    }
}

/// The smallest bucket that holds `count`.
fn bucket(buckets: &[usize], count: usize) -> Option<usize> {
    buckets.iter().copied().find(|&bucket| bucket >= count)
}
