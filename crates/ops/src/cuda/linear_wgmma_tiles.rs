//! Products of hundreds of rows and more, in the order of sums that few rows have: as fast as the library's, with what comes
//! after them.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use bytemuck::{Pod, Zeroable};

use super::LINEAR_WGMMA_TILES;
use super::activation::with_after;
use super::gpu::Gpu;
use super::kernel::Kernel;
use super::launch::{Argument, Grid, Launch};
use super::linear_wgmma::{SomeRows, groups_of, rows_of};
use crate::backend::Activated;

/// Tiles from which on the kernel is faster than the one for tens of rows.
const TILES_MIN: usize = 96;

/// Rows from which on there are so many whatever the outputs are.
pub(super) const ROWS_FILLED: usize = TILES_MIN * ROWS;

/// What the source divides work into, and its threads.
const ROWS: usize = 128;
const OUTPUTS: usize = 128;
const STAGES: usize = 6;
const THREADS: usize = 384;
/// Blocks of a cluster, where rows are enough for them.
const CLUSTERS: [usize; 2] = [1, 2];
/// Rows that go through all outputs together, so that the second-level cache holds them.
const ROWS_OF_BAND: usize = 2048;

/// `Shape` of the source.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Shape {
    rows: i32,
    width: i32,
    inputs: i32,
    output_tiles: i32,
    row_tiles: i32,
    band: i32,
    residual_stride: i64,
}

/// Whether there are tiles enough for most multiprocessors.
pub(super) fn is_filled([rows, outputs]: [usize; 2]) -> bool {
    rows > ROWS / 2 && rows.div_ceil(ROWS) * outputs.div_ceil(OUTPUTS) >= TILES_MIN
}

pub(super) fn kernel(dtype: DType, activated: Activated, rows: usize) -> Kernel {
    let kernel = Kernel::new(&LINEAR_WGMMA_TILES, "linear_wgmma_tiles");
    with_after(kernel, dtype, activated).number("CLUSTER", cluster(rows))
}

fn cluster(rows: usize) -> usize {
    CLUSTERS[usize::from(rows > ROWS)]
}

/// `Shared` of the source.
fn shared_bytes(activated: Activated) -> usize {
    let columns = if matches!(activated, Activated::Gated(_)) { OUTPUTS / 2 } else { OUTPUTS };
    STAGES * (ROWS + OUTPUTS) * 128 + ROWS * (columns * 2 + 16) + 2 * STAGES * 8
}

pub(super) fn launch(product: SomeRows) -> CubeTensor {
    let (width, is_gated) = (product.width(), product.is_gated());
    let SomeRows { x, weight, bias, residual, activated } = product;
    let out = x.like(width);
    let cluster = cluster(x.rows);
    let (row_tiles, output_tiles) = (x.rows.div_ceil(cluster * ROWS), weight.rows.div_ceil(OUTPUTS));
    let shape = Shape {
        rows: x.rows as i32,
        width: width as i32,
        inputs: weight.columns as i32,
        output_tiles: output_tiles as i32,
        row_tiles: row_tiles as i32,
        band: (ROWS_OF_BAND / (cluster * ROWS)) as i32,
        residual_stride: residual.as_ref().map_or(0, |residual| residual.stride as i64),
    };
    let clusters = (row_tiles * output_tiles).min(Gpu::current().multiprocessors / cluster);
    let grid = Grid::new([clusters * cluster, 1, 1], THREADS).with_shared(shared_bytes(activated));
    let launch = Launch::new(kernel(x.tensor.dtype, activated, x.rows), grid)
        .read_mapped(&x.tensor, rows_of(&x, ROWS))
        .read_mapped(&weight.tensor, groups_of(&weight, is_gated, OUTPUTS / cluster));
    let launch = launch.read_if(bias.as_ref()).read_if(residual.as_ref().map(|residual| &residual.tensor));
    launch.write(&out).value(Argument::structure(&shape)).submit(&out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Activation;

    #[test]
    fn a_block_has_the_shared_memory_that_the_source_divides() {
        let [gpu, _] = Gpu::of_architecture(90);
        assert!(shared_bytes(Activated::Not) <= gpu.shared_bytes_of_block(1));
        assert!(shared_bytes(Activated::Gated(Activation::Silu)) < shared_bytes(Activated::Not));
    }
}
