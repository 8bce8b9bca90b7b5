//! The feed-forward part of a layer.

use burn::tensor::Tensor;
use firebrick_checkpoint::Activation as Kind;
use firebrick_ops::{Activation, activation, gated_activation};

use super::Linear;
use crate::LoadError;
use crate::loader::Loader;

/// `down(act(gate(x)) · up(x))`, or without a gate `down(act(up(x)))`.
#[derive(Debug)]
pub struct Mlp {
    up: Linear,
    down: Linear,
    kind: Activation,
    gated: bool,
}

impl Mlp {
    /// A gated MLP (Shazeer, 2020) named as in Llama: `gate_proj`, `up_proj`, `down_proj`.
    pub(crate) fn load_gated(loader: &mut Loader, name: &str) -> Result<Self, LoadError> {
        let config = loader.config();
        let (hidden, inner, biased) = (config.hidden_size, config.intermediate_size, config.mlp_bias);
        let parts = [(format!("{name}.gate_proj"), inner), (format!("{name}.up_proj"), inner)];
        let up = Linear::load(loader, &parts, hidden, biased)?;
        let down = Linear::load(loader, &[(format!("{name}.down_proj"), hidden)], inner, biased)?;
        Ok(Self { up, down, kind: kind(config.activation), gated: true })
    }

    /// A plain MLP of two given layers.
    pub(crate) fn plain(loader: &Loader, up: Linear, down: Linear) -> Self {
        Self { up, down, kind: kind(loader.config().activation), gated: false }
    }

    /// `[T, hidden]` to the same.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let inner = self.up.forward(x);
        let inner = if self.gated { gated_activation(inner, self.kind) } else { activation(inner, self.kind) };
        self.down.forward(inner)
    }
}

fn kind(configured: Kind) -> Activation {
    match configured {
        Kind::Silu => Activation::Silu,
        Kind::GeluTanh => Activation::GeluTanh,
        Kind::GeluErf => Activation::GeluErf,
        Kind::Relu => Activation::Relu,
    }
}
