//! Products of tens to hundreds of rows with small weights, with the asynchronous matrix instructions of Hopper.
//!
//! The library's kernels for these take longer than reading the weights by far, and start only when the kernel before them
//! has ended; ours asks for its weights before, and does what comes after the product. The order of a sum follows from the
//! number of rows, as the library's does.

use std::ops::RangeInclusive;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use bytemuck::{Pod, Zeroable};

use super::activation::name;
use super::gpu::{Gpu, is_batch_invariant};
use super::kernel::Kernel;
use super::launch::{Argument, Grid, Launch};
use super::linear_few_rows::FEW_ROWS;
use super::matrix::{Matrix, Weights, on_16_bytes, widest};
use super::tensor_map::TensorMap;
use super::{LINEAR_WGMMA, element};
use crate::activation::Activation;
use crate::backend::Activated;

/// Rows of x for which the kernel is faster than the one for few rows, and than the library and a kernel for the activation:
/// these with weights of up to so many numbers, those with larger ones.
const ROWS: RangeInclusive<usize> = FEW_ROWS + 1..=256;
const SMALL_WEIGHT: usize = 8_000_000;
const ROWS_OF_LARGE_WEIGHTS: RangeInclusive<usize> = 33..=64;
const LARGE_WEIGHT: usize = 120_000_000;

/// What the source divides work into: outputs of a block, inputs of a chunk; and its threads.
const OUTPUTS: usize = 64;
const CHUNK: usize = 64;
const THREADS: usize = 192;
const CONSUMERS: usize = 128;
/// Rows of x that a block may take, with the stages of weights and of x that its shared memory then has room for, with 1, 2, 4
/// and 8 blocks that share inputs. Of more rows there are tiles enough for two.
const TILES: [(usize, &[(usize, usize)]); 3] =
    [(64, &[(8, 6), (7, 6), (7, 5), (6, 6)]), (96, &[(6, 5), (5, 5)]), (128, &[(6, 4), (4, 4)])];
/// How work is divided, so that measured times are within 2 % of those of the best division in the mean: the fewest rows for
/// which there are so many tiles at most, and shared inputs until a block has so few chunks and there are so many blocks.
const TILES_MAX: usize = 96;
const BLOCKS_MAX: usize = 192;
const BLOCKS_WANTED: usize = 44;
const CHUNKS_WANTED: usize = 8;
/// Shared memory of a block, so that the next kernel's has room beside it.
const SHARED_BYTES_MAX: usize = 113 << 10;

/// `Shape` of the source.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Shape {
    rows: i32,
    width: i32,
    inputs: i32,
    padding: i32,
    residual_stride: i64,
}

/// A product that [`fits`].
pub(super) struct SomeRows {
    pub x: Matrix,
    pub weight: Matrix,
    pub bias: Option<CubeTensor>,
    pub residual: Option<Matrix>,
    pub activated: Activated,
}

/// What decides how a call is compiled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub dtype: DType,
    pub activated: Activated,
    pub rows: usize,
    pub outputs: usize,
    pub inputs: usize,
}

/// How the work is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Division {
    /// Rows of x that a block takes.
    rows: usize,
    /// Blocks that share the inputs.
    split: usize,
    weight_stages: usize,
    x_stages: usize,
}

impl Form {
    fn division(&self) -> Division {
        let tiles = |rows: usize| self.outputs.div_ceil(OUTPUTS) * self.rows.div_ceil(rows);
        let first = TILES.into_iter().find(|&(rows, _)| tiles(rows) <= TILES_MAX);
        let least_read = || TILES.into_iter().min_by_key(|&(rows, _)| tiles(rows) * (OUTPUTS + rows));
        let (rows, stages) = first.or_else(least_read).expect("there are tiles");
        let (tiles, chunks) = (tiles(rows), self.inputs.div_ceil(CHUNK));
        let (mut split, mut choice) = (1, 0);
        while choice + 1 < stages.len()
            && (chunks.div_ceil(split) > CHUNKS_WANTED || tiles * split < BLOCKS_WANTED)
            && tiles * split * 2 <= BLOCKS_MAX
            && chunks >= 4 * split
        {
            (split, choice) = (2 * split, choice + 1);
        }
        let (weight_stages, x_stages) = stages[choice];
        Division { rows, split, weight_stages, x_stages }
    }

    fn kernel(&self, division: Division) -> Kernel {
        let (after, kind) = match self.activated {
            Activated::Not => ("STORE", Activation::Relu),
            Activated::All(kind) => ("ACTIVATE", kind),
            Activated::Gated(kind) => ("GATE", kind),
        };
        Kernel::new(&LINEAR_WGMMA, "linear_wgmma")
            .word("ELEMENT", element(self.dtype))
            .word("AFTER", after)
            .word("KIND", name(kind))
            .number("ROWS", division.rows)
            .number("SPLIT", division.split)
            .number("WEIGHT_STAGES", division.weight_stages)
            .number("X_STAGES", division.x_stages)
    }
}

/// Every kernel that products of these may take.
pub(super) fn kernels(dtype: DType, activated: Activated, [outputs, inputs]: [usize; 2], gpu: &Gpu) -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::new();
    for rows in ROWS.filter(|&rows| is_for(dtype, [rows, outputs, inputs], gpu)) {
        let form = Form { dtype, activated, rows, outputs, inputs };
        let kernel = form.kernel(form.division());
        if !kernels.contains(&kernel) {
            kernels.push(kernel);
        }
    }
    kernels
}

