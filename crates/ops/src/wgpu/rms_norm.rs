//! Root-mean-square normalisation.

use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Launch, Shader, contiguous, dims2, elements, empty2, vector};
use super::shader_text;

static SHADER: Shader = Shader {
    name: "rms_norm",
    parts: &[
        shader_text!("common/grid.wgsl"),
        shader_text!("common/element.wgsl"),
        shader_text!("common/sum.wgsl"),
        shader_text!("rms_norm.wgsl"),
    ],
};

/// Threads that share a row of so many elements.
pub(super) fn threads_for(elements: u32) -> u32 {
    if elements > 256 { 256 } else { 64 }
}

pub(crate) fn rms_norm(x: CubeTensor, weight: CubeTensor, eps: f32) -> CubeTensor {
    let (x, weight) = (contiguous(x), contiguous(weight));
    let [rows, columns] = dims2(&x);
    let out = empty2(&x, rows, columns);
    enqueue(&[&x, &weight, &out], 0, eps);
    out
}

pub(crate) fn add_rms_norm(
    x: CubeTensor,
    residual: CubeTensor,
    weight: CubeTensor,
    eps: f32,
) -> (CubeTensor, CubeTensor) {
    let (x, residual, weight) = (contiguous(x), contiguous(residual), contiguous(weight));
    let [rows, columns] = dims2(&x);
    let (sum, out) = (empty2(&x, rows, columns), empty2(&x, rows, columns));
    enqueue(&[&x, &residual, &sum, &weight, &out], 1, eps);
    (out, sum)
}

fn enqueue(tensors: &[&CubeTensor], residual: u32, eps: f32) {
    let [rows, columns] = dims2(tensors[0]);
    let elements = elements(columns);
    let launch = Launch {
        shader: &SHADER,
        constants: vec![("VECTOR", vector(columns)), ("RESIDUAL", residual), ("WORKGROUP", threads_for(elements))],
        tensors,
        parameters: &[rows as u32, elements, (columns as f32).to_bits(), eps.to_bits()],
        workgroups: rows,
    };
    launch.enqueue();
}
