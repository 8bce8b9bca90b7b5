//! Rows of a table by index, in the table's dtype.

use burn_cubecl::tensor::CubeTensor;

use super::GATHER_ROWS;
use super::driver::Kernel;
use super::launch::{Grid, Launch};
use super::matrix::{Matrix, dense, empty, on_16_bytes};

pub(crate) fn gather_rows(table: CubeTensor, ids: CubeTensor) -> CubeTensor {
    let (table, ids) = (Matrix::of(table), dense(ids));
    let (dtype, count) = (table.tensor.dtype, ids.meta.shape[0]);
    let out = empty(&table.tensor, [count, table.columns], dtype);
    let (row_bytes, stride_bytes) = (table.columns * dtype.size(), table.stride * dtype.size());
    let fits = |unit: &usize| {
        let whole = row_bytes.is_multiple_of(*unit) && stride_bytes.is_multiple_of(*unit);
        whole && (*unit <= dtype.size() || on_16_bytes(&table.tensor))
    };
    let unit = [16, 4].into_iter().find(fits).unwrap_or(2);
    let units = row_bytes / unit;
    let threads = units.next_multiple_of(32).clamp(32, 512);
    let kernel = Kernel::new(&GATHER_ROWS, "gather_rows").number("UNIT", unit);
    Launch::new(kernel, Grid::new([count, 1, 1], threads))
        .read(&table.tensor)
        .value(stride_bytes / unit)
        .read(&ids)
        .write(&out)
        .value(units)
        .submit(&out);
    out
}
