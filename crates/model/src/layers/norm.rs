//! Normalisation of the residual stream.

use burn::tensor::Tensor;
use firebrick_ops::{RowNorm, add_rms_norm};

use crate::LoadError;
use crate::loader::Loader;

/// Root-mean-square normalisation, or layer normalisation where there is a bias.
#[derive(Debug)]
pub struct Norm {
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    eps: f32,
}

impl Norm {
    /// `x / rms(x) * weight`.
    pub(crate) fn load_rms(loader: &mut Loader, name: &str) -> Result<Self, LoadError> {
        let (hidden, eps) = (loader.config().hidden_size, loader.config().norm_eps);
        Ok(Self { weight: loader.norm_weight(&format!("{name}.weight"), hidden)?, bias: None, eps })
    }

    /// `(x - mean) / std * weight + bias`.
    pub(crate) fn load_layer(loader: &mut Loader, name: &str) -> Result<Self, LoadError> {
        let (hidden, eps) = (loader.config().hidden_size, loader.config().norm_eps);
        let weight = loader.vector(&[(&format!("{name}.weight"), hidden)])?;
        let bias = loader.vector(&[(&format!("{name}.bias"), hidden)])?;
        Ok(Self { weight, bias: Some(bias), eps })
    }

    /// The normalised rows.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.of_rows().of(x)
    }

    /// The normalisation as part of a projection.
    pub(super) fn of_rows(&self) -> RowNorm<'_> {
        RowNorm { weight: &self.weight, bias: self.bias.as_ref(), eps: self.eps }
    }

    /// The normalised rows of `x + residual`, and that sum.
    pub fn add_forward(&self, x: Tensor<2>, residual: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        if self.bias.is_none() {
            return add_rms_norm(x, residual, &self.weight, self.eps);
        }
        let sum = x + residual;
        (self.forward(sum.clone()), sum)
    }
}
