//! Products of many rows with the bits that each row has among few: for results that do not depend on the batch.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::gpu::Gpu;
use super::kernel::Kernel;
use super::launch::{Argument, Grid, Launch};
use super::linear::Shape;
use super::matrix::Matrix;
use super::{LINEAR_TILES, element};

const THREADS: usize = 256;
const STAGES: usize = 4;
/// Multiples of 32 outputs and of 32 rows that a block takes, largest first, with the most chunks of inputs that it takes
/// between barriers: the smaller the tile, the more.
const TILES: [([usize; 2], usize); 6] = [([4, 8], 1), ([4, 4], 2), ([2, 4], 4), ([1, 4], 4), ([1, 2], 4), ([1, 1], 4)];
const SMALLEST: ([usize; 2], usize) = ([1, 1], 1);

/// `x · weightᵀ + bias + residual`, of operands that [`linear_few_rows`](super::linear_few_rows) could multiply if they were
/// fewer.
pub(super) fn linear_tiles(
    x: &Matrix,
    weight: &Matrix,
    bias: Option<&CubeTensor>,
    residual: Option<&Matrix>,
) -> CubeTensor {
    let out = x.like(weight.rows);
    let ([outputs, rows], span) = tile(x.rows, weight.rows);
    let blocks = [x.rows.div_ceil(32 * rows), weight.rows.div_ceil(32 * outputs), 1];
    let grid = Grid::new(blocks, THREADS).with_shared(shared_bytes([outputs, rows], span));
    let kernel = kernel(x.tensor.dtype, ([outputs, rows], span));
    let shape = Shape {
        rows: x.rows as i32,
        outputs: weight.rows as i32,
        inputs: weight.columns as i32,
        padding: 0,
        x_stride: x.stride as i64,
        weight_stride: weight.stride as i64,
        residual_stride: residual.map_or(0, |residual| residual.stride as i64),
    };
    let launch = Launch::new(kernel, grid).read(&x.tensor).read(&weight.tensor);
    let launch = launch.read_if(bias).read_if(residual.map(|residual| &residual.tensor));
    launch.write(&out).value(Argument::structure(&shape)).submit(&out);
    out
}

/// The largest tile of which there are enough for most multiprocessors, or the one that makes most blocks, with its chunks
/// between barriers. The bits of the result depend on neither.
fn tile(rows: usize, outputs: usize) -> ([usize; 2], usize) {
    let gpu = Gpu::current();
    let blocks = |[m, n]: [usize; 2]| outputs.div_ceil(32 * m) * rows.div_ceil(32 * n);
    // No larger than the rows: what is beyond them is computed for nothing.
    let wanted = fitting(&gpu).filter(|([_, n], _)| *n == 1 || 16 * n < rows);
    let enough = wanted.clone().find(|&(tile, _)| 4 * blocks(tile) >= 3 * gpu.multiprocessors);
    enough.or_else(|| wanted.max_by_key(|&(tile, _)| blocks(tile))).unwrap_or(SMALLEST)
}

/// The tiles for which the GPU has the shared memory, with as many chunks between barriers as it has room for.
fn fitting(gpu: &Gpu) -> impl Iterator<Item = ([usize; 2], usize)> + Clone + use<> {
    let room = gpu.shared_bytes_of_block(1);
    TILES.into_iter().filter_map(move |(tile, span)| {
        let spans = [span, span / 2, 1];
        spans.into_iter().find(|&span| span > 0 && shared_bytes(tile, span) <= room).map(|span| (tile, span))
    })
}

fn kernel(dtype: DType, ([outputs, rows], span): ([usize; 2], usize)) -> Kernel {
    Kernel::new(&LINEAR_TILES, "linear_tiles")
        .word("ELEMENT", element(dtype))
        .number("MT", outputs)
        .number("NT", rows)
        .number("SPAN", span)
}

/// Every kernel that products of this dtype may take.
pub(super) fn kernels(dtype: DType, gpu: &Gpu) -> Vec<Kernel> {
    fitting(gpu).chain([SMALLEST]).map(|tile| kernel(dtype, tile)).collect()
}

/// The ring and the sums of finished passes.
fn shared_bytes([m, n]: [usize; 2], span: usize) -> usize {
    STAGES * span * 32 * (m + n) * 64 + 32 * m * 32 * n * size_of::<f32>()
}
