//! Layer normalisation.

use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Launch, Shader, contiguous, dims2, elements, empty2, vector};
use super::rms_norm::threads_for;
use super::shader_text;

static SHADER: Shader = Shader {
    name: "layer_norm",
    parts: &[
        shader_text!("common/grid.wgsl"),
        shader_text!("common/element.wgsl"),
        shader_text!("common/sum.wgsl"),
        shader_text!("layer_norm.wgsl"),
    ],
};

pub(crate) fn layer_norm(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, eps: f32) -> CubeTensor {
    let (x, weight, bias) = (contiguous(x), contiguous(weight), contiguous(bias));
    let [rows, columns] = dims2(&x);
    let out = empty2(&x, rows, columns);
    let elements = elements(columns);
    let launch = Launch {
        shader: &SHADER,
        constants: vec![("VECTOR", vector(columns)), ("WORKGROUP", threads_for(elements))],
        tensors: &[&x, &weight, &bias, &out],
        parameters: &[rows as u32, elements, (columns as f32).to_bits(), eps.to_bits()],
        workgroups: rows,
    };
    launch.enqueue();
    out
}
