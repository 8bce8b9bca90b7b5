//! Root-mean-square normalisation (Zhang and Sennrich, 2019), alone and fused with the residual addition before it.

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};

use crate::FusedOps;

/// `x / sqrt(mean(x²) + eps) * weight` for each row of `x`; `x` is `[T, H]`, `weight` `[H]` in 32-bit floats.
pub fn rms_norm(x: Tensor<2>, weight: &Tensor<1>, eps: f32) -> Tensor<2> {
    assert_eq!(x.dims()[1], weight.dims()[0], "rms_norm: row length");
    Tensor::from_dispatch(Dispatch::rms_norm(x.into_dispatch(), weight.clone().into_dispatch(), eps))
}

/// `(rms_norm(x + residual), x + residual)`: the sum is the next residual.
pub fn add_rms_norm(x: Tensor<2>, residual: Tensor<2>, weight: &Tensor<1>, eps: f32) -> (Tensor<2>, Tensor<2>) {
    assert_eq!(x.dims(), residual.dims(), "add_rms_norm: shapes");
    assert_eq!(x.dims()[1], weight.dims()[0], "add_rms_norm: row length");
    let weight = weight.clone().into_dispatch();
    let (normed, sum) = Dispatch::add_rms_norm(x.into_dispatch(), residual.into_dispatch(), weight, eps);
    (Tensor::from_dispatch(normed), Tensor::from_dispatch(sum))
}

/// [`rms_norm`] in plain tensor operations, in 32-bit floats.
pub fn reference(x: Tensor<2>, weight: &Tensor<1>, eps: f32) -> Tensor<2> {
    let x = x.cast(DType::F32);
    let mean_square = x.clone().powf_scalar(2.0).mean_dim(1);
    x / (mean_square + eps).sqrt() * weight.clone().unsqueeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::float_tensor;
    use crate::testing::{Seeded, assert_close, for_each_device};

    #[test]
    fn a_row_worked_out_by_hand() {
        for_each_device(|device| {
            let x = float_tensor(vec![3.0, 4.0], [1, 2], device);
            let weight = float_tensor(vec![1.0, 2.0], [2], device);
            // mean of squares 12.5, root 3.5355339
            let expected = float_tensor(vec![0.848_528_1, 2.262_741_7], [1, 2], device);
            assert_close(rms_norm(x, &weight, 0.0), expected, 1e-6);
        });
    }

    #[test]
    fn equals_the_reference_for_ugly_shapes() {
        for_each_device(|device| {
            let mut seeded = Seeded::new(2);
            for (rows, columns) in [(1, 1), (1, 576), (3, 33), (7, 640), (65, 100)] {
                let (x, residual) = (seeded.tensor([rows, columns], device), seeded.tensor([rows, columns], device));
                let weight = seeded.tensor([columns], device);
                assert_close(rms_norm(x.clone(), &weight, 1e-5), reference(x.clone(), &weight, 1e-5), 1e-5);
                let (normed, sum) = add_rms_norm(x.clone(), residual.clone(), &weight, 1e-5);
                assert_close(sum, x.clone() + residual.clone(), 1e-6);
                assert_close(normed, reference(x + residual, &weight, 1e-5), 1e-5);
            }
        });
    }
}
