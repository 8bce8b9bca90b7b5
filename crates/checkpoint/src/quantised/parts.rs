//! The stored tensors that together are one weight.

use crate::error::Fault;
use crate::file::ModelFile;
use half::{bf16, f16};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::ops::Range;

/// One stored tensor; its range holds exactly the shape's numbers.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) file: usize,
    pub(crate) range: Range<usize>,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: Dtype,
}

impl Part {
    pub(super) fn bytes<'a>(&self, files: &'a [ModelFile]) -> &'a [u8] {
        &files[self.file][self.range.clone()]
    }

    /// As 32-bit words.
    pub(super) fn words<'a>(&self, files: &'a [ModelFile]) -> &'a [[u8; 4]] {
        self.bytes(files).as_chunks().0
    }

    /// As floats, whichever of the plain formats they are stored in.
    pub(super) fn floats(&self, files: &[ModelFile]) -> Vec<f32> {
        let bytes = self.bytes(files);
        let pairs = || bytes.as_chunks::<2>().0.iter();
        match self.dtype {
            Dtype::F16 => pairs().map(|pair| f16::from_le_bytes(*pair).to_f32()).collect(),
            Dtype::BF16 => pairs().map(|pair| bf16::from_le_bytes(*pair).to_f32()).collect(),
            _ => bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect(),
        }
    }
}

/// The tensors whose names begin alike, `model.layers.0.mlp.up_proj` say, by the rest of their names.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) by_suffix: BTreeMap<String, Part>,
}

impl Parts {
    /// The file of one of the parts, for messages.
    pub(crate) fn first_file(&self) -> usize {
        self.by_suffix.values().next().map_or(0, |part| part.file)
    }

    pub(super) fn bytes(&self) -> usize {
        self.by_suffix.values().map(|part| part.range.len()).sum()
    }

    pub(super) fn optional(&self, suffix: &str) -> Option<&Part> {
        self.by_suffix.get(suffix)
    }

    /// A part that must be there in one of the formats, with this shape.
    pub(super) fn required(&self, suffix: &str, dtypes: &[Dtype], shape: &[usize]) -> Result<&Part, Fault> {
        let part = self.of_format(suffix, dtypes)?;
        if part.shape != shape {
            return Err(self.fault(suffix, format!("has shape {:?}, expected {shape:?}", part.shape)));
        }
        Ok(part)
    }

    /// A part that must be there in one of the formats.
    pub(super) fn of_format(&self, suffix: &str, dtypes: &[Dtype]) -> Result<&Part, Fault> {
        let part = self.optional(suffix).ok_or_else(|| self.fault(suffix, "is missing"))?;
        if !dtypes.contains(&part.dtype) {
            return Err(self.fault(suffix, format!("is stored as {:?}, expected one of {dtypes:?}", part.dtype)));
        }
        Ok(part)
    }

    pub(super) fn fault(&self, suffix: &str, problem: impl Into<String>) -> Fault {
        Fault::corrupt(format!("{}.{suffix}", self.name), problem)
    }
}

/// What parts are called, after the name of their layer.
const SUFFIXES: [&str; 13] = [
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight_zero_point",
    "weight_g_idx",
    "weight_shape",
    "input_scale",
    "input_zero_point",
    "weight",
];

/// Takes the quantised weights out of all tensors: the packed ones, and those of 8 bits.
pub(crate) fn take_parts(tensors: &mut BTreeMap<String, Part>) -> Vec<Parts> {
    let is_quantised = |(name, part): (&String, &Part)| {
        let (layer, suffix) = name.rsplit_once('.')?;
        let is_bytes = matches!(part.dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::I8);
        let is_one = matches!(suffix, "qweight" | "weight_packed") || suffix == "weight" && is_bytes;
        is_one.then(|| layer.to_owned())
    };
    let layers: Vec<String> = tensors.iter().filter_map(is_quantised).collect();
    let parts = |layer: String| {
        let take = |suffix: &&str| Some(((*suffix).to_owned(), tensors.remove(&format!("{layer}.{suffix}"))?));
        let by_suffix = SUFFIXES.iter().filter_map(take).collect();
        Parts { name: layer, by_suffix }
    };
    layers.into_iter().map(parts).collect()
}

/// The formats of scales.
pub(super) const FLOATS: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];
