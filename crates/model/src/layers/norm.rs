//! Normalisation of the residual stream.

use burn::tensor::Tensor;
use firebrick_ops::{add_rms_norm, layer_norm, rms_norm};

use crate::LoadError;
use crate::loader::Loader;

/// Root-mean-square or layer normalisation.
#[derive(Debug)]
pub enum Norm {
    /// `x / rms(x) * weight`.
    Rms {
        /// `[hidden]`.
        weight: Tensor<1>,
        /// Added to the mean square.
        eps: f32,
    },
    /// `(x - mean) / std * weight + bias`.
    Layer {
        /// `[hidden]`.
        weight: Tensor<1>,
        /// `[hidden]`.
        bias: Tensor<1>,
        /// Added to the variance.
        eps: f32,
    },
}

impl Norm {
    pub(crate) fn load_rms(loader: &mut Loader, name: &str) -> Result<Self, LoadError> {
        let (hidden, eps) = (loader.config().hidden_size, loader.config().norm_eps);
        Ok(Self::Rms { weight: loader.norm_weight(&format!("{name}.weight"), hidden)?, eps })
    }

    pub(crate) fn load_layer(loader: &mut Loader, name: &str) -> Result<Self, LoadError> {
        let (hidden, eps) = (loader.config().hidden_size, loader.config().norm_eps);
        let weight = loader.vector(&[(&format!("{name}.weight"), hidden)])?;
        let bias = loader.vector(&[(&format!("{name}.bias"), hidden)])?;
        Ok(Self::Layer { weight, bias, eps })
    }

    /// The normalised rows.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Rms { weight, eps } => rms_norm(x, weight, *eps),
            Self::Layer { weight, bias, eps } => layer_norm(x, weight, bias, *eps),
        }
    }

    /// The normalised rows of `x + residual`, and that sum.
    pub fn add_forward(&self, x: Tensor<2>, residual: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        match self {
            Self::Rms { weight, eps } => add_rms_norm(x, residual, weight, *eps),
            Self::Layer { .. } => {
                let sum = x + residual;
                (self.forward(sum.clone()), sum)
            }
        }
    }
}
