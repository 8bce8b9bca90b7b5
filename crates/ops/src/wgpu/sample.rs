//! The choice of tokens, a workgroup per row.

use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Launch, Shader, contiguous, dims2};
use super::shader_text;
use crate::sample::SampleOptions;

static SHADER: Shader =
    Shader { name: "sample", parts: &[shader_text!("common/grid.wgsl"), shader_text!("sample.wgsl")] };

const WORKGROUP: u32 = 256;

pub(crate) fn sample(logits: CubeTensor, plan: CubeTensor, options: SampleOptions) -> CubeTensor {
    let (logits, plan) = (contiguous(logits), contiguous(plan));
    assert_eq!(logits.dtype, DType::F32, "sample: activations are 32-bit floats");
    let [_, tokens] = dims2(&logits);
    let words = options.result_words();
    let handle = logits.client.empty(words * size_of::<i32>());
    let out = CubeTensor::new_contiguous(
        logits.client.clone(),
        logits.device.clone(),
        Shape::from([words]),
        handle,
        DType::I32,
    );
    let launch = Launch {
        shader: &SHADER,
        constants: vec![("WORKGROUP", WORKGROUP)],
        tensors: &[&logits, &plan, &out],
        parameters: &[options.rows as u32, tokens as u32],
        workgroups: options.rows,
    };
    launch.enqueue();
    out
}
