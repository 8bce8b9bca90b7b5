//! Multiplication by a weight matrix.

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};

use crate::FusedOps;

/// A weight matrix `[N, K]`: `N` outputs, `K` inputs, as Hugging Face stores linear layers.
#[derive(Clone, Debug)]
pub struct Weight(Tensor<2>);

impl Weight {
    /// A dense matrix in any float dtype of the device.
    pub fn dense(values: Tensor<2>) -> Self {
        Self(values)
    }

    /// `[N, K]`.
    pub fn dims(&self) -> [usize; 2] {
        self.0.dims()
    }

    /// The matrix itself, for lookups by row in tied embeddings.
    pub fn values(&self) -> &Tensor<2> {
        &self.0
    }
}

/// `x · weightᵀ + bias`, accumulated in 32-bit floats.
///
/// `x` is `[T, K]`, `bias` `[N]` in 32-bit floats, the result `[T, N]`. A row of the result depends only on the same row
/// of `x`, to the last bit, whatever `T` is.
pub fn linear(x: Tensor<2>, weight: &Weight, bias: Option<&Tensor<1>>) -> Tensor<2> {
    let [outputs, inputs] = weight.dims();
    assert_eq!(x.dims()[1], inputs, "linear: input length");
    assert!(bias.is_none_or(|bias| bias.dims()[0] == outputs), "linear: bias length");
    let weight = weight.0.clone().into_dispatch();
    // Optional tensors cannot cross the dispatch; without a bias the weight stands in and is not read as one.
    let has_bias = bias.is_some();
    let bias = bias.map_or_else(|| weight.clone(), |bias| bias.clone().into_dispatch());
    Tensor::from_dispatch(Dispatch::linear(x.into_dispatch(), weight, bias, has_bias))
}

/// The same in plain tensor operations, in 32-bit floats.
pub fn reference(x: Tensor<2>, weight: &Weight, bias: Option<&Tensor<1>>) -> Tensor<2> {
    let product = x.cast(DType::F32).matmul(weight.0.clone().cast(DType::F32).transpose());
    match bias {
        Some(bias) => product + bias.clone().unsqueeze(),
        None => product,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Seeded, assert_close, for_each_device, weight_dtypes};

    #[test]
    fn equals_the_reference_for_ugly_shapes_and_every_weight_dtype() {
        for_each_device(|device| {
            let mut seeded = Seeded::new(4);
            for dtype in weight_dtypes(device) {
                for (rows, inputs, outputs) in [(1, 1, 1), (1, 576, 1536), (2, 33, 5), (5, 64, 17), (67, 100, 39)] {
                    let x = seeded.tensor([rows, inputs], device);
                    let weight = Weight::dense(seeded.tensor([outputs, inputs], device).cast(dtype));
                    let bias = seeded.tensor([outputs], device);
                    let expected = reference(x.clone(), &weight, Some(&bias));
                    assert_close(linear(x, &weight, Some(&bias)), expected, 2e-5);
                }
            }
        });
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_beside_it() {
        for_each_device(|device| {
            let mut seeded = Seeded::new(5);
            let x = seeded.tensor([37, 576], device);
            for dtype in weight_dtypes(device) {
                let weight = Weight::dense(seeded.tensor([75, 576], device).cast(dtype));
                let together = linear(x.clone(), &weight, None);
                for (first, rows) in [(0, 1), (5, 2), (7, 3), (11, 4), (30, 7)] {
                    let alone = linear(x.clone().slice([first..first + rows]), &weight, None);
                    assert_close(alone, together.clone().slice([first..first + rows]), 0.0);
                }
            }
        });
    }
}
