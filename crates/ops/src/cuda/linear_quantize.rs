//! Rows as codes of 8 bits, with a scale for each.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::kernel::Kernel;
use super::launch::{Argument, Launch};
use super::linear_few_rows::Norm;
use super::matrix::{Matrix, empty};
use super::rms_norm::grid_of_rows;
use super::{LINEAR_QUANTIZE, element};
use crate::e4m3::E4M3;

/// `[M, K]` codes and `[M]` scales of `x`, or of its norm by root mean square; rows of `x` are groups of 8 elements on
/// 16-byte boundaries.
pub(super) fn quantize_rows(x: &Matrix, norm: Option<&Norm>) -> (CubeTensor, CubeTensor) {
    let codes = empty(&x.tensor, [x.rows, x.columns], E4M3);
    let scales = empty(&x.tensor, [x.rows], DType::F32);
    let launch = Launch::new(kernel(x.tensor.dtype, norm.is_some()), grid_of_rows(x)).read(&x.tensor).value(x.stride);
    let launch = match norm {
        Some(norm) => launch.read(&norm.weight).value(norm.eps),
        None => launch.value(Argument::Null).value(0.0),
    };
    launch.write(&codes).write(&scales).value(x.columns).submit(&codes);
    (codes, scales)
}

/// The variant for rows of these elements, or of their norm.
pub(super) fn kernel(dtype: DType, is_normed: bool) -> Kernel {
    Kernel::new(&LINEAR_QUANTIZE, "quantize_rows")
        .word("ELEMENT", element(dtype))
        .word("NORM", if is_normed { "RMS_NORM" } else { "NO_NORM" })
}
