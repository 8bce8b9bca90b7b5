//! Layer normalisation: a block per row.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::kernel::Kernel;
use super::launch::Launch;
use super::matrix::{Matrix, dense};
use super::rms_norm::grid_of_rows;
use super::{LAYER_NORM, element};

pub(crate) fn layer_norm(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, eps: f32) -> CubeTensor {
    let (x, weight, bias) = (Matrix::of(x), dense(weight), dense(bias));
    let out = x.like(x.columns);
    Launch::new(kernel(x.tensor.dtype), grid_of_rows(&x))
        .read(&x.tensor)
        .value(x.stride)
        .read(&weight)
        .read(&bias)
        .write(&out)
        .value(x.columns)
        .value(eps)
        .submit(&out);
    out
}

pub(super) fn kernel(dtype: DType) -> Kernel {
    Kernel::new(&LAYER_NORM, "layer_norm").word("ELEMENT", element(dtype))
}
