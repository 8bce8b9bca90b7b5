//! Elementwise activations.

use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Launch, Shader, contiguous, dims2, elements, empty2, vector};
use super::shader_text;
use super::template::Constants;
use crate::activation::Activation;

static SHADER: Shader = Shader {
    name: "activation",
    parts: &[
        shader_text!("common/grid.wgsl"),
        shader_text!("common/element.wgsl"),
        shader_text!("common/apply.wgsl"),
        shader_text!("activation.wgsl"),
    ],
};

const WORKGROUP: u32 = 256;

pub(crate) fn activation(x: CubeTensor, kind: Activation) -> CubeTensor {
    let [_, columns] = dims2(&x);
    enqueue(x, columns, kind, 0)
}

pub(crate) fn gated_activation(gate_up: CubeTensor, kind: Activation) -> CubeTensor {
    let [_, columns] = dims2(&gate_up);
    enqueue(gate_up, columns / 2, kind, 1)
}

/// The result has `columns` columns.
fn enqueue(x: CubeTensor, columns: usize, kind: Activation, gated: u32) -> CubeTensor {
    let x = contiguous(x);
    let [rows, _] = dims2(&x);
    let out = empty2(&x, rows, columns);
    let width = elements(columns);
    let mut constants = kinds(Some(kind));
    constants.extend([("GATED", gated), ("VECTOR", vector(columns)), ("WORKGROUP", WORKGROUP)]);
    let launch = Launch {
        shader: &SHADER,
        constants,
        tensors: &[&x, &out],
        parameters: &[rows as u32 * width, width],
        workgroups: (rows * width as usize).div_ceil(WORKGROUP as usize),
    };
    launch.enqueue();
    out
}

/// What `common/apply.wgsl` is told.
pub(super) fn kinds(kind: Option<Activation>) -> Constants {
    let is = |wanted| u32::from(kind == Some(wanted));
    vec![
        ("SILU", is(Activation::Silu)),
        ("GELU_TANH", is(Activation::GeluTanh)),
        ("GELU_ERF", is(Activation::GeluErf)),
        ("RELU", is(Activation::Relu)),
    ]
}
