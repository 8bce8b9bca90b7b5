//! From a planned batch to tensors on the device: one buffer of indices, one copy.

use std::iter::repeat_n;

use burn::tensor::{Device, Int, Tensor};
use firebrick_engine::Batch;
use firebrick_model::ForwardInput;
use firebrick_ops::{
    AttentionMetadata, Carried, Derived, SECTION_ALIGNMENT, Sampled, carry_tokens, int_tensor, overwrite,
    overwrite_carrying, section,
};

/// The sizes of a step's arrays. A batch may be padded to a larger shape, so that few shapes occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StepShape {
    pub(crate) tokens: usize,
    pub(crate) sequences: usize,
    /// Rows of logits.
    pub(crate) samples: usize,
    pub(crate) blocks_per_row: usize,
}

/// Where padding writes its keys and values: a block that no sequence owns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpareBlock {
    pub(crate) block: u32,
    pub(crate) block_size: u32,
}

/// The shortest and the longest query and the longest context, or bounds of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LengthBounds {
    pub(crate) query_min: usize,
    pub(crate) query_max: usize,
    pub(crate) context_max: usize,
}

impl StepShape {
    /// The batch's own sizes. There is at least one row of logits, wanted or not.
    pub(crate) fn of(batch: &Batch) -> Self {
        Self {
            tokens: batch.num_tokens(),
            sequences: batch.num_sequences(),
            samples: batch.samples.len().max(1),
            blocks_per_row: batch.blocks_per_row,
        }
    }

    /// Elements of the buffer that [`pack`] fills.
    pub(crate) fn buffer_len(&self) -> usize {
        self.lengths().iter().map(|length| length.next_multiple_of(SECTION_ALIGNMENT)).sum()
    }

    /// Elements of each array, in the order of the buffer.
    fn lengths(&self) -> [usize; 9] {
        let Self { tokens, sequences, samples, blocks_per_row } = *self;
        [tokens, tokens, tokens, tokens, sequences + 1, sequences, samples, sequences * blocks_per_row, tokens]
    }
}

impl LengthBounds {
    fn of(batch: &Batch) -> Self {
        let queries = batch.query_starts.windows(2).map(|pair| pair[1] - pair[0]);
        let context = batch.context_lens.iter().copied().max().unwrap_or(0);
        let [query_min, query_max] = [queries.clone().min(), queries.max()].map(|query| query.unwrap_or(0) as usize);
        Self { query_min, query_max, context_max: context as usize }
    }
}

/// The batch's flat arrays as index tensors; the last token is wanted of every sampled sequence.
///
/// # Panics
/// When the batch carries tokens of the step before.
pub fn forward_input(batch: &Batch, device: &Device) -> ForwardInput {
    assert!(batch.carried.is_empty(), "carried tokens come from a step before");
    let (buffer, shape) = step_buffer(batch, device);
    unpack(&buffer, shape, LengthBounds::of(batch))
}

/// The same with the choices of the step before.
pub(crate) fn forward_input_after(batch: &Batch, chosen: &Sampled, device: &Device) -> ForwardInput {
    let (buffer, shape) = step_buffer(batch, device);
    carry(&buffer, shape, chosen);
    unpack(&buffer, shape, LengthBounds::of(batch))
}

fn step_buffer(batch: &Batch, device: &Device) -> (Tensor<1, Int>, StepShape) {
    let shape = StepShape::of(batch);
    let unused = SpareBlock { block: 0, block_size: 1 };
    let values = pack(batch, shape, unused);
    let length = values.len();
    (int_tensor(values, [length], device), shape)
}

