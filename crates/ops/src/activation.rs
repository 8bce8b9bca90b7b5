//! Activation functions of the feed-forward layers, plain and gated.

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};

use crate::FusedOps;

/// An elementwise activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x/2 · (1 + tanh(√(2/π)(x + 0.044715x³)))` (Hendrycks and Gimpel, 2016).
    GeluTanh,
    /// `x/2 · (1 + erf(x/√2))`.
    GeluErf,
    /// `max(x, 0)`.
    Relu,
}

/// `kind(x)` for each element of `[T, F]`.
pub fn activation(x: Tensor<2>, kind: Activation) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::activation(x.into_dispatch(), kind))
}

/// `kind(gate) · up`, where the rows of `[T, 2F]` hold `F` gates and then `F` values; the result is `[T, F]`.
pub fn gated_activation(gate_up: Tensor<2>, kind: Activation) -> Tensor<2> {
    assert_eq!(gate_up.dims()[1] % 2, 0, "gated_activation: row length");
    Tensor::from_dispatch(Dispatch::gated_activation(gate_up.into_dispatch(), kind))
}

/// [`activation`] in plain tensor operations, in 32-bit floats.
pub fn reference(x: Tensor<2>, kind: Activation) -> Tensor<2> {
    use burn::tensor::activation as burn_activation;
    let x = x.cast(DType::F32);
    match kind {
        Activation::Silu => burn_activation::silu(x),
        Activation::GeluErf => burn_activation::gelu(x),
        Activation::Relu => burn_activation::relu(x),
        Activation::GeluTanh => {
            let inner = (x.clone() + x.clone().powf_scalar(3.0) * 0.044_715) * (2.0 / std::f32::consts::PI).sqrt();
            x * 0.5 * (inner.tanh() + 1.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Seeded, assert_close, for_each_device};

    #[test]
    fn every_kind_equals_its_reference() {
        for_each_device(|device| {
            let mut seeded = Seeded::new(6);
            for kind in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu] {
                for (rows, columns) in [(1, 1), (1, 1536), (3, 37), (65, 40)] {
                    let x = seeded.tensor([rows, columns], device) * 4.0;
                    assert_close(activation(x.clone(), kind), reference(x.clone(), kind), 2e-6);
                    let gate_up = seeded.tensor([rows, 2 * columns], device) * 4.0;
                    let gate = gate_up.clone().slice([0..rows, 0..columns]);
                    let up = gate_up.clone().slice([0..rows, columns..2 * columns]);
                    assert_close(gated_activation(gate_up, kind), reference(gate, kind) * up, 2e-6);
                }
            }
        });
    }
}
