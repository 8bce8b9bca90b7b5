//! Rows of a table by index, widened to 32 bits.

use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Launch, Shader, contiguous, elements, empty2};
use super::matrix::Matrix;
use super::shader_text;
use crate::Packing;

static SHADER: Shader = Shader {
    name: "gather_rows",
    parts: &[
        shader_text!("common/grid.wgsl"),
        shader_text!("common/element.wgsl"),
        shader_text!("common/packed.wgsl"),
        shader_text!("gather_rows.wgsl"),
    ],
};

const WORKGROUP: u32 = 256;

pub(crate) fn gather_rows(table: CubeTensor, ids: CubeTensor) -> CubeTensor {
    gather(&Matrix::dense(table), contiguous(ids))
}

pub(crate) fn gather_packed_rows(words: CubeTensor, ids: CubeTensor, packing: Packing) -> CubeTensor {
    gather(&Matrix::packed(words, packing), contiguous(ids))
}

fn gather(table: &Matrix, ids: CubeTensor) -> CubeTensor {
    let [_, columns] = table.dims();
    let rows = ids.meta.shape()[0];
    let out = empty2(&table.tensor, rows, columns);
    let width = elements(columns);
    let mut constants = table.constants();
    constants.push(("WORKGROUP", WORKGROUP));
    let launch = Launch {
        shader: &SHADER,
        constants,
        tensors: &[&table.tensor, &ids, &out],
        parameters: &[rows as u32 * width, width],
        workgroups: (rows * width as usize).div_ceil(WORKGROUP as usize),
    };
    launch.enqueue();
    out
}
