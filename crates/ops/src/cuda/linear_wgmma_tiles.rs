//! Products of hundreds of rows and more with what comes after them in the same kernel, as fast as the library's alone; or in
//! the order of sums that few rows have.

use burn_cubecl::tensor::CubeTensor;
use bytemuck::{Pod, Zeroable};

use super::LINEAR_WGMMA_TILES;
use super::gpu::Gpu;
use super::kernel::Kernel;
use super::launch::{Argument, Grid, Launch};
use super::linear_wgmma::{self, Form, SMALL_WEIGHT, SomeRows, groups_of, rows_of};
use super::rope_and_store_kv::Heads;
use crate::backend::Activated;

/// Tiles from which on the kernel is faster than the one for tens of rows, in the order of few.
const TILES_MIN: usize = 96;
/// Rows from which on it is faster than the one for tens of rows, with small weights, and than the library and a kernel for what
/// comes after, with larger ones; and the part of the time in which multiprocessors have something to do then.
const ROWS_MIN: usize = *linear_wgmma::ROWS.end() + 1;
const ROWS_MIN_LARGE: usize = 4096;
const SHARE_MIN: f64 = 0.8;

/// Rows from which on any are as many.
pub(super) const ROWS_FILLED: usize = TILES_MIN * ROWS;

/// What the source divides work into, and its threads.
const ROWS: usize = 128;
const OUTPUTS: usize = 128;
/// Of gates, where they take no longer than with fewer: they read less for as many products. A multiplication then takes less
/// energy, and where energy is what limits it, 5 % less time.
const OUTPUTS_OF_GATES: usize = 192;
const TIME_OF_WIDE: f64 = 0.95;
const THREADS: usize = 384;
/// Of an H200, for which was measured how work is divided.
pub(super) const MULTIPROCESSORS: usize = 132;
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

/// Whether such a product is for this kernel.
pub(super) fn takes(form: &Form) -> bool {
    let rows_min = if form.outputs * form.inputs <= SMALL_WEIGHT { ROWS_MIN } else { ROWS_MIN_LARGE };
    let is_plain = form.heads.is_none() && matches!(form.activated, Activated::Not);
    match form.ordered {
        true => form.heads.is_none() && is_filled([form.rows, form.outputs]),
        false => !is_plain && form.rows >= rows_min && share_at_work(form) >= SHARE_MIN,
    }
}

/// Tiles of clusters, and how many of them each cluster takes at most, if there are 132 multiprocessors.
fn tiles(form: &Form, outputs: usize) -> (usize, usize) {
    let together = MULTIPROCESSORS / cluster(form.rows);
    let tiles = form.rows.div_ceil(cluster(form.rows) * ROWS) * form.outputs.div_ceil(outputs);
    (tiles, tiles.div_ceil(together))
}

/// The part of the time in which multiprocessors have a tile, if each takes as long.
fn share_at_work(form: &Form) -> f64 {
    let (tiles, rounds) = tiles(form, outputs_of_tile(form));
    tiles as f64 / (rounds * (MULTIPROCESSORS / cluster(form.rows))) as f64
}

/// Outputs of a tile; the same for all rows from [`ROWS_FILLED`] on.
pub(super) fn outputs_of_tile(form: &Form) -> usize {
    let form = Form { rows: form.rows.min(ROWS_FILLED), ..*form };
    let time = |outputs| (tiles(&form, outputs).1 * outputs) as f64;
    let is_gated = matches!(form.activated, Activated::Gated(_)) && !form.ordered && form.rows > ROWS;
    let is_wide = is_gated && time(OUTPUTS_OF_GATES) * TIME_OF_WIDE <= time(OUTPUTS);
    if is_wide { OUTPUTS_OF_GATES } else { OUTPUTS }
}

pub(super) fn kernel(form: &Form) -> Kernel {
    form.with_operation(Kernel::new(&LINEAR_WGMMA_TILES, "linear_wgmma_tiles"))
        .number("CLUSTER", cluster(form.rows))
        .number("ORDERED", form.ordered.into())
        .number("OUTPUTS", outputs_of_tile(form))
}

fn cluster(rows: usize) -> usize {
    CLUSTERS[usize::from(rows > ROWS)]
}

/// `Shared` of the source, for tiles of so many outputs.
fn shared_bytes(activated: Activated, outputs: usize) -> usize {
    let columns = if matches!(activated, Activated::Gated(_)) { outputs / 2 } else { outputs };
    let stages = if outputs == OUTPUTS { 6 } else { 5 };
    stages * (ROWS + outputs) * 128 + ROWS * (columns * 2 + 16) + 2 * stages * 8
}

pub(super) fn launch(form: &Form, product: SomeRows, heads: Option<Heads>, out: &CubeTensor) {
    let (width, is_gated) = (product.width(), product.is_gated());
    let SomeRows { x, norm: _, weight, bias, residual, activated } = product;
    let (cluster, outputs) = (cluster(x.rows), outputs_of_tile(form));
    let (row_tiles, output_tiles) = (x.rows.div_ceil(cluster * ROWS), weight.rows.div_ceil(outputs));
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
    let grid =
        Grid::new([clusters * cluster, 1, 1], THREADS).with_shared(shared_bytes(activated, outputs)).starting_early();
    let launch = Launch::new(kernel(form), grid)
        .read_mapped(&x.tensor, rows_of(&x, ROWS))
        .read_mapped(&weight.tensor, groups_of(&weight, is_gated, outputs / cluster));
    let launch = launch.read_if(bias.as_ref()).read_if(residual.as_ref().map(|residual| &residual.tensor));
    Heads::submit(heads, launch.write(out), Argument::structure(&shape), out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Activation;

    #[test]
    fn a_block_has_the_shared_memory_that_the_source_divides() {
        let [gpu, _] = Gpu::of_architecture(90);
        assert!(shared_bytes(Activated::Not, OUTPUTS) <= gpu.shared_bytes_of_block(1));
        assert!(shared_bytes(Activated::Gated(Activation::Silu), OUTPUTS_OF_GATES) <= gpu.shared_bytes_of_block(1));
    }
}