/// Whether the kernel is to multiply these.
pub(super) fn fits(x: &Matrix, Weights { matrix: weight, scales }: &Weights, residual: Option<&Matrix>) -> bool {
    let dtype = x.tensor.dtype;
    scales.is_none()
        && weight.tensor.dtype == dtype
        && !is_batch_invariant()
        && is_for(dtype, [x.rows, weight.rows, weight.columns], &Gpu::current())
        && x.has_groups_of(widest(dtype))
        && weight.has_groups_of(widest(dtype))
        && residual
            .is_none_or(|residual| on_16_bytes(&residual.tensor) && residual.stride.is_multiple_of(widest(dtype)))
}

/// Whether the kernel is for products of this size here.
pub(super) fn is_for(dtype: DType, [rows, outputs, inputs]: [usize; 3], gpu: &Gpu) -> bool {
    let largest = if ROWS_OF_LARGE_WEIGHTS.contains(&rows) { LARGE_WEIGHT } else { SMALL_WEIGHT };
    gpu.capability == 90
        && ROWS.contains(&rows)
        && gpu.shared_bytes_of_block(1) >= SHARED_BYTES_MAX
        && matches!(dtype, DType::F16 | DType::BF16)
        && (1..=largest).contains(&(outputs * inputs))
        && outputs.is_multiple_of(16)
        && inputs.is_multiple_of(8)
}

/// `Shared` of the source.
fn shared_bytes(rows: usize, split: usize, (weight_stages, x_stages): (usize, usize)) -> usize {
    let rings = (weight_stages * OUTPUTS + x_stages * rows) * CHUNK * 2;
    let received = if split == 1 { 16 } else { (split - 1) * (rows / 2 / split) * CONSUMERS * size_of::<f32>() };
    rings + received + (2 * weight_stages + 2 * x_stages + 1) * 8
}

impl SomeRows {
    pub(super) fn run(self) -> CubeTensor {
        let Self { x, weight, bias, residual, activated } = self;
        let form =
            Form { dtype: x.tensor.dtype, activated, rows: x.rows, outputs: weight.rows, inputs: weight.columns };
        let division = form.division();
        let is_gated = matches!(activated, Activated::Gated(_));
        let width = if is_gated { weight.rows / 2 } else { weight.rows };
        let out = x.like(width);
        let shape = Shape {
            rows: x.rows as i32,
            width: width as i32,
            inputs: weight.columns as i32,
            padding: 0,
            residual_stride: residual.as_ref().map_or(0, |residual| residual.stride as i64),
        };
        let read = |launch: Launch, tensor: Option<&CubeTensor>| match tensor {
            Some(tensor) => launch.read(tensor),
            None => launch.value(Argument::Null),
        };
        let launch = Launch::new(form.kernel(division), division.grid(&form))
            .read_mapped(&x.tensor, rows_of(&x, division.rows))
            .read_mapped(&weight.tensor, groups_of(&weight, is_gated));
        let launch = read(read(launch, bias.as_ref()), residual.as_ref().map(|residual| &residual.tensor));
        launch.write(&out).value(Argument::structure(&shape)).submit(&out);
        out
    }
}

impl Division {
    fn grid(&self, form: &Form) -> Grid {
        let blocks = [self.split, form.outputs.div_ceil(OUTPUTS), form.rows.div_ceil(self.rows)];
        // The source itself says what its clusters are.
        Grid::new(blocks, THREADS).with_shared(shared_bytes(self.rows, self.split, (self.weight_stages, self.x_stages)))
    }
}

/// A chunk of inputs of a block's rows of x.
fn rows_of(x: &Matrix, rows: usize) -> TensorMap {
    TensorMap::new(x.tensor.dtype).dimension(x.columns, 1, CHUNK).dimension(x.rows, x.stride, rows)
}

/// A chunk of inputs of a block's outputs: by turns 8 and 8 that are `apart`, gates and their values or neighbours.
fn groups_of(weight: &Matrix, is_gated: bool) -> TensorMap {
    let (apart, next) = if is_gated { (weight.rows / 2, 8) } else { (8, 16) };
    TensorMap::new(weight.tensor.dtype)
        .dimension(weight.columns, 1, CHUNK)
        .dimension(8, weight.stride, 8)
        .dimension(2, apart * weight.stride, 2)
        .dimension(weight.rows / 16, next * weight.stride, OUTPUTS / 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_division_leaves_room_for_the_next_kernel() {
        for (rows, stages) in TILES {
            for (index, &stages) in stages.iter().enumerate() {
                let bytes = shared_bytes(rows, 1 << index, stages);
                assert!(bytes <= SHARED_BYTES_MAX, "{rows} rows, {} blocks: {bytes}", 1 << index);
                // The instruction takes rows by eights.
                assert!((rows >> index).is_multiple_of(8));
            }
        }
    }

    #[test]
    fn blocks_are_as_many_as_measured_best() {
        let division = |rows, outputs, inputs| {
            let form = Form { dtype: DType::BF16, activated: Activated::Not, rows, outputs, inputs };
            let division = form.division();
            (division.rows, division.split)
        };
        // Qwen3-0.6B.
        assert_eq!([64, 128, 256].map(|rows| division(rows, 4096, 1024)), [(64, 2), (128, 2), (128, 1)]);
        assert_eq!([64, 128, 256].map(|rows| division(rows, 1024, 3072)), [(64, 8), (64, 4), (64, 2)]);
        assert_eq!([64, 128, 256].map(|rows| division(rows, 6144, 1024)), [(64, 2), (128, 2), (128, 1)]);
        // SmolLM2-135M.
        assert_eq!([32, 64, 96, 256].map(|rows| division(rows, 576, 576)), [(64, 4), (64, 4), (64, 4), (64, 2)]);
    }
}
