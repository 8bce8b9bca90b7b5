//! Rows of a table by index, widened to 32 bits.

use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Launch, Shader, contiguous, dims2, elements, empty2, half, vector};
use super::shader_text;

static SHADER: Shader = Shader {
    name: "gather_rows",
    parts: &[shader_text!("common/grid.wgsl"), shader_text!("common/element.wgsl"), shader_text!("gather_rows.wgsl")],
};

const WORKGROUP: u32 = 256;

pub(crate) fn gather_rows(table: CubeTensor, ids: CubeTensor) -> CubeTensor {
    let (table, ids) = (contiguous(table), contiguous(ids));
    let [_, columns] = dims2(&table);
    let rows = ids.meta.shape()[0];
    let out = empty2(&table, rows, columns);
    let width = elements(columns);
    let launch = Launch {
        shader: &SHADER,
        constants: vec![("HALF", half(&table)), ("VECTOR", vector(columns)), ("WORKGROUP", WORKGROUP)],
        tensors: &[&table, &ids, &out],
        parameters: &[rows as u32 * width, width],
        workgroups: (rows * width as usize).div_ceil(WORKGROUP as usize),
    };
    launch.enqueue();
    out
}
