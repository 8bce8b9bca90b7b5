//! The table of a safetensors file: an 8-byte header length, a JSON header, then the tensors' bytes without gaps.
//!
//! The header's types are the `safetensors` crate's; the checks are ours, so that a message can name the tensor and no
//! sum overflows.

use crate::dtype::StoredDtype;
use crate::error::{Fault, printable};
use safetensors::Dtype as FileDtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::Range;

/// Far above any model's header (a few hundred kilobytes); bounds what parsing allocates.
const HEADER_BYTES_MAX: usize = 16 << 20;
const LENGTH_BYTES: usize = 8;

/// A tensor as the file has it.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: FileDtype,
    /// In the file; holds exactly the shape's numbers.
    pub(crate) range: Range<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum HeaderEntry {
    Tensor(TensorInfo),
    Metadata(#[allow(dead_code, reason = "free text that says nothing about the model")] BTreeMap<String, String>),
}

/// Parses and checks the header.
pub(crate) fn parse(bytes: &[u8]) -> Result<BTreeMap<String, Stored>, Fault> {
    let (header, data_start) = header(bytes)?;
    let entries: BTreeMap<String, HeaderEntry> =
        serde_json::from_slice(header).map_err(|error| Fault::corrupt("header", error.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, entry) in entries {
        match entry {
            HeaderEntry::Tensor(info) => {
                let stored = stored(&name, info, data_start, bytes.len())?;
                tensors.insert(name, stored);
            }
            HeaderEntry::Metadata(_) if name == "__metadata__" => {}
            HeaderEntry::Metadata(_) => return Err(Fault::corrupt(name, "is not a tensor's description")),
        }
    }
    check_cover(&tensors, data_start, bytes.len())?;
    Ok(tensors)
}

fn header(bytes: &[u8]) -> Result<(&[u8], usize), Fault> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(Fault::corrupt("header length", format!("the file has only {} bytes", bytes.len())));
    };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > HEADER_BYTES_MAX {
        return Err(Fault::corrupt("header length", format!("is {length}, at most {HEADER_BYTES_MAX}")));
    }
    let header = rest.get(..length);
    let header = header.ok_or_else(|| {
        Fault::corrupt("header length", format!("is {length}, the file has {} bytes left", rest.len()))
    })?;
    Ok((header, LENGTH_BYTES + length))
}

fn stored(name: &str, info: TensorInfo, data_start: usize, total: usize) -> Result<Stored, Fault> {
    let (start, end) = info.data_offsets;
    let available = total - data_start;
    if start > end || end > available {
        let problem = format!("data_offsets [{start}, {end}] leave the {available} bytes of tensor data");
        return Err(Fault::corrupt(name, problem));
    }
    let elements = info.shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
    let bits = elements.and_then(|elements| elements.checked_mul(info.dtype.bitsize()));
    if bits.is_none_or(|bits| bits != (end - start).saturating_mul(8)) {
        let problem =
            format!("shape {:?} of {} does not take the {} bytes it has", info.shape, info.dtype, end - start);
        return Err(Fault::corrupt(name, problem));
    }
    Ok(Stored { shape: info.shape, dtype: info.dtype, range: data_start + start..data_start + end })
}

/// The format as one of weights; `None` for those that cannot be read as such.
pub(crate) fn plain(dtype: FileDtype) -> Option<StoredDtype> {
    match dtype {
        FileDtype::F32 => Some(StoredDtype::F32),
        FileDtype::F16 => Some(StoredDtype::F16),
        FileDtype::BF16 => Some(StoredDtype::BF16),
        _ => None,
    }
}

/// Every byte belongs to exactly one tensor, as the format demands.
fn check_cover(tensors: &BTreeMap<String, Stored>, data_start: usize, total: usize) -> Result<(), Fault> {
    let mut in_order: Vec<(&String, &Range<usize>)> =
        tensors.iter().map(|(name, stored)| (name, &stored.range)).collect();
    in_order.sort_by_key(|(_, range)| (range.start, range.end));
    let mut covered = data_start;
    for (name, range) in in_order {
        if range.start != covered {
            let problem = format!("starts at {}, the tensor before it ends at {covered}", range.start);
            return Err(Fault::corrupt(printable(name), problem));
        }
        covered = range.end;
    }
    if covered == total {
        return Ok(());
    }
    Err(Fault::corrupt("tensor data", format!("{} bytes after the last tensor belong to none", total - covered)))
}