/// The arrays of a batch, padded to `shape`, each beginning where a [`section`] may.
///
/// Padding rows are sequences of their own, at the beginning of a context in the spare block; they take the padding
/// tokens in equal parts. There must be one of them when there are tokens to pad. In a decode step they have no context: nobody
/// reads what would be attended to.
pub(crate) fn pack(batch: &Batch, shape: StepShape, spare: SpareBlock) -> Vec<i32> {
    let (tokens, sequences) = (batch.num_tokens(), batch.num_sequences());
    let (more_tokens, more_sequences) = (shape.tokens - tokens, shape.sequences - sequences);
    assert!(more_tokens == 0 || more_sequences > 0, "padding tokens belong to a padding sequence");
    let share = |row: usize| more_tokens / more_sequences + usize::from(row < more_tokens % more_sequences);
    let padding = || (0..more_sequences).map(share);
    let padding_positions: Vec<u32> = padding().flat_map(|length| 0..length as u32).collect();

    let lengths = batch.query_starts.windows(2).map(|pair| (pair[1] - pair[0]) as usize).chain(padding());
    let ends = lengths.clone().scan(0, |end, length| {
        *end += length;
        Some(*end as u32)
    });
    let owners = lengths.enumerate().flat_map(|(row, length)| repeat_n(row as u32, length));
    let positions = batch.positions.iter().copied().chain(padding_positions.iter().copied());
    let spare_slot = |position: &u32| spare.block * spare.block_size + position % spare.block_size;
    let slots = batch.slot_mapping.iter().copied().chain(padding_positions.iter().map(spare_slot));
    let last_tokens = batch.samples.iter().map(|sample| batch.query_starts[sample.row as usize + 1] - 1);

    let mut buffer =
        Buffer { values: Vec::with_capacity(shape.lengths().iter().sum::<usize>() + 9 * SECTION_ALIGNMENT) };
    buffer.push(batch.tokens.iter().copied(), shape.tokens, 0);
    buffer.push(positions, shape.tokens, 0);
    buffer.push(slots, shape.tokens, 0);
    buffer.push(owners, shape.tokens, 0);
    buffer.push([0].into_iter().chain(ends), shape.sequences + 1, 0);
    let decodes = tokens == sequences && shape.tokens == shape.sequences;
    let padding_contexts = padding().map(|length| if decodes { 0 } else { length as u32 });
    buffer.push(batch.context_lens.iter().copied().chain(padding_contexts), shape.sequences, 0);
    buffer.push(last_tokens, shape.samples, 0);
    let row =
        |row: &[u32]| row.iter().copied().chain(repeat_n(spare.block, shape.blocks_per_row - row.len())).collect();
    let rows: Vec<Vec<u32>> = batch.block_tables.chunks_exact(batch.blocks_per_row.max(1)).map(row).collect();
    buffer.push(rows.into_iter().flatten(), shape.sequences * shape.blocks_per_row, spare.block);
    let mut sources = vec![0; tokens];
    for carried in &batch.carried {
        sources[carried.token as usize] = carried.sample + 1;
    }
    buffer.push(sources.into_iter(), shape.tokens, 0);
    buffer.values
}

/// Puts the choices of the step before into the buffer that [`pack`] filled.
pub(crate) fn carry(buffer: &Tensor<1, Int>, shape: StepShape, chosen: &Sampled) {
    carry_tokens(&section(buffer, 0, shape.tokens), &section(buffer, sources(shape), shape.tokens), chosen);
}

/// Replaces what a buffer holds by the arrays that [`pack`] made, with the choices of the step before.
pub(crate) fn rewrite(
    buffer: Tensor<1, Int>,
    words: Vec<i32>,
    shape: StepShape,
    chosen: Option<&Sampled>,
) -> Tensor<1, Int> {
    match chosen {
        Some(sampled) => {
            overwrite_carrying(buffer, words, Carried { tokens: shape.tokens, sources: sources(shape), sampled })
        }
        None => overwrite(buffer, words),
    }
}

/// Where the last array begins.
fn sources(shape: StepShape) -> usize {
    shape.buffer_len() - shape.tokens.next_multiple_of(SECTION_ALIGNMENT)
}

