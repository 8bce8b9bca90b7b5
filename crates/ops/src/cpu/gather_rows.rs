//! Rows of a table by index, widened to 32 bits.

use burn::tensor::DType;
use burn_flex::FlexTensor;
use half::{bf16, f16};

use super::math::Element;
use super::{dims2, indices, tensor2, unsupported};

pub(super) fn gather_rows(table: &FlexTensor, ids: &FlexTensor) -> FlexTensor {
    let [_, columns] = dims2(table);
    let ids = indices(ids);
    let values = match table.dtype() {
        DType::F32 => gather::<f32>(&table.to_contiguous(), ids, columns),
        DType::F16 => gather::<f16>(&table.to_contiguous(), ids, columns),
        DType::BF16 => gather::<bf16>(&table.to_contiguous(), ids, columns),
        other => unsupported(other),
    };
    tensor2(values, ids.len(), columns)
}

fn gather<W: Element + burn::tensor::Element + bytemuck::Pod>(
    table: &FlexTensor,
    ids: &[i32],
    columns: usize,
) -> Vec<f32> {
    let table: &[W] = table.storage();
    let rows = ids.iter().map(|&id| &table[id as usize * columns..][..columns]);
    rows.flat_map(|row| row.iter().map(|&value| Element::widen(value))).collect()
}
