//! Layer normalisation (Ba, Kiros and Hinton, 2016).

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};

use crate::FusedOps;

/// `(x - mean) / sqrt(variance + eps) * weight + bias` for each row of `x`.
///
/// `x` is `[T, H]`; `weight` and `bias` are `[H]` in 32-bit floats. The variance is the biased one.
pub fn layer_norm(x: Tensor<2>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f32) -> Tensor<2> {
    assert_eq!(x.dims()[1], weight.dims()[0], "layer_norm: row length");
    assert_eq!(weight.dims(), bias.dims(), "layer_norm: weight and bias");
    let (weight, bias) = (weight.clone().into_dispatch(), bias.clone().into_dispatch());
    Tensor::from_dispatch(Dispatch::layer_norm(x.into_dispatch(), weight, bias, eps))
}

/// The same in plain tensor operations, in 32-bit floats.
pub fn reference(x: Tensor<2>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f32) -> Tensor<2> {
    let x = x.cast(DType::F32);
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().powf_scalar(2.0).mean_dim(1);
    centred / (variance + eps).sqrt() * weight.clone().unsqueeze() + bias.clone().unsqueeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Seeded, assert_close, for_each_device};

    #[test]
    fn equals_the_reference_for_ugly_shapes() {
        for_each_device(|device| {
            let mut seeded = Seeded::new(3);
            for (rows, columns) in [(1, 2), (1, 768), (3, 33), (17, 64)] {
                let x = seeded.tensor([rows, columns], device);
                let (weight, bias) = (seeded.tensor([columns], device), seeded.tensor([columns], device));
                let expected = reference(x.clone(), &weight, &bias, 1e-5);
                assert_close(layer_norm(x, &weight, &bias, 1e-5), expected, 1e-4);
            }
        });
    }
}
