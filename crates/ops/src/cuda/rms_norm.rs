//! Root-mean-square normalisation, alone and after adding a residual: a block per row.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::kernel::Kernel;
use super::launch::{Grid, Launch};
use super::matrix::{Matrix, dense};
use super::{RMS_NORM, element};

/// Threads of a block, on whose number the order of sums depends: that of `linear_few_rows.cu`, which normalises too.
const THREADS: usize = 256;

/// A block per row.
pub(super) fn grid_of_rows(x: &Matrix) -> Grid {
    Grid::new([x.rows, 1, 1], THREADS)
}

pub(crate) fn rms_norm(x: CubeTensor, weight: CubeTensor, eps: f32) -> CubeTensor {
    let (x, weight) = (Matrix::of(x), dense(weight));
    let out = x.like(x.columns);
    Launch::new(kernel("rms_norm", x.tensor.dtype), grid_of_rows(&x))
        .read(&x.tensor)
        .value(x.stride)
        .read(&weight)
        .write(&out)
        .value(x.columns)
        .value(eps)
        .submit(&out);
    out
}

pub(crate) fn add_rms_norm(
    x: CubeTensor,
    residual: CubeTensor,
    weight: CubeTensor,
    eps: f32,
) -> (CubeTensor, CubeTensor) {
    let (x, residual, weight) = (Matrix::of(x), Matrix::of(residual), dense(weight));
    assert_eq!(x.tensor.dtype, residual.tensor.dtype, "add_rms_norm: dtypes");
    let (out, total) = (x.like(x.columns), x.like(x.columns));
    Launch::new(kernel("add_rms_norm", x.tensor.dtype), grid_of_rows(&x))
        .read(&x.tensor)
        .value(x.stride)
        .read(&residual.tensor)
        .value(residual.stride)
        .read(&weight)
        .write(&out)
        .write(&total)
        .value(x.columns)
        .value(eps)
        .submit(&out);
    (out, total)
}

pub(super) fn kernel(entry: &'static str, dtype: DType) -> Kernel {
    Kernel::new(&RMS_NORM, entry).word("ELEMENT", element(dtype))
}
