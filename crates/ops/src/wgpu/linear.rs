//! Multiplication by a weight matrix, for few rows with what stands before and after it.

use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::activation::kinds;
use super::kernel::{Launch, Shader, contiguous, dims2, elements, empty2};
use super::layer_norm;
use super::matrix::Matrix;
use super::rms_norm::threads_for;
use super::shader_text;
use crate::Packing;
use crate::backend::{Activated, ProjectionInputs, Surroundings};

static SHADER: Shader = Shader {
    name: "linear",
    parts: &[
        shader_text!("common/grid.wgsl"),
        shader_text!("common/packed.wgsl"),
        shader_text!("common/apply.wgsl"),
        shader_text!("linear.wgsl"),
    ],
};

const WORKGROUP: usize = 64;
/// Threads that share a product.
const LANES: usize = 16;
/// Most rows that a workgroup takes together.
const ROWS_MAX: usize = 8;
/// Most quads of a lane whose reads are all under way at once, or in two rounds.
const LANE_QUADS_FEW: usize = 24;

/// Whether norm and activation of so many rows are part of the product: every workgroup normalises them, and every kind of
/// product is a shader that compilers need time for.
pub(crate) fn takes_norms([rows, inputs]: [usize; 2]) -> bool {
    rows <= 4 || rows <= ROWS_MAX && inputs <= 2048
}

pub(crate) fn linear(
    x: CubeTensor,
    weight: CubeTensor,
    bias: Option<CubeTensor>,
    residual: Option<CubeTensor>,
) -> CubeTensor {
    Product { x, weight: Matrix::dense(weight), norm: None, bias, residual, activated: Activated::Not }.run()
}

pub(crate) fn linear_packed(
    x: CubeTensor,
    (words, packing): (CubeTensor, Packing),
    around: Surroundings<CubeBackend>,
) -> CubeTensor {
    let norm = around.norm_weight.given().map(|weight| (weight, around.norm_eps));
    let (bias, residual, activated) = (around.bias.given(), around.residual.given(), around.activated);
    Product { x, weight: Matrix::packed(words, packing), norm, bias, residual, activated }.run()
}

/// For few rows; a layer norm is a dispatch of its own.
pub(crate) fn project(inputs: ProjectionInputs<CubeBackend>) -> CubeTensor {
    let (x, norm) = match (inputs.norm_weight.given(), inputs.norm_bias.given()) {
        (Some(weight), Some(bias)) => (layer_norm(inputs.x, weight, bias, inputs.norm_eps), None),
        (weight, _) => (inputs.x, weight.map(|weight| (weight, inputs.norm_eps))),
    };
    let (weight, bias, residual) = (Matrix::dense(inputs.weight), inputs.bias.given(), inputs.residual.given());
    Product { x, weight, norm, bias, residual, activated: inputs.activated }.run()
}

/// The operands of one dispatch.
struct Product {
    x: CubeTensor,
    weight: Matrix,
    /// The weight of the norm, and its epsilon.
    norm: Option<(CubeTensor, f32)>,
    bias: Option<CubeTensor>,
    residual: Option<CubeTensor>,
    activated: Activated,
}