/// The tensors of a step, as views of the buffer that [`pack`] filled.
pub(crate) fn unpack(buffer: &Tensor<1, Int>, shape: StepShape, bounds: LengthBounds) -> ForwardInput {
    let mut start = 0;
    let mut sections = shape.lengths().into_iter().map(|length| {
        let part = section(buffer, start, length);
        start += length.next_multiple_of(SECTION_ALIGNMENT);
        part
    });
    let mut next = || sections.next().expect("as many as there are lengths");
    let (tokens, positions, slot_mapping, sequence_of_token) = (next(), next(), next(), next());
    let (query_starts, context_lens, output_rows) = (next(), next(), next());
    ForwardInput {
        tokens,
        metadata: AttentionMetadata {
            positions,
            slot_mapping,
            sequence_of_token,
            block_tables: next().reshape([shape.sequences, shape.blocks_per_row]),
            query_starts,
            context_lens,
            query_len_min: bounds.query_min,
            query_len_max: bounds.query_max,
            context_len_max: bounds.context_max,
            derived: Derived::default(),
        },
        output_rows: Some(output_rows),
    }
}

struct Buffer {
    values: Vec<i32>,
}

impl Buffer {
    /// Appends one array, filled up to `length`, and room up to where the next may begin.
    fn push(&mut self, values: impl Iterator<Item = u32>, length: usize, fill: u32) {
        let start = self.values.len();
        self.values.extend(values.map(|value| value as i32));
        assert!(self.values.len() <= start + length, "an array is longer than its shape");
        self.values.resize(start + length, fill as i32);
        self.values.resize(start + length.next_multiple_of(SECTION_ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firebrick_engine::CarriedToken;

    /// Three tokens of one sequence and one of another.
    fn batch() -> Batch {
        Batch {
            tokens: vec![5, 6, 7, 8],
            positions: vec![0, 1, 2, 9],
            slot_mapping: vec![8, 9, 10, 21],
            query_starts: vec![0, 3, 4],
            context_lens: vec![3, 10],
            block_tables: vec![2, 0, 0, 3, 4, 5],
            blocks_per_row: 3,
            carried: vec![CarriedToken { token: 3, sample: 4 }],
            ..Batch::default()
        }
    }

    fn arrays(values: &[i32], shape: StepShape) -> Vec<Vec<i32>> {
        let mut start = 0;
        let part = |length: usize| {
            let part = values[start..start + length].to_vec();
            start += length.next_multiple_of(SECTION_ALIGNMENT);
            part
        };
        shape.lengths().into_iter().map(part).collect()
    }

    #[test]
    fn padding_is_sequences_of_its_own_in_the_spare_block() {
        let shape = StepShape { tokens: 7, sequences: 4, samples: 4, blocks_per_row: 4 };
        let values = pack(&batch(), shape, SpareBlock { block: 9, block_size: 4 });
        assert_eq!(values.len(), shape.buffer_len());
        let expected: [&[i32]; 9] = [
            &[5, 6, 7, 8, 0, 0, 0],
            &[0, 1, 2, 9, 0, 1, 0],
            &[8, 9, 10, 21, 36, 37, 36],
            &[0, 0, 0, 1, 2, 2, 3],
            &[0, 3, 4, 6, 7],
            &[3, 10, 2, 1],
            &[0, 0, 0, 0],
            &[2, 0, 0, 9, 3, 4, 5, 9, 9, 9, 9, 9, 9, 9, 9, 9],
            &[0, 0, 0, 5, 0, 0, 0],
        ];
        assert_eq!(arrays(&values, shape), expected);
    }

    #[test]
    fn a_batch_in_its_own_shape_is_not_padded() {
        let batch = batch();
        let shape = StepShape::of(&batch);
        let arrays = arrays(&pack(&batch, shape, SpareBlock { block: 0, block_size: 1 }), shape);
        assert_eq!(arrays[4..8], [vec![0, 3, 4], vec![3, 10], vec![0], vec![2, 0, 0, 3, 4, 5]]);
    }

    #[test]
    fn a_padded_step_without_sequences_is_all_padding() {
        let shape = StepShape { tokens: 2, sequences: 2, samples: 2, blocks_per_row: 1 };
        let empty = Batch { query_starts: vec![0], ..Batch::default() };
        let arrays = arrays(&pack(&empty, shape, SpareBlock { block: 3, block_size: 16 }), shape);
        assert_eq!((&arrays[2], &arrays[5], &arrays[7]), (&vec![48, 48], &vec![0, 0], &vec![3, 3]));
    }
}
