//! From a planned batch to tensors on the device.

use burn::tensor::Device;
use firebrick_engine::Batch;
use firebrick_model::ForwardInput;
use firebrick_ops::{AttentionMetadata, int_tensor};

/// The batch's flat arrays as index tensors; logits are wanted for the last token of every sampled sequence.
pub fn forward_input(batch: &Batch, device: &Device) -> ForwardInput {
    let (tokens, sequences) = (batch.num_tokens(), batch.num_sequences());
    let signed = |values: &[u32]| -> Vec<i32> { values.iter().map(|&value| value as i32).collect() };
    let lengths = batch.query_starts.windows(2).map(|pair| pair[1] - pair[0]);
    let owners = lengths.clone().enumerate().flat_map(|(row, length)| (0..length).map(move |_| row as i32)).collect();
    let last_tokens: Vec<i32> =
        batch.samples.iter().map(|sample| batch.query_starts[sample.row as usize + 1] as i32 - 1).collect();
    let num_samples = last_tokens.len();
    ForwardInput {
        tokens: int_tensor(signed(&batch.tokens), [tokens], device),
        metadata: AttentionMetadata {
            positions: int_tensor(signed(&batch.positions), [tokens], device),
            slot_mapping: int_tensor(signed(&batch.slot_mapping), [tokens], device),
            sequence_of_token: int_tensor(owners, [tokens], device),
            block_tables: int_tensor(signed(&batch.block_tables), [sequences, batch.blocks_per_row], device),
            query_starts: int_tensor(signed(&batch.query_starts), [sequences + 1], device),
            context_lens: int_tensor(signed(&batch.context_lens), [sequences], device),
            query_len_max: lengths.max().unwrap_or(0) as usize,
            context_len_max: batch.context_lens.iter().copied().max().unwrap_or(0) as usize,
        },
        logit_rows: int_tensor(last_tokens, [num_samples], device),
    }
}