impl Product {
    fn run(self) -> CubeTensor {
        let Self { x, weight, norm, bias, residual, activated } = self;
        let (x, bias, residual) = (contiguous(x), bias.map(contiguous), residual.map(contiguous));
        let (norm_weight, eps) = norm.map(|(weight, eps)| (contiguous(weight), eps)).unzip();
        let [rows, inputs] = dims2(&x);
        let [products, _] = weight.dims();
        let is_gated = matches!(activated, Activated::Gated(_));
        let outputs = if is_gated { products / 2 } else { products };
        let out = empty2(&x, rows, outputs);
        let mut tensors = vec![&x];
        tensors.extend(&norm_weight);
        tensors.push(&weight.tensor);
        tensors.extend(&bias);
        tensors.extend(&residual);
        tensors.push(&out);

        let division = Division::of(rows, inputs, outputs, is_gated);
        let strips = outputs.div_ceil(WORKGROUP / LANES * division.columns());
        let mut constants = weight.constants();
        constants.extend(kinds(match activated {
            Activated::Not => None,
            Activated::All(kind) | Activated::Gated(kind) => Some(kind),
        }));
        let norm_threads = threads_for(elements(inputs));
        let norm_steps = elements(inputs).div_ceil(norm_threads);
        constants.extend([
            ("NORM", u32::from(norm_weight.is_some())),
            ("NORM_THREADS", norm_threads),
            ("NORM_STEPS", if norm_steps <= 4 { norm_steps } else { 0 }),
            ("NORM_FOLDED", u32::from(norm_threads > WORKGROUP as u32)),
            ("ACTIVATED", u32::from(activated != Activated::Not)),
            ("GATED", u32::from(is_gated)),
            ("BIAS", u32::from(bias.is_some())),
            ("RESIDUAL", u32::from(residual.is_some())),
            ("ROWS", division.rows as u32),
            ("OUTPUTS", division.outputs as u32),
            ("COLUMNS", division.columns() as u32),
            ("UNROLL", division.unroll as u32),
            ("ONE_ROUND", u32::from(division.unroll * LANES >= inputs.div_ceil(4))),
            ("WORKGROUP", WORKGROUP as u32),
        ]);
        let launch = Launch {
            shader: &SHADER,
            constants,
            tensors: &tensors,
            parameters: &[
                rows as u32,
                outputs as u32,
                inputs as u32,
                inputs.div_ceil(4) as u32,
                strips as u32,
                (inputs as f32).to_bits(),
                eps.unwrap_or(0.0).to_bits(),
            ],
            workgroups: rows.div_ceil(division.rows) * strips,
        };
        launch.enqueue();
        out
    }
}

/// How the work is divided; the bits of the result do not depend on it.
struct Division {
    /// Rows of a workgroup.
    rows: usize,
    /// Sums of a thread.
    outputs: usize,
    /// Two sums make an output.
    is_gated: bool,
    /// Quads that a thread has under way at once.
    unroll: usize,
}

impl Division {
    fn of(rows: usize, inputs: usize, outputs: usize, is_gated: bool) -> Self {
        let lane_quads = inputs.div_ceil(4 * LANES);
        if rows <= ROWS_MAX && inputs.is_multiple_of(4) && lane_quads <= LANE_QUADS_FEW {
            return Self::of_few((rows, lane_quads), outputs, is_gated);
        }
        // One or two rows are bound by reading weights: many small workgroups. More rows reuse what is in registers;
        // 8 by 4 products are the most that pays on an H200 (4096 to 14336, 2048 rows: 10.9 ms; 4 by 4: 12.3 ms).
        let outputs = match rows {
            _ if is_gated => 2,
            1 if outputs >= 4096 => 2,
            1 | 2 => 1,
            _ => 4,
        };
        // Few numbers of rows, so that there are few shaders: rows past the end are computed and dropped.
        // Reads of single floats are many already, and some compilers take minutes over four times as many.
        let unroll = if inputs.is_multiple_of(4) { 4 } else { 1 };
        Self { rows: rows.clamp(1, ROWS_MAX).next_power_of_two(), outputs, is_gated, unroll }
    }

    /// For few rows of few inputs, where reading takes less time than waiting for what is read: all reads at once, as far as
    /// there are registers for them.
    fn of_few((rows, lane_quads): (usize, usize), outputs: usize, is_gated: bool) -> Self {
        let rows = rows.next_power_of_two();
        let outputs = if is_gated || outputs >= 4096 { 2 } else { 1 };
        let quads_max = match rows {
            1 | 2 => 18 / outputs.max(rows),
            _ => 9 / outputs,
        };
        let unroll = lane_quads.div_ceil(lane_quads.div_ceil(quads_max.min(12)));
        Self { rows, outputs, is_gated, unroll }
    }

    /// Outputs of a thread.
    fn columns(&self) -> usize {
        if self.is_gated { 1 } else { self.outputs }
    }
}
