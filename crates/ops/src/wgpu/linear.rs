//! Multiplication by a weight matrix: one kernel for few rows, one for many, with the same order of every sum.

use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Launch, Shader, contiguous, dims2, empty2, half, vector};
use super::shader_text;

static FEW_ROWS: Shader = Shader {
    name: "linear_few_rows",
    parts: &[
        shader_text!("common/grid.wgsl"),
        shader_text!("common/operands.wgsl"),
        shader_text!("linear_few_rows.wgsl"),
    ],
};

static MANY_ROWS: Shader = Shader {
    name: "linear_many_rows",
    parts: &[
        shader_text!("common/grid.wgsl"),
        shader_text!("common/operands.wgsl"),
        shader_text!("linear_many_rows.wgsl"),
    ],
};

/// Threads that share an output of [`FEW_ROWS`].
const LANES: usize = 16;
/// Rows and outputs of a tile of [`MANY_ROWS`].
const TILE: usize = 32;
/// Rows up to which [`FEW_ROWS`] is used.
const FEW_ROWS_MAX: usize = 16;

pub(crate) fn linear(x: CubeTensor, weight: CubeTensor, bias: Option<CubeTensor>) -> CubeTensor {
    let (x, weight, bias) = (contiguous(x), contiguous(weight), bias.map(contiguous));
    let [rows, inputs] = dims2(&x);
    let [outputs, _] = dims2(&weight);
    let out = empty2(&x, rows, outputs);
    let mut tensors = vec![&x, &weight];
    tensors.extend(&bias);
    tensors.push(&out);

    let (shader, division, tile_rows, strips) = divide(rows, inputs, outputs);
    let mut constants = vec![("VECTOR", vector(inputs)), ("HALF", half(&weight)), ("BIAS", u32::from(bias.is_some()))];
    constants.extend(division);
    let launch = Launch {
        shader,
        constants,
        tensors: &tensors,
        parameters: &[rows as u32, outputs as u32, inputs as u32, inputs.div_ceil(4) as u32, strips as u32],
        workgroups: rows.div_ceil(tile_rows) * strips,
    };
    launch.enqueue();
    out
}

/// The kernel for a shape, its constants, the rows of a workgroup, and the workgroups that share the outputs.
fn divide(rows: usize, inputs: usize, outputs: usize) -> (&'static Shader, Vec<(&'static str, u32)>, usize, usize) {
    if rows > FEW_ROWS_MAX {
        return (&MANY_ROWS, vec![("WORKGROUP", 256)], TILE, outputs.div_ceil(TILE));
    }
    const WORKGROUP: usize = 64;
    let tile_rows = rows.clamp(1, 4);
    // Small matrices keep more threads busy; large ones read x less often.
    let outputs_per_thread = if outputs >= 4096 { 2 } else { 1 };
    let constants = vec![
        ("ROWS", tile_rows as u32),
        ("OUTPUTS", outputs_per_thread as u32),
        // Reads of single floats are many already, and some compilers take minutes over four times as many.
        ("UNROLL", if inputs.is_multiple_of(4) { 4 } else { 1 }),
        ("WORKGROUP", WORKGROUP as u32),
    ];
    (&FEW_ROWS, constants, tile_rows, outputs.div_ceil(WORKGROUP / LANES * outputs_per_thread))
}
