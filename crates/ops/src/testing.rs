//! Seeded tensors, comparisons and devices for tests of operations and models.

use burn::tensor::{DType, Device, Tensor};
use half::f16;

use crate::attention::{AttentionMetadata, Derived};
use crate::{
    Backend, Codes, Packing, Scales, Weight, backend_of, float_tensor, holds_packed_weights, int_tensor, open_device,
    use_cuda_kernels_of,
};

/// A small deterministic generator of test values (xorshift64*).
pub struct Seeded(u64);

impl Seeded {
    /// Equal seeds give equal values.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in `[-1, 1)`.
    pub fn value(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// A packed matrix `[rows, columns]` of arbitrary codes and scales of about `1 / code`, with as few bits as in files:
    /// see [`Scales::Singles`].
    pub fn packed(&mut self, [rows, columns]: [usize; 2], (device, packing): (&Device, Packing)) -> Weight {
        let bound = if packing.codes == Codes::FourBits { 8.0 } else { 128.0 };
        let mut words: Vec<u32> = Vec::new();
        for _ in 0..rows * columns / Packing::GROUP {
            let (first, second) = (self.value() / bound, self.value() / bound);
            match packing.scales {
                Scales::Halves => {
                    let [low, high] = [first, second].map(|scale| u32::from(f16::from_f32(scale).to_bits()));
                    words.push(low | high << 16);
                }
                Scales::Singles => {
                    let part = (self.next_u64() >> 58) as f32 / 64.0;
                    words.extend([(f16::from_f32(first).to_f32() * part).to_bits(), second.to_bits()]);
                }
                Scales::TwoRuns => words.extend([first.to_bits(), second.to_bits()]),
            }
            words.extend((packing.scale_words()..packing.words()).map(|_| (self.next_u64() >> 32) as u32));
        }
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        Weight::packed(vec![bytes.into()], [rows, columns], (device, packing))
    }

    /// A matrix `[rows, columns]` in FP8 of every code that is a number, with scales that make the numbers about 1.
    pub fn fp8(&mut self, [rows, columns]: [usize; 2], device: &Device) -> Weight {
        let number = |bits: u64| if bits & 0x7f == 0x7f { bits as u8 & 0x80 } else { bits as u8 };
        let codes: Vec<u8> = (0..rows * columns).map(|_| number(self.next_u64() >> 56)).collect();
        let scales = (0..rows).map(|_| (self.value() + 1.5) / 448.0).collect();
        Weight::fp8(vec![codes.into()], scales, [rows, columns], device)
    }

    /// A tensor of such values.
    pub fn tensor<const D: usize>(&mut self, shape: [usize; D], device: &Device) -> Tensor<D> {
        let count = shape.iter().product();
        float_tensor((0..count).map(|_| self.value()).collect(), shape, device)
    }
}

/// Runs a test on every device of this machine and build, and says which. `FIREBRICK_TEST_BACKENDS` (comma-separated)
/// makes the named ones mandatory, `FIREBRICK_TEST_WITHOUT` leaves the named ones alone; with `FIREBRICK_TEST_CUDA_ARCH`
/// (such as 75) CUDA devices run the kernels of older cards.
pub fn for_each_device(test: impl Fn(&Device)) {
    let demanded = std::env::var("FIREBRICK_TEST_BACKENDS").unwrap_or_default();
    let without = std::env::var("FIREBRICK_TEST_WITHOUT").unwrap_or_default();
    if let Ok(capability) = std::env::var("FIREBRICK_TEST_CUDA_ARCH") {
        let capability = capability.parse().expect("FIREBRICK_TEST_CUDA_ARCH is a compute capability such as 75");
        use_cuda_kernels_of(capability).unwrap_or_else(|error| panic!("{error}"));
    }
    for &backend in Backend::BUILT.iter().filter(|backend| !without.split(',').any(|name| name == backend.name())) {
        match open_device(backend) {
            Ok(device) => {
                eprintln!("device: {}", backend.name());
                test(&device);
            }
            Err(error) => {
                assert!(!demanded.split(',').any(|name| name == backend.name()), "{error}");
                eprintln!("not tested on {}: {error}", backend.name());
            }
        }
    }
}

/// Runs a test for every way of packing on every device that holds packed weights.
pub fn for_each_packed(test: impl Fn(&Device, Packing)) {
    for_each_device(|device| {
        if holds_packed_weights(device) {
            Packing::ALL.into_iter().for_each(|packing| test(device, packing));
        }
    });
}

/// The dtypes in which a device may hold weight matrices.
pub fn weight_dtypes(device: &Device) -> Vec<DType> {
    match backend_of(device) {
        Backend::Cpu | Backend::Cuda => vec![DType::F32, DType::F16, DType::BF16],
        Backend::Wgpu => vec![DType::F32, DType::F16],
    }
}

/// Most rows of a product among which a row has the same bits, whatever their number is: see [`linear`](crate::linear).
pub fn equal_rows_max(device: &Device) -> usize {
    match backend_of(device) {
        #[cfg(feature = "cuda")]
        Backend::Cuda => crate::cuda::FEW_ROWS,
        _ => usize::MAX,
    }
}

/// Where references are computed: the processor, which has every dtype, or the device itself in builds without it.
pub fn reference_device(device: &Device) -> Device {
    open_device(Backend::Cpu).unwrap_or_else(|_| device.clone())
}

/// The same elements on another device, with the same bits.
pub fn moved<const D: usize>(tensor: &Tensor<D>, device: &Device) -> Tensor<D> {
    Tensor::from_data(tensor.clone().into_data(), (device, tensor.dtype()))
}

/// Asserts that no element differs by more than `tolerance` times the largest magnitude of `expected` (or 1).
///
/// # Panics
/// When the shapes differ, a value is not finite, or the difference is larger; the message names the first place.
pub fn assert_close<const D: usize>(got: Tensor<D>, expected: Tensor<D>, tolerance: f32) {
    assert_eq!(got.dims(), expected.dims(), "shapes");
    let read =
        |tensor: Tensor<D>| -> Vec<f32> { tensor.into_data().convert::<f32>().try_to_vec().expect("just converted") };
    let (got, expected) = (read(got), read(expected));
    let scale = expected.iter().fold(1.0f32, |largest, value| largest.max(value.abs()));
    for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert!(
            got.is_finite() && (got - expected).abs() <= tolerance * scale,
            "element {index}: got {got}, expected {expected}, tolerance {tolerance} of {scale}"
        );
    }
}

