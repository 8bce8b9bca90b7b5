//! GGUF's tensor table: names, shapes, formats and places, checked against the file.

use super::cursor::Cursor;
use crate::dtype::StoredDtype;
use crate::error::Fault;
use std::collections::BTreeMap;
use std::ops::Range;

/// More tensors than any model has.
const TENSORS_MAX: u64 = 1 << 17;
/// GGUF's own bound is 64.
const NAME_LENGTH_MAX: usize = 256;

/// A tensor as the file has it.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// Outermost first; GGUF writes the innermost first.
    pub(super) shape: Vec<usize>,
    pub(super) dtype: StoredDtype,
    /// In the file; holds exactly the shape's numbers.
    pub(super) range: Range<usize>,
}

/// Parses the table, which ends the header. Data starts at the next multiple of `alignment`.
pub(super) fn parse(cursor: &mut Cursor, count: u64, alignment: usize) -> Result<BTreeMap<String, Stored>, Fault> {
    if count > TENSORS_MAX {
        return Err(Fault::corrupt("tensor count", format!("is {count}, at most {TENSORS_MAX}")));
    }
    let mut tensors = BTreeMap::new();
    for _ in 0..count {
        let (name, stored) = parse_tensor(cursor, alignment)?;
        if tensors.insert(name.to_owned(), stored).is_some() {
            return Err(Fault::corrupt(name, "occurs twice in the tensor table"));
        }
    }
    place(&mut tensors, cursor, alignment)?;
    Ok(tensors)
}

/// The range is still relative to the data section.
fn parse_tensor<'a>(cursor: &mut Cursor<'a>, alignment: usize) -> Result<(&'a str, Stored), Fault> {
    let name = cursor.text("tensor name")?;
    if name.len() > NAME_LENGTH_MAX {
        return Err(Fault::corrupt(name, format!("name is longer than {NAME_LENGTH_MAX} bytes")));
    }
    let num_dimensions = cursor.u32(name)?;
    if !(1..=4).contains(&num_dimensions) {
        return Err(Fault::corrupt(name, format!("has {num_dimensions} dimensions, expected 1 to 4")));
    }
    let mut shape = Vec::new();
    for _ in 0..num_dimensions {
        let size = cursor.u64(name)?;
        let size = usize::try_from(size).ok().filter(|size| *size > 0);
        shape.push(size.ok_or_else(|| Fault::corrupt(name, "has a dimension of 0 or beyond memory"))?);
    }
    let dtype = parse_dtype(cursor.u32(name)?, name)?;
    if !shape[0].is_multiple_of(dtype.block_len()) {
        let problem = format!("rows of {} do not fill {dtype} blocks of {}", shape[0], dtype.block_len());
        return Err(Fault::corrupt(name, problem));
    }
    shape.reverse();
    let elements = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
    let bytes = elements.and_then(|elements| dtype.bytes_of(elements));
    let bytes = bytes.ok_or_else(|| Fault::corrupt(name, format!("shape {shape:?} is beyond memory")))?;

    let offset = usize::try_from(cursor.u64(name)?).unwrap_or(usize::MAX);
    let end = offset.checked_add(bytes).filter(|_| offset.is_multiple_of(alignment));
    let end = end.ok_or_else(|| {
        Fault::corrupt(name, format!("offset {offset} is not a multiple of {alignment} within memory"))
    })?;
    Ok((name, Stored { shape, dtype, range: offset..end }))
}

fn parse_dtype(number: u32, name: &str) -> Result<StoredDtype, Fault> {
    StoredDtype::from_ggml(number).ok_or_else(|| {
        let supported = StoredDtype::ALL.map(|dtype| dtype.to_string()).join(", ");
        Fault::unsupported(name, format!("tensor type {} is not supported; supported: {supported}", ggml_name(number)))
    })
}

/// Names of the formats that users may meet but that are not read.
fn ggml_name(number: u32) -> String {
    const NAMES: [(u32, &str); 22] = [
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
        (40, "NVFP4"),
    ];
    let known = NAMES.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("number {number}"), |(_, name)| (*name).to_owned())
}

/// Turns offsets into places in the file: inside it and without overlap.
fn place(tensors: &mut BTreeMap<String, Stored>, cursor: &Cursor, alignment: usize) -> Result<(), Fault> {
    let total = cursor.total();
    let start = cursor.position().next_multiple_of(alignment);
    for (name, stored) in tensors.iter_mut() {
        let end = start.checked_add(stored.range.end).filter(|end| *end <= total);
        let end = end.ok_or_else(|| {
            let problem = format!(
                "needs bytes up to {} of tensor data, the file has {}",
                stored.range.end,
                total.saturating_sub(start)
            );
            Fault::corrupt(name, problem)
        })?;
        stored.range = start + stored.range.start..end;
    }
    let mut in_order: Vec<(&String, &Stored)> = tensors.iter().collect();
    in_order.sort_by_key(|(_, stored)| stored.range.start);
    for pair in in_order.windows(2) {
        if pair[0].1.range.end > pair[1].1.range.start {
            return Err(Fault::corrupt(pair[1].0, format!("overlaps tensor {}", crate::error::printable(pair[0].0))));
        }
    }
    Ok(())
}
