//! From a checkpoint's tensors to weights on a device.

use burn::tensor::{DType, Device, Tensor};
use bytes::Bytes;
use firebrick_checkpoint::{Checkpoint, Dtype, FP8_MULTIPLE, Fp8Values, ModelConfig, PackedForm, RopeConfig};
use firebrick_ops::e4m3::quantise_row;
use firebrick_ops::{Codes, Packing, RopeTable, Scales, Weight, float_tensor, holds_packed_weights};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::LoadError;

/// Called with the bytes of each tensor once it is on the device.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The form of weight matrices on the device. Norms and biases are always 32-bit floats.
    pub dtype: Dtype,
    /// Quantised matrices stay as the file has them, on devices that
    /// [compute with them](firebrick_ops::holds_packed_weights).
    pub packed: bool,
    /// Which matrices of linear layers are in FP8.
    pub fp8: Fp8,
    /// Longest sequence: the length of the rotary tables.
    pub max_model_len: usize,
}

/// Which matrices of linear layers are in FP8 on the device, with a scale for each row. Embeddings, the output projection
/// and norms never are, nor matrices whose sizes are no multiples of [`FP8_MULTIPLE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fp8 {
    /// None; what the file has in FP8 is widened.
    #[default]
    Never,
    /// Those that the file has so.
    Stored,
    /// These, and all others are rounded to it.
    All,
}

