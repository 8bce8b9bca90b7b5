//! The feed-forward part of a layer.

use burn::tensor::Tensor;
use firebrick_checkpoint::Activation as Kind;
use firebrick_ops::{Activation, Stream, Then, project, project_onto};

use super::{Linear, Norm};
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
    /// A gated MLP (Shazeer, 2020) named as in Llama: `gate_proj`, `up_proj`, `down_proj`; or as in Phi 3 `gate_up_proj`,
    /// `down_proj`.
    pub(crate) fn load_gated(loader: &mut Loader, name: &str) -> Result<Self, LoadError> {
        let config = loader.config();
        let (hidden, inner, biased) = (config.hidden_size, config.intermediate_size, config.mlp_bias);
        let part = |part: &str, rows: usize| (format!("{name}.{part}"), rows);
        let parts = if config.architecture.fuses_projections() {
            vec![part("gate_up_proj", 2 * inner)]
        } else {
            vec![part("gate_proj", inner), part("up_proj", inner)]
        };
        let up = Linear::load(loader, &parts, hidden, biased)?;
        let down = Linear::load(loader, &[part("down_proj", hidden)], inner, biased)?;
        Ok(Self { up, down, kind: activation_of(config.activation), gated: true })
    }

    /// A plain MLP of two given layers.
    pub(crate) fn plain(loader: &Loader, up: Linear, down: Linear) -> Self {
        Self { up, down, kind: activation_of(loader.config().activation), gated: false }
    }

    /// `mlp(norm(x))`, `[T, hidden]` to the same.
    pub fn forward(&self, x: Tensor<2>, norm: Option<&Norm>) -> Tensor<2> {
        project(self.inner(x, norm), self.down.after(None), Then::Keep)
    }

    /// `hidden + mlp(norm(hidden))`, which `next`, if it is given, is then applied to.
    pub fn add_forward(&self, hidden: Stream, norm: &Norm, next: Option<&Norm>) -> Stream {
        let inner = self.inner(hidden.clone(), Some(norm));
        project_onto(hidden.into_rows(), inner, self.down.after(None), next.map(Norm::of_rows))
    }

    fn inner(&self, x: impl Into<Stream>, norm: Option<&Norm>) -> Tensor<2> {
        let then = if self.gated { Then::Gate(self.kind) } else { Then::Activate(self.kind) };
        project(x, self.up.after(norm), then)
    }
}

/// The operations' name for an activation.
pub(crate) fn activation_of(configured: Kind) -> Activation {
    match configured {
        Kind::Silu => Activation::Silu,
        Kind::GeluTanh => Activation::GeluTanh,
        Kind::GeluErf => Activation::GeluErf,
        Kind::Relu => Activation::Relu,
    }
}
