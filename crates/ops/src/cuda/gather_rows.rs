//! Rows of a table by index, in the table's dtype.

use burn_cubecl::tensor::CubeTensor;

use super::GATHER_ROWS;
use super::kernel::Kernel;
use super::launch::{Grid, Launch};
use super::matrix::{Matrix, dense, empty, on_16_bytes};

/// Bytes that a thread moves at a time.
pub(super) const UNITS: [usize; 3] = [16, 4, 2];

pub(crate) fn gather_rows(table: CubeTensor, ids: CubeTensor) -> CubeTensor {
    let (table, ids) = (Matrix::of(table), dense(ids));
    let (dtype, count) = (table.tensor.dtype, ids.meta.shape[0]);
    let out = empty(&table.tensor, [count, table.columns], dtype);
    let (row_bytes, stride_bytes) = (table.columns * dtype.size(), table.stride * dtype.size());
    let fits = |unit: &usize| {
        let whole = row_bytes.is_multiple_of(*unit) && stride_bytes.is_multiple_of(*unit);
        whole && (*unit <= dtype.size() || on_16_bytes(&table.tensor))
    };
    let [widest, wide, narrow] = UNITS;
    let unit = [widest, wide].into_iter().find(fits).unwrap_or(narrow);
    let units = row_bytes / unit;
    let threads = units.next_multiple_of(32).clamp(32, 512);
    Launch::new(kernel(unit), Grid::new([count, 1, 1], threads))
        .read(&table.tensor)
        .value(stride_bytes / unit)
        .read(&ids)
        .write(&out)
        .value(units)
        .submit(&out);
    out
}

pub(super) fn kernel(unit: usize) -> Kernel {
    Kernel::new(&GATHER_ROWS, "gather_rows").number("UNIT", unit)
}
