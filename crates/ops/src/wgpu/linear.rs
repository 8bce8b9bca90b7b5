//! Multiplication by a weight matrix, for few rows with what stands before and after it.

use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::activation::kinds;
use super::kernel::{Launch, Shader, contiguous, dims2, elements, empty2};
use super::layer_norm;
use super::matrix::Matrix;
use super::rms_norm::threads_for;
use super::shader_text;
use super::template::Constants;
use crate::Packing;
use crate::backend::{Activated, ProjectionInputs, Surroundings, WeightTensors};

static SHADER: Shader = Shader {
    name: "linear",
    parts: &[
        shader_text!("common/grid.wgsl"),
        shader_text!("common/packed.wgsl"),
        shader_text!("common/apply.wgsl"),
        shader_text!("common/product.wgsl"),
        shader_text!("linear.wgsl"),
    ],
};

static SHADER_FEW_ROWS: Shader = Shader {
    name: "linear_few_rows",
    parts: &[
        shader_text!("common/grid.wgsl"),
        shader_text!("common/packed.wgsl"),
        shader_text!("common/apply.wgsl"),
        shader_text!("common/product.wgsl"),
        shader_text!("linear_few_rows.wgsl"),
    ],
};

const WORKGROUP: usize = 64;
/// Threads that share a product.
const LANES: usize = 16;
/// Most rows that a workgroup takes together.
const ROWS_MAX: usize = 8;
/// Most inputs and products of a matrix whose few rows are read once into a workgroup's memory, and most rows that it then takes: more
/// workgroups read the same weights, which takes less time than one that reads more rows.
const FEW: Few = Few { inputs: 1536, products: 4095, rows: 2 };

struct Few {
    inputs: usize,
    products: usize,
    rows: usize,
}

/// Whether norm and activation of so many rows are part of the product: every workgroup normalises them, and every kind of
/// product is a shader that compilers need time for.
pub(crate) fn takes_norms([rows, inputs]: [usize; 2]) -> bool {
    rows <= 4 || rows <= ROWS_MAX && inputs <= FEW.inputs
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
    let WeightTensors::Floats(weight) = inputs.weight else { unreachable!("`Weight::fp8` refuses wgpu") };
    let (weight, bias, residual) = (Matrix::dense(weight), inputs.bias.given(), inputs.residual.given());
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

        let division = Division::of([rows, inputs, products], is_gated);
        let strips = outputs.div_ceil(WORKGROUP / LANES * division.columns());
        let mut constants = weight.constants();
        constants.extend(kinds(match activated {
            Activated::Not => None,
            Activated::All(kind) | Activated::Gated(kind) => Some(kind),
        }));
        constants.extend([
            ("NORM", u32::from(norm_weight.is_some())),
            ("ACTIVATED", u32::from(activated != Activated::Not)),
            ("GATED", u32::from(is_gated)),
            ("BIAS", u32::from(bias.is_some())),
            ("RESIDUAL", u32::from(residual.is_some())),
        ]);
        constants.extend(division.constants(inputs));
        let launch = Launch {
            shader: if division.is_few { &SHADER_FEW_ROWS } else { &SHADER },
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
    /// Rows are read once into a workgroup's memory.
    is_few: bool,
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
    fn of([rows, inputs, products]: [usize; 3], is_gated: bool) -> Self {
        if rows <= ROWS_MAX && inputs.is_multiple_of(4) && inputs <= FEW.inputs && products <= FEW.products {
            let outputs = if is_gated { 2 } else { 1 };
            // As many rounds as registers need, all of the same length.
            let lane_quads = inputs.div_ceil(4 * LANES);
            let unroll = lane_quads.div_ceil(lane_quads.div_ceil(12.min(18 / outputs)));
            return Self { is_few: true, rows: rows.clamp(1, FEW.rows), outputs, is_gated, unroll };
        }
        // One or two rows are bound by reading weights: many small workgroups. More rows reuse what is in registers;
        // 8 by 4 products are the most that pays on an H200 (4096 to 14336, 2048 rows: 10.9 ms; 4 by 4: 12.3 ms).
        let outputs = match rows {
            _ if is_gated => 2,
            1 if products >= 4096 => 2,
            1 | 2 => 1,
            _ => 4,
        };
        // Few numbers of rows, so that there are few shaders: rows past the end are computed and dropped.
        // Reads of single floats are many already, and some compilers take minutes over four times as many.
        let unroll = if inputs.is_multiple_of(4) { 4 } else { 1 };
        Self { is_few: false, rows: rows.clamp(1, ROWS_MAX).next_power_of_two(), outputs, is_gated, unroll }
    }

    /// Outputs of a thread.
    fn columns(&self) -> usize {
        if self.is_gated { 1 } else { self.outputs }
    }

    /// What the shader of this division must know.
    fn constants(&self, inputs: usize) -> Constants {
        let mut constants = vec![
            ("ROWS", self.rows as u32),
            ("OUTPUTS", self.outputs as u32),
            ("COLUMNS", self.columns() as u32),
            ("UNROLL", self.unroll as u32),
            ("WORKGROUP", WORKGROUP as u32),
        ];
        let norm_threads = threads_for(elements(inputs));
        let norm_steps = elements(inputs).div_ceil(norm_threads);
        let is_folded = norm_threads > WORKGROUP as u32;
        if self.is_few {
            let quads = inputs / 4;
            constants.extend([
                ("ROUNDS", quads.div_ceil(LANES * self.unroll) as u32),
                ("STAGED_QUADS", quads as u32),
                ("CHAINS", norm_threads / WORKGROUP as u32),
                ("STEPS", norm_steps),
                ("FOLDED", u32::from(is_folded)),
            ]);
        } else {
            constants.extend([
                ("NORM_THREADS", norm_threads),
                ("NORM_STEPS", if norm_steps <= 4 { norm_steps } else { 0 }),
                ("NORM_FOLDED", u32::from(is_folded)),
            ]);
        }
        constants
    }
}