/// Sequences with scattered blocks, described by (tokens in this batch, context length) pairs.
pub struct AttentionCase {
    sequences: Vec<(usize, usize)>,
    tables: Vec<Vec<i32>>,
    block_size: usize,
    /// Blocks of the cache.
    pub num_blocks: usize,
}

impl AttentionCase {
    /// Draws a block table for each sequence.
    pub fn new(sequences: &[(usize, usize)], block_size: usize, seeded: &mut Seeded, _device: &Device) -> Self {
        let needed: usize = sequences.iter().map(|(_, context)| context.div_ceil(block_size)).sum();
        let num_blocks = needed + 3;
        let mut free: Vec<i32> = (0..num_blocks as i32).collect();
        let mut draw = || free.swap_remove(seeded.next_u64() as usize % free.len());
        let tables = sequences.iter().map(|(_, context)| (0..context.div_ceil(block_size)).map(|_| draw()).collect());
        let tables = tables.collect();
        Self { sequences: sequences.to_vec(), tables, block_size, num_blocks }
    }

    /// The same sequences with their whole contexts as this batch's tokens.
    pub fn whole_contexts(&self) -> Self {
        let sequences = self.sequences.iter().map(|&(_, context)| (context, context)).collect();
        Self { sequences, tables: self.tables.clone(), ..*self }
    }

    /// One sequence's tokens at `positions` as a batch of their own.
    pub fn only(&self, sequence: usize, positions: std::ops::Range<usize>) -> Self {
        let sequences = vec![(positions.len(), positions.end)];
        Self { sequences, tables: vec![self.tables[sequence].clone()], ..*self }
    }

    /// The same sequences, the last first.
    pub fn reversed(&self) -> Self {
        let backwards = |tables: &[Vec<i32>]| tables.iter().rev().cloned().collect();
        let sequences = self.sequences.iter().rev().copied().collect();
        Self { sequences, tables: backwards(&self.tables), ..*self }
    }

    /// Tokens per block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Tokens in the batch.
    pub fn num_tokens(&self) -> usize {
        self.sequences.iter().map(|(query, _)| query).sum()
    }

    /// The batch's index tensors.
    pub fn metadata(&self, device: &Device) -> AttentionMetadata {
        let (mut positions, mut slots, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        let mut query_starts = vec![0];
        for (index, &(query, context)) in self.sequences.iter().enumerate() {
            for position in context - query..context {
                let block = self.tables[index][position / self.block_size];
                positions.push(position as i32);
                slots.push(block * self.block_size as i32 + (position % self.block_size) as i32);
                owners.push(index as i32);
            }
            query_starts.push(positions.len() as i32);
        }
        let (tokens, count) = (positions.len(), self.sequences.len());
        let columns = self.tables.iter().map(Vec::len).max().unwrap_or(0);
        let tables = self.tables.iter().flat_map(|table| (0..columns).map(|at| table.get(at).copied().unwrap_or(0)));
        let contexts: Vec<i32> = self.sequences.iter().map(|&(_, context)| context as i32).collect();
        AttentionMetadata {
            positions: int_tensor(positions, [tokens], device),
            slot_mapping: int_tensor(slots, [tokens], device),
            sequence_of_token: int_tensor(owners, [tokens], device),
            block_tables: int_tensor(tables.collect(), [count, columns], device),
            query_starts: int_tensor(query_starts, [count + 1], device),
            query_len_min: self.sequences.iter().map(|(query, _)| *query).min().unwrap_or(0),
            query_len_max: self.sequences.iter().map(|(query, _)| *query).max().unwrap_or(0),
            context_len_max: contexts.iter().copied().max().unwrap_or(0) as usize,
            context_lens: int_tensor(contexts, [count], device),
            derived: Derived::default(),
        }
    }
}
