//! A weight matrix with an optional bias.

use burn::tensor::Tensor;
use firebrick_ops::{Projection, Weight};

use super::Norm;
use crate::LoadError;
use crate::loader::Loader;

/// `x · weightᵀ + bias`.
#[derive(Debug)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor<1>>,
}

impl Linear {
    pub(crate) fn new(weight: Weight, bias: Option<Tensor<1>>) -> Self {
        Self { weight, bias }
    }

    /// The layers named in `parts` as one, their outputs side by side: `{name}.weight`, and `{name}.bias` if `biased`.
    pub(crate) fn load(
        loader: &mut Loader,
        parts: &[(String, usize)],
        inputs: usize,
        biased: bool,
    ) -> Result<Self, LoadError> {
        let named = |suffix: &str| -> Vec<(String, usize)> {
            parts.iter().map(|(name, rows)| (format!("{name}.{suffix}"), *rows)).collect()
        };
        let weights = named("weight");
        let weights: Vec<_> = weights.iter().map(|(name, rows)| (name.as_str(), *rows)).collect();
        let weight = loader.linear_weight(&weights, inputs)?;
        let biases = named("bias");
        let biases: Vec<_> = biases.iter().map(|(name, rows)| (name.as_str(), *rows)).collect();
        let bias = if biased { Some(loader.vector(&biases)?) } else { None };
        Ok(Self { weight, bias })
    }

    /// The layer after a norm, to be applied with what comes after it.
    pub fn after<'a>(&'a self, norm: Option<&'a Norm>) -> Projection<'a> {
        Projection { norm: norm.map(Norm::of_rows), weight: &self.weight, bias: self.bias.as_ref() }
    }
}
