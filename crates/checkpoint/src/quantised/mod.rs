//! Weights of Hugging Face folders in 4 or 8 bits: GPTQ, AWQ, compressed-tensors and FP8, dequantised when they are read.
//!
//! What is in `config.json` says how ([`Quantisation`]); the tensors beside each other under one name ([`Parts`]) become one
//! weight `[out, in]`. Activations stay in floats: a checkpoint that means to round those too is computed more exactly.

mod method;
mod packed;
mod parts;
mod scaled;

pub use method::Quantisation;
pub(crate) use parts::{Part, Parts, take_parts};

use crate::blocks::Group;
use crate::dtype::Dtype;
use crate::error::Fault;
use crate::file::ModelFile;
use crate::fp8::Fp8Values;
use crate::packed::{PackedForm, PackedValues, Scales, write_group};
use crate::tensor::{TensorValues, encode};
use method::Format;
use packed::Packed;
use scaled::Scaled;

/// Rows of a weight that are dequantised at a time: those of one cache line of 32-bit words.
const ROWS: usize = 16;

/// The group of 32 numbers of a row that has this index in it.
type GroupOf<'a> = dyn Fn(usize, usize) -> Group + 'a;

/// Writes rows of a weight, from the one that it is given on.
type FillRows<'a> = dyn FnMut(usize, &mut [f32]) + 'a;

/// A weight `[out, in]` in several stored parts.
#[derive(Clone, Debug)]
pub(crate) struct QuantisedWeight {
    pub(crate) shape: [usize; 2],
    /// Bytes of all parts.
    pub(crate) stored_bytes: usize,
    /// One of the files that hold it, for messages.
    pub(crate) file: usize,
    layout: Layout,
}

#[derive(Clone, Debug)]
enum Layout {
    Packed(Packed),
    Scaled(Scaled),
}

impl QuantisedWeight {
    /// The weight that `parts` are.
    pub(crate) fn new(method: &Quantisation, parts: Parts) -> Result<Self, Fault> {
        let (name, file, stored_bytes) = (parts.name.clone(), parts.first_file(), parts.bytes());
        let (shape, layout) = match method.format {
            Format::Scaled { block } => {
                let scaled = Scaled::new(block, &parts)?;
                (scaled.shape, Layout::Scaled(scaled))
            }
            Format::Packed(format) => {
                let packed = Packed::new(format, parts)?;
                (packed.shape, Layout::Packed(packed))
            }
        };
        if shape[0].checked_mul(shape[1]).and_then(|numbers| numbers.checked_mul(size_of::<f32>())).is_none() {
            return Err(Fault::corrupt(name, format!("has more numbers than fit into memory: {shape:?}")));
        }
        Ok(Self { shape, stored_bytes, file, layout })
    }

    pub(crate) fn num_elements(&self) -> u64 {
        self.shape.map(|size| size as u64).iter().product()
    }

    /// The form that holds the numbers exactly, as devices keep them; `None` where 32 inputs in order may not share a scale, or
    /// for FP8.
    pub(crate) fn packed_form(&self, files: &[ModelFile]) -> Option<PackedForm> {
        let codes = match &self.layout {
            Layout::Packed(packed) => packed.codes(files),
            Layout::Scaled(scaled) => scaled.codes(),
        };
        codes
            .filter(|_| self.shape[1].is_multiple_of(PackedForm::GROUP))
            .map(|codes| PackedForm { codes, scales: Scales::Singles })
    }

    /// The numbers in that form.
    pub(crate) fn pack(&self, files: &[ModelFile]) -> Result<Option<PackedValues>, Fault> {
        let Some(form) = self.packed_form(files) else { return Ok(None) };
        let [rows, columns] = self.shape;
        let group_of: Box<GroupOf<'_>> = match &self.layout {
            Layout::Packed(packed) => Box::new(packed.group_reader(files)?),
            Layout::Scaled(scaled) => Box::new(scaled.group_reader(files)),
        };
        let groups = columns / PackedForm::GROUP;
        let mut bytes = Vec::with_capacity(rows * groups * form.words() * size_of::<u32>());
        for row in 0..rows {
            for index in 0..groups {
                write_group(&group_of(row, index), form, &mut bytes);
            }
        }
        Ok(Some(PackedValues { form, bytes }))
    }

    /// Whether the numbers are FP8 and each row has one scale.
    pub(crate) fn is_fp8_by_rows(&self) -> bool {
        matches!(&self.layout, Layout::Scaled(scaled) if scaled.is_fp8_by_rows())
    }

    /// The stored codes of FP8 with a scale for each row, where that is what the weight is.
    pub(crate) fn fp8(&self, files: &[ModelFile]) -> Option<Fp8Values> {
        match &self.layout {
            Layout::Scaled(scaled) => scaled.fp8(files),
            Layout::Packed(_) => None,
        }
    }

    /// The dequantised numbers, rounded to `dtype`.
    pub(crate) fn read(&self, files: &[ModelFile], dtype: Dtype) -> Result<TensorValues, Fault> {
        let [rows, columns] = self.shape;
        let mut bytes = vec![0; rows * columns * dtype.size()];
        let mut values = vec![0.0; ROWS.min(rows) * columns];
        let mut fill_rows: Box<FillRows<'_>> = match &self.layout {
            Layout::Packed(packed) => Box::new(packed.reader(files)?),
            Layout::Scaled(scaled) => Box::new(scaled.reader(files)),
        };
        for (chunk, out) in bytes.chunks_mut(ROWS * columns * dtype.size()).enumerate() {
            let values = &mut values[..out.len() / dtype.size()];
            fill_rows(chunk * ROWS, values);
            encode(values, dtype, out);
        }
        Ok(TensorValues { shape: self.shape.to_vec(), dtype, bytes: bytes.into() })
    }
}
