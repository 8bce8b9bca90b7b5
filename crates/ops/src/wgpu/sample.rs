//! The choice of tokens, a workgroup per row. Before it long rows are surveyed, and with filters weighed, a workgroup per
//! part of a row.

use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Launch, Shader, contiguous, dims2};
use super::shader_text;
use crate::sample::SampleOptions;

static SHADER: Shader = Shader {
    name: "sample",
    parts: &[
        shader_text!("common/grid.wgsl"),
        shader_text!("common/random.wgsl"),
        shader_text!("sample.wgsl"),
        shader_text!("common/best_tokens.wgsl"),
    ],
};

const WORKGROUP: u32 = 256;
/// Tokens of a part of a row. On an H200 one workgroup needed 81 µs to choose among 49,152.
const PART: usize = 1024;
/// Rows of more tokens than that are surveyed.
const SURVEYED_MIN: usize = 4 * PART;

pub(crate) fn sample(logits: CubeTensor, plan: CubeTensor, options: SampleOptions) -> CubeTensor {
    let (logits, plan) = (contiguous(logits), contiguous(plan));
    assert_eq!(logits.dtype, DType::F32, "sample: activations are 32-bit floats");
    let [_, tokens] = dims2(&logits);
    let parts = if tokens > SURVEYED_MIN { tokens.div_ceil(PART) } else { 0 };
    let enqueue = |stage: Stage, tensors: &[&CubeTensor], workgroups| {
        let is_long = parts > 0;
        let launch = Launch {
            shader: &SHADER,
            constants: vec![
                ("LONG", u32::from(is_long)),
                ("SURVEY", u32::from(stage == Stage::Survey)),
                ("SURVEYED", u32::from(is_long && stage != Stage::Survey)),
                ("WEIGHING", u32::from(stage == Stage::Weighing)),
                ("WEIGHED", u32::from(is_long && stage != Stage::Survey && options.has_filters)),
                ("CHOICE", u32::from(stage == Stage::Choice)),
                ("WORKGROUP", WORKGROUP),
            ],
            tensors,
            parameters: &[options.rows as u32, tokens as u32, parts as u32],
            workgroups,
        };
        launch.enqueue();
    };
    let out = empty_words(&logits, options.result_words());
    if parts == 0 {
        enqueue(Stage::Choice, &[&logits, &plan, &out], options.rows);
        return out;
    }
    let surveys = empty_words(&logits, 4 * options.rows * parts);
    enqueue(Stage::Survey, &[&logits, &plan, &surveys], options.rows * parts);
    if !options.has_filters {
        enqueue(Stage::Choice, &[&logits, &plan, &surveys, &out], options.rows);
        return out;
    }
    let weighed = empty_words(&logits, 8 * options.rows * parts);
    enqueue(Stage::Weighing, &[&logits, &plan, &surveys, &weighed], options.rows * parts);
    enqueue(Stage::Choice, &[&logits, &plan, &surveys, &weighed, &out], options.rows);
    out
}

/// What a dispatch does, in the order of the dispatches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The best draw of each part of a row.
    Survey,
    /// What the row's best draw is judged by, of each part.
    Weighing,
    Choice,
}

/// A new list of 32-bit integers on the device of `like`; its values are undefined.
fn empty_words(like: &CubeTensor, length: usize) -> CubeTensor {
    let handle = like.client.empty(length * size_of::<i32>());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), Shape::from([length]), handle, DType::I32)
}
