//! Decode steps as CUDA graphs: one per batch size, recorded when that size first occurs.
//!
//! A decode step has one token per sequence, so its shape is the number of sequences. Sizes are rounded up to a bucket;
//! the rows beyond the batch compute on a block of the cache that no sequence owns, and their logits are dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Int, Tensor};
use firebrick_engine::Batch;
use firebrick_model::ForwardInput;
use firebrick_ops::{AttentionMetadata, CapturedGraph, int_tensor, overwrite};

use crate::local::Model;

/// Batch sizes that graphs are recorded for.
const BUCKETS: [usize; 13] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256];

/// The graphs of one model.
pub(crate) struct DecodeGraphs {
    model: Arc<Mutex<Model>>,
    device: Device,
    /// The block that no sequence owns.
    spare_block: u32,
    block_size: u32,
    blocks_per_row: usize,
    graphs: HashMap<usize, DecodeGraph>,
    broken: bool,
}

/// One recorded step and the tensors it reads.
struct DecodeGraph {
    input: ForwardInput,
    graph: CapturedGraph,
}

/// The index arrays of a step, padded to its bucket.
struct Indices {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    slots: Vec<i32>,
    tables: Vec<i32>,
}

impl DecodeGraphs {
    /// No graphs yet. `num_blocks` is the engine's number of blocks; the cache has one more.
    pub(crate) fn new(
        model: Arc<Mutex<Model>>,
        device: &Device,
        (num_blocks, block_size): (u32, u32),
        max_model_len: usize,
    ) -> Self {
        let blocks_per_row = max_model_len.div_ceil(block_size as usize);
        let (device, graphs) = (device.clone(), HashMap::new());
        Self { model, device, spare_block: num_blocks, block_size, blocks_per_row, graphs, broken: false }
    }

    /// Logits of a decode step, one row per sequence and some more; `None` when the batch is no decode step that a graph
    /// covers.
    pub(crate) fn run(&mut self, batch: &Batch) -> Option<Tensor<2>> {
        let sequences = batch.num_sequences();
        let fits = batch.num_tokens() == sequences && batch.blocks_per_row <= self.blocks_per_row;
        let bucket = BUCKETS.into_iter().find(|&bucket| bucket >= sequences)?;
        if self.broken || !fits || sequences == 0 {
            return None;
        }
        let indices = self.indices(batch, bucket);
        if !self.graphs.contains_key(&bucket) {
            match self.record(bucket, &indices) {
                Some(graph) => self.graphs.insert(bucket, graph),
                None => {
                    tracing::warn!(
                        "a decode step of {bucket} could not be recorded as a CUDA graph; steps run eagerly"
                    );
                    self.broken = true;
                    return None;
                }
            };
        }
        let graph = self.graphs.get_mut(&bucket)?;
        graph.write(indices);
        Some(graph.graph.replay())
    }

    fn indices(&self, batch: &Batch, bucket: usize) -> Indices {
        let padded = |values: &[u32], fill: u32| -> Vec<i32> {
            let rest = std::iter::repeat_n(fill, bucket - values.len());
            values.iter().copied().chain(rest).map(|value| value as i32).collect()
        };
        let mut tables = vec![self.spare_block as i32; bucket * self.blocks_per_row];
        for (row, blocks) in batch.block_tables.chunks_exact(batch.blocks_per_row).enumerate() {
            for (to, from) in tables[row * self.blocks_per_row..].iter_mut().zip(blocks) {
                *to = *from as i32;
            }
        }
        Indices {
            tokens: padded(&batch.tokens, 0),
            positions: padded(&batch.positions, 0),
            slots: padded(&batch.slot_mapping, self.spare_block * self.block_size),
            tables,
        }
    }

    /// Records the step on tensors that hold `indices` now.
    fn record(&self, bucket: usize, indices: &Indices) -> Option<DecodeGraph> {
        let device = &self.device;
        // Recording is invalidated by waits on other streams: what is pending there is waited for now.
        if let Err(error) = device.sync() {
            tracing::warn!("the device does not answer before recording: {error:?}");
            return None;
        }
        let ints = |values: &[i32]| int_tensor(values.to_vec(), [bucket], device);
        let rows: Vec<i32> = (0..bucket as i32).collect();
        let context_lens: Vec<i32> = indices.positions.iter().map(|position| position + 1).collect();
        let input = ForwardInput {
            tokens: ints(&indices.tokens),
            metadata: AttentionMetadata {
                positions: ints(&indices.positions),
                slot_mapping: ints(&indices.slots),
                sequence_of_token: ints(&rows),
                block_tables: int_tensor(indices.tables.clone(), [bucket, self.blocks_per_row], device),
                query_starts: int_tensor((0..=bucket as i32).collect(), [bucket + 1], device),
                context_lens: ints(&context_lens),
                query_len_max: 1,
                context_len_max: self.blocks_per_row * self.block_size as usize,
            },
            logit_rows: ints(&rows),
        };
        let (model, recorded) = (Arc::clone(&self.model), input.clone());
        let graph = CapturedGraph::record(device, move || {
            model.lock().expect("a forward pass does not panic while it holds the model").forward(&recorded)
        })?;
        Some(DecodeGraph { input, graph })
    }
}

impl DecodeGraph {
    fn write(&mut self, indices: Indices) {
        // Written in place: the results are the same tensors.
        let write = |tensor: &Tensor<1, Int>, values| drop(overwrite(tensor.clone(), values));
        let metadata = &self.input.metadata;
        write(&metadata.context_lens, indices.positions.iter().map(|position| position + 1).collect());
        write(&self.input.tokens, indices.tokens);
        write(&metadata.positions, indices.positions);
        write(&metadata.slot_mapping, indices.slots);
        drop(overwrite(metadata.block_tables.clone(), indices.tables));
    }
}
