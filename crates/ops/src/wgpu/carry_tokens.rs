//! Tokens that the step before has chosen, put where this step reads its own.

use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Launch, Shader, contiguous};
use super::shader_text;

static SHADER: Shader = Shader {
    name: "gather_rows_carried",
    parts: &[shader_text!("common/grid.wgsl"), shader_text!("gather_rows_carried.wgsl")],
};

const WORKGROUP: u32 = 64;

/// Writes into the memory of `tokens`.
pub(crate) fn carry_tokens(tokens: CubeTensor, sources: CubeTensor, choices: CubeTensor) -> CubeTensor {
    let (sources, choices) = (contiguous(sources), contiguous(choices));
    let count = tokens.meta.num_elements();
    let launch = Launch {
        shader: &SHADER,
        constants: vec![("WORKGROUP", WORKGROUP)],
        tensors: &[&tokens, &sources, &choices],
        parameters: &[count as u32],
        workgroups: count.div_ceil(WORKGROUP as usize),
    };
    launch.enqueue();
    tokens
}
