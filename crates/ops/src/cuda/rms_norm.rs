//! Root-mean-square normalisation, alone and after adding a residual: a block per row, or a warp where rows are many and short.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::kernel::Kernel;
use super::launch::{Grid, Launch};
use super::matrix::{Matrix, dense, on_16_bytes, widest};
use super::{RMS_NORM, element};

/// Threads of a block, on whose number the order of sums depends: that of `linear_few_rows.cu`, which normalises too.
const THREADS: usize = 256;

/// Rows from which each is taken by a warp: with fewer, a warp's lanes would have more to do one after the other than the
/// threads of a block, and most of the GPU nothing.
const ROWS_MIN: usize = 1536;
/// Groups of elements that a lane of such a warp keeps, and the warps of a block.
const GROUPS_OF_LANE: usize = 4;
const WARPS: usize = 4;
const LANES: usize = 32;

/// A block per row.
pub(super) fn grid_of_rows(x: &Matrix) -> Grid {
    Grid::new([x.rows, 1, 1], THREADS)
}

pub(crate) fn rms_norm(x: CubeTensor, weight: CubeTensor, eps: f32) -> CubeTensor {
    let (x, weight) = (Matrix::of(x), dense(weight));
    let out = x.like(x.columns);
    let with_operands = |launch: Launch| {
        let launch = launch.read(&x.tensor).value(x.stride).read(&weight).write(&out);
        launch.value(x.columns).value(eps)
    };
    if warps_take([&x], &weight) {
        let launch = Launch::new(kernel("rms_norm_short", x.tensor.dtype), grid_of_warps(&x));
        with_operands(launch).value(x.rows).submit(&out);
    } else {
        with_operands(Launch::new(kernel("rms_norm", x.tensor.dtype), grid_of_rows(&x))).submit(&out);
    }
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
    let with_operands = |launch: Launch| {
        let launch = launch.read(&x.tensor).value(x.stride).read(&residual.tensor).value(residual.stride);
        launch.read(&weight).write(&out).write(&total).value(x.columns).value(eps)
    };
    if warps_take([&x, &residual], &weight) {
        let launch = Launch::new(kernel("add_rms_norm_short", x.tensor.dtype), grid_of_warps(&x));
        with_operands(launch).value(x.rows).submit(&out);
    } else {
        with_operands(Launch::new(kernel("add_rms_norm", x.tensor.dtype), grid_of_rows(&x))).submit(&out);
    }
    (out, total)
}

/// Whether rows are taken by a warp each, which keeps them in registers. Results have the same bits either way.
fn warps_take<const N: usize>(operands: [&Matrix; N], weight: &CubeTensor) -> bool {
    let fits = |operand: &Matrix| {
        let width = widest(operand.tensor.dtype);
        operand.has_groups_of(width) && operand.columns <= GROUPS_OF_LANE * LANES * width
    };
    operands[0].rows >= ROWS_MIN && operands.into_iter().all(fits) && on_16_bytes(weight)
}

/// A warp per row.
fn grid_of_warps(x: &Matrix) -> Grid {
    Grid::new([x.rows.div_ceil(WARPS), 1, 1], WARPS * LANES)
}

pub(super) fn kernel(entry: &'static str, dtype: DType) -> Kernel {
    Kernel::new(&RMS_NORM, entry).word("ELEMENT", element(dtype))
}
