//! Multiplication by a weight matrix.

use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Launch, Shader, contiguous, dims2, empty2};
use super::matrix::Matrix;
use super::shader_text;
use crate::Packing;

static SHADER: Shader = Shader {
    name: "linear",
    parts: &[shader_text!("common/grid.wgsl"), shader_text!("common/packed.wgsl"), shader_text!("linear.wgsl")],
};

const WORKGROUP: usize = 64;
/// Threads that share a product.
const LANES: usize = 16;

pub(crate) fn linear(
    x: CubeTensor,
    weight: CubeTensor,
    bias: Option<CubeTensor>,
    residual: Option<CubeTensor>,
) -> CubeTensor {
    multiply(contiguous(x), &Matrix::dense(weight), bias.map(contiguous), residual.map(contiguous))
}

pub(crate) fn linear_packed(
    x: CubeTensor,
    (words, packing): (CubeTensor, Packing),
    bias: Option<CubeTensor>,
    residual: Option<CubeTensor>,
) -> CubeTensor {
    multiply(contiguous(x), &Matrix::packed(words, packing), bias.map(contiguous), residual.map(contiguous))
}

fn multiply(x: CubeTensor, weight: &Matrix, bias: Option<CubeTensor>, residual: Option<CubeTensor>) -> CubeTensor {
    let [rows, inputs] = dims2(&x);
    let [outputs, _] = weight.dims();
    let out = empty2(&x, rows, outputs);
    let mut tensors = vec![&x, &weight.tensor];
    tensors.extend(&bias);
    tensors.extend(&residual);
    tensors.push(&out);

    let division = Division::of(rows, inputs, outputs);
    let strips = outputs.div_ceil(WORKGROUP / LANES * division.outputs);
    let mut constants = weight.constants();
    constants.extend([
        ("BIAS", u32::from(bias.is_some())),
        ("RESIDUAL", u32::from(residual.is_some())),
        ("ROWS", division.rows as u32),
        ("OUTPUTS", division.outputs as u32),
        ("UNROLL", division.unroll as u32),
        ("WORKGROUP", WORKGROUP as u32),
    ]);
    let launch = Launch {
        shader: &SHADER,
        constants,
        tensors: &tensors,
        parameters: &[rows as u32, outputs as u32, inputs as u32, inputs.div_ceil(4) as u32, strips as u32],
        workgroups: rows.div_ceil(division.rows) * strips,
    };
    launch.enqueue();
    out
}

/// How the work is divided; the bits of the result do not depend on it.
struct Division {
    /// Rows of a workgroup.
    rows: usize,
    /// Outputs of a thread.
    outputs: usize,
    /// Quads that a thread has under way at once.
    unroll: usize,
}

impl Division {
    fn of(rows: usize, inputs: usize, outputs: usize) -> Self {
        // One or two rows are bound by reading weights: many small workgroups. More rows reuse what is in registers;
        // 8 by 4 products are the most that pays on an H200 (4096 to 14336, 2048 rows: 10.9 ms; 4 by 4: 12.3 ms).
        let outputs = match rows {
            1 if outputs >= 4096 => 2,
            1 | 2 => 1,
            _ => 4,
        };
        // Reads of single floats are many already, and some compilers take minutes over four times as many.
        let unroll = if inputs.is_multiple_of(4) { 4 } else { 1 };
        Self { rows: rows.clamp(1, 8), outputs, unroll }
    }
}