/// Reads named tensors and checks their shapes.
pub(crate) struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    options: LoadOptions,
    device: &'a Device,
    progress: Progress<'a>,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        options: LoadOptions,
        device: &'a Device,
        progress: Progress<'a>,
    ) -> Self {
        Self { checkpoint, options, device, progress }
    }

    pub(crate) fn config(&self) -> &'a ModelConfig {
        self.checkpoint.config()
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(name)
    }

    /// A matrix of `inputs` columns whose rows are those of the named tensors, one after the other.
    pub(crate) fn weight(&mut self, parts: &[(&str, usize)], inputs: usize) -> Result<Weight, LoadError> {
        let packs = self.options.packed && holds_packed_weights(self.device);
        // Consecutive tensors of one form are one matrix.
        let mut matrices: Vec<(Form, usize, Vec<Bytes>)> = Vec::new();
        for (name, rows) in parts {
            let shape = [*rows, inputs];
            let packed = if packs { self.checkpoint.read_packed(name, &shape)? } else { None };
            let (form, bytes) = match packed {
                Some(values) => (Form::Packed(packing(values.form)), values.bytes.into()),
                None => (Form::Dense, self.checkpoint.read_shaped(name, &shape, self.options.dtype)?.bytes),
            };
            match matrices.last_mut() {
                Some((last, count, pieces)) if *last == form => {
                    *count += rows;
                    pieces.push(bytes);
                }
                _ => matrices.push((form, *rows, vec![bytes])),
            }
        }
        let matrices = matrices.into_iter().map(|(form, rows, pieces)| self.matrix(form, pieces, [rows, inputs]));
        Ok(Weight::join(matrices.collect()))
    }

    /// The matrix of a linear layer: [`weight`](Self::weight), perhaps in FP8.
    pub(crate) fn linear_weight(&mut self, parts: &[(&str, usize)], inputs: usize) -> Result<Weight, LoadError> {
        let is_held = |size: usize| size.is_multiple_of(FP8_MULTIPLE);
        if self.options.fp8 == Fp8::Never || !is_held(inputs) || !parts.iter().all(|(_, rows)| is_held(*rows)) {
            return self.weight(parts, inputs);
        }
        let (mut pieces, mut scales) = (Vec::new(), Vec::new());
        for (name, rows) in parts {
            let shape = [*rows, inputs];
            let values = match self.checkpoint.read_fp8(name, &shape)? {
                Some(values) => values,
                None if self.options.fp8 == Fp8::All => {
                    let values = self.checkpoint.read_shaped(name, &shape, self.options.dtype)?;
                    rounded_to_fp8(&values.bytes, self.options.dtype, inputs)
                }
                None => return self.weight(parts, inputs),
            };
            pieces.push(values.codes);
            scales.extend(values.scales);
        }
        Ok(self.fp8_matrix(pieces, scales, inputs))
    }

    fn fp8_matrix(&mut self, pieces: Vec<Bytes>, scales: Vec<f32>, inputs: usize) -> Weight {
        let shape = [scales.len(), inputs];
        let weight = Weight::fp8(pieces, scales, shape, self.device);
        (self.progress)(weight.num_bytes() as u64);
        weight
    }

    /// A matrix stored as `[inputs, outputs]`, as GPT-2's are.
    pub(crate) fn transposed_weight(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<Weight, LoadError> {
        let values = self.checkpoint.read_shaped(name, &[inputs, outputs], self.options.dtype)?;
        let size = self.options.dtype.size();
        let mut bytes = Vec::with_capacity(values.bytes.len());
        for output in 0..outputs {
            for input in 0..inputs {
                bytes.extend_from_slice(&values.bytes[(input * outputs + output) * size..][..size]);
            }
        }
        let is_held = [outputs, inputs].iter().all(|size| size.is_multiple_of(FP8_MULTIPLE));
        if self.options.fp8 == Fp8::All && is_held {
            let Fp8Values { codes, scales } = rounded_to_fp8(&bytes, self.options.dtype, inputs);
            return Ok(self.fp8_matrix(vec![codes], scales, inputs));
        }
        Ok(self.matrix(Form::Dense, vec![bytes.into()], [outputs, inputs]))
    }

    /// The named vectors one after the other, as 32-bit floats.
    pub(crate) fn vector(&mut self, parts: &[(&str, usize)]) -> Result<Tensor<1>, LoadError> {
        let mut values = Vec::new();
        for (name, length) in parts {
            let part = self.checkpoint.read_shaped(name, &[*length], Dtype::F32)?;
            values.extend(part.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }
        (self.progress)(4 * values.len() as u64);
        let length = values.len();
        Ok(float_tensor(values, [length], self.device))
    }

    /// The vector plus a constant: Gemma's norms are stored as their distance from 1.
    pub(crate) fn norm_weight(&mut self, name: &str, length: usize) -> Result<Tensor<1>, LoadError> {
        let offset = self.config().norm_weight_offset;
        let stored = self.vector(&[(name, length)])?;
        Ok(if offset == 0.0 { stored } else { stored + offset })
    }

    /// Cosines and sines of every position.
    pub(crate) fn rope_table(&self, rope: &RopeConfig) -> RopeTable {
        let (inverse_frequencies, magnitude) = (rope.inverse_frequencies(self.options.max_model_len), rope.magnitude());
        let half = inverse_frequencies.len();
        let mut values = vec![0.0; self.options.max_model_len * 2 * half];
        values.par_chunks_mut((2 * half).max(1)).enumerate().for_each(|(position, row)| {
            let (cosines, sines) = row.split_at_mut(half);
            for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(&inverse_frequencies) {
                // The angle is rounded to 32 bits as the reference implementations round it.
                let angle = f64::from(position as f32 * frequency);
                (*cosine, *sine) = (angle.cos() as f32 * magnitude, angle.sin() as f32 * magnitude);
            }
        });
        RopeTable(float_tensor(values, [self.options.max_model_len, 2 * half], self.device))
    }

    fn matrix(&mut self, form: Form, pieces: Vec<Bytes>, shape: [usize; 2]) -> Weight {
        let num_bytes: usize = pieces.iter().map(Bytes::len).sum();
        let weight = match form {
            Form::Dense => Weight::from_bytes(pieces, shape, (self.device, burn_dtype(self.options.dtype))),
            Form::Packed(packing) => Weight::packed(pieces, shape, (self.device, packing)),
        };
        (self.progress)(num_bytes as u64);
        weight
    }
}

/// A matrix rounded to codes, each row with the scale that its largest number wants.
fn rounded_to_fp8(bytes: &[u8], dtype: Dtype, columns: usize) -> Fp8Values {
    let mut codes = vec![0; bytes.len() / dtype.size()];
    let rows = codes.par_chunks_mut(columns).zip(bytes.par_chunks(columns * dtype.size()));
    let round = |values: &mut Vec<f32>, (codes, bytes): (&mut [u8], &[u8])| {
        values.clear();
        let pairs = || bytes.as_chunks::<2>().0.iter();
        match dtype {
            Dtype::F32 => values.extend(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
            Dtype::F16 => values.extend(pairs().map(|bytes| f16::from_le_bytes(*bytes).to_f32())),
            Dtype::BF16 => values.extend(pairs().map(|bytes| bf16::from_le_bytes(*bytes).to_f32())),
        }
        quantise_row(values, codes)
    };
    let scales = rows.map_init(Vec::new, round).collect();
    Fp8Values { codes: codes.into(), scales }
}

/// How a matrix goes to the device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// In the dtype of the options.
    Dense,
    Packed(Packing),
}

/// The operations' name for a packed form.
fn packing(form: PackedForm) -> Packing {
    let codes = match form.codes {
        firebrick_checkpoint::Codes::FourBits => Codes::FourBits,
        firebrick_checkpoint::Codes::Bytes => Codes::Bytes,
    };
    let scales = match form.scales {
        firebrick_checkpoint::Scales::Halves => Scales::Halves,
        firebrick_checkpoint::Scales::Singles => Scales::Singles,
        firebrick_checkpoint::Scales::TwoRuns => Scales::TwoRuns,
    };
    Packing { codes, scales }
}

/// Burn's name for a dtype.
pub(crate) fn burn_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
    }
}
