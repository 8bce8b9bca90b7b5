//! Products of tens to hundreds of rows with small weights, with the asynchronous matrix instructions of Hopper.
//!
//! The library's kernels for these take longer than reading the weights by far, and start only when the kernel before them
//! has ended; ours asks for its weights before, and does what comes after the product. The order of a sum follows from the
//! number of rows, as the library's does, or is that of [`linear_few_rows`](super::linear_few_rows) where bits must not depend
//! on the batch.

use std::ops::RangeInclusive;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use bytemuck::{Pod, Zeroable};

use super::activation::with_after;
use super::gpu::{Gpu, is_batch_invariant};
use super::kernel::Kernel;
use super::launch::{Argument, Grid, Launch};
use super::linear_few_rows::FEW_ROWS;
use super::linear_wgmma_tiles::{self, MULTIPROCESSORS};
use super::matrix::{Matrix, Weights, empty, on_16_bytes, widest};
use super::rope_and_store_kv::Heads;
use super::tensor_map::TensorMap;
use super::{LINEAR_WGMMA, element};
use crate::backend::Activated;
use crate::cube::QkvTarget;
use crate::rope_and_store_kv::QkvOptions;

/// Rows of x for which the kernel is faster than the one for few rows, and than the library or tiles and kernels for the norms:
/// with weights of up to so many numbers, with larger and with the largest ones.
pub(super) const ROWS: RangeInclusive<usize> = FEW_ROWS + 1..=640;
pub(super) const SMALL_WEIGHT: usize = 8_000_000;
const ROWS_OF_LARGE_WEIGHTS: RangeInclusive<usize> = FEW_ROWS + 1..=64;
const LARGE_WEIGHT: usize = 60_000_000;
const ROWS_OF_LARGEST_WEIGHTS: RangeInclusive<usize> = 33..=64;
const LARGEST_WEIGHT: usize = 120_000_000;

/// What the source divides work into: outputs of a warpgroup, inputs of a chunk; and threads, of a warpgroup and of those that
/// copy.
const OUTPUTS: usize = 64;
const CHUNK: usize = 64;
const PRODUCERS: usize = 64;
const CONSUMERS: usize = 128;
/// Rows of x that a block takes, with the stages of weights and of x that its shared memory then has room for, with 1, 2, 4
/// and 8 blocks that share inputs.
type Tile = (usize, &'static [(usize, usize)]);
/// Of more rows there are tiles enough for two.
const TILES: [Tile; 3] = [(64, &[(8, 6), (7, 6), (7, 5), (6, 6)]), (96, &[(6, 5), (5, 5)]), (128, &[(6, 4), (4, 4)])];
/// Of two warpgroups, which have a head of 128 elements.
const TILES_OF_TWO: [Tile; 3] = [(64, &[(5, 4), (4, 4)]), (96, &[(4, 4)]), (128, &[(4, 3)])];
/// Stages, with one warpgroup and with two, of the blocks of 64 rows of which two share inputs, where each has a multiprocessor to
/// itself and twice the chunks that would be under way: more of those then save more time than the next kernel's head start.
const STAGES_ALONE: [(usize, usize); 2] = [(9, 8), (9, 6)];
/// How work is divided: inputs are shared until a block has so few chunks and there are so many blocks, and as long as there are
/// no more than so many, or of pairs that share long inputs so many; and of the tiles those are taken that are predicted to take
/// [least](Division::microseconds). Measured times are within 2 % of those of the best division in the mean.
const CHUNKS_WANTED: usize = 7;
const BLOCKS_WANTED: usize = 44;
const BLOCKS_MAX: usize = 192;
const CHUNKS_OF_LONG: usize = 28;
const BLOCKS_MAX_OF_LONG: usize = 256;
/// In order, blocks that share inputs have equal numbers of the pairs of sums that there are: rows of x that a block may take,
/// and the stages with 1, 2 and 4 blocks. Measured best: 4 blocks share where so many are all, 2 up to so many tiles, more of
/// them with long inputs, and with few rows of such always.
const TILES_IN_ORDER: [Tile; 2] = [(64, &[(8, 6), (6, 6), (7, 5)]), (128, &[(6, 4)])];
const TILE_IN_ORDER_OF_TWO: Tile = (64, &[(5, 4), (3, 4), (3, 4)]);
const BLOCKS_OF_FOUR: usize = 192;
const TILES_SHARED: usize = 100;
const TILES_SHARED_LONG: usize = 132;
const INPUTS_SHARED: usize = 2048;
/// Of sums that are added up last.
const PAIRS: usize = 4;
/// Rows up to which any number may be divided differently: a multiple of every tile's.
const DENSE_ROWS: usize = 768;
/// Elements of heads that the kernels here finish.
const HEADS: [usize; 2] = [64, 128];
/// Shared memory of a block at most.
const SHARED_BYTES_OF_ONE: usize = 227 << 10;

/// `Shape` of the source.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Shape {
    rows: i32,
    width: i32,
    inputs: i32,
    eps: f32,
    residual_stride: i64,
}

/// A norm by root mean square of rows that its weight has been multiplied into: each is still to be divided.
#[derive(Clone)]
pub(super) struct UnfinishedNorm {
    /// Sums of the squares of each 64 elements of the rows, `[M, ceil(K / 64)]`, padded with zeros to fours.
    pub squares: CubeTensor,
    /// Added to the mean of the squares.
    pub eps: f32,
}

/// What a product leaves for the norm of its rows.
struct Prepared {
    norm_weight: CubeTensor,
    scaled: CubeTensor,
    squares: CubeTensor,
}

/// A product that [`fits`].
pub(super) struct SomeRows {
    pub x: Matrix,
    /// What `x` lacks.
    pub norm: Option<UnfinishedNorm>,
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
    /// Whether sums have the order that they have among few rows.
    pub ordered: bool,
    /// Where the outputs are heads that are to be finished in the kernel: the elements of one, and the dtype of the cache.
    pub heads: Option<(usize, DType)>,
}

/// How the work is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Division {
    /// Each of which has 64 outputs.
    warpgroups: usize,
    /// Rows of x that a block takes.
    rows: usize,
    /// Blocks that share the inputs.
    split: usize,
    weight_stages: usize,
    x_stages: usize,
}

impl Form {
    fn division(&self) -> Division {
        if self.ordered {
            return self.division_in_order();
        }
        let tiles = if self.warpgroups() == 1 { TILES } else { TILES_OF_TWO };
        let divisions = tiles.map(|tile| self.divided_in(tile));
        let chosen = divisions.into_iter().min_by(|a, b| a.microseconds(self).total_cmp(&b.microseconds(self)));
        chosen.expect("there are tiles")
    }

    fn divided_in(&self, (rows, stages): Tile) -> Division {
        let warpgroups = self.warpgroups();
        let tiles = self.outputs.div_ceil(OUTPUTS * warpgroups) * self.rows.div_ceil(rows);
        let chunks = self.inputs.div_ceil(CHUNK);
        let (mut split, mut choice) = (1, 0);
        while choice + 1 < stages.len()
            && (chunks.div_ceil(split) > CHUNKS_WANTED || tiles * split < BLOCKS_WANTED)
            && tiles * split * 2 <= if split == 1 && chunks >= CHUNKS_OF_LONG { BLOCKS_MAX_OF_LONG } else { BLOCKS_MAX }
            && chunks >= 4 * split
        {
            (split, choice) = (2 * split, choice + 1);
        }
        let (weight_stages, x_stages) = stages[choice];
        let is_alone =
            rows == 64 && split == 2 && tiles * split <= MULTIPROCESSORS && chunks.div_ceil(split) >= 2 * weight_stages;
        let (weight_stages, x_stages) = if is_alone { STAGES_ALONE[warpgroups - 1] } else { (weight_stages, x_stages) };
        Division { warpgroups, rows, split, weight_stages, x_stages }
    }

    fn division_in_order(&self) -> Division {
        let tiles = self.outputs.div_ceil(OUTPUTS * self.warpgroups()) * self.rows.div_ceil(TILES_IN_ORDER[0].0);
        let is_long = self.inputs >= INPUTS_SHARED;
        let (choice, split_log2) = if 4 * tiles <= BLOCKS_OF_FOUR {
            (0, 2)
        } else if tiles <= TILES_SHARED || is_long && (tiles <= TILES_SHARED_LONG || self.rows <= 64) {
            (0, 1)
        } else {
            (usize::from(self.rows > 64), 0)
        };
        let warpgroups = self.warpgroups();
        let (rows, stages) = if warpgroups == 1 { TILES_IN_ORDER[choice] } else { TILE_IN_ORDER_OF_TWO };
        let (weight_stages, x_stages) = stages[split_log2];
        Division { warpgroups, rows, split: 1 << split_log2, weight_stages, x_stages }
    }

    fn kernel(&self, division: Division) -> Kernel {
        self.with_operation(Kernel::new(&LINEAR_WGMMA, "linear_wgmma"))
            .number("WARPGROUPS", division.warpgroups)
            .number("ROWS", division.rows)
            .number("SPLIT", division.split)
            .number("WEIGHT_STAGES", division.weight_stages)
            .number("X_STAGES", division.x_stages)
            .number("ORDERED", self.ordered.into())
    }

    /// With what comes after the product, as both sources here are told.
    pub(super) fn with_operation(&self, kernel: Kernel) -> Kernel {
        let kernel = match self.heads {
            None => with_after(kernel, self.dtype, self.activated),
            Some(_) => kernel.word("ELEMENT", element(self.dtype)).word("AFTER", "ROTATE").word("KIND", "RELU"),
        };
        let (head_dim, cache) = self.heads.unwrap_or((HEADS[0], self.dtype));
        kernel.number("HEAD", head_dim).word("CACHE", element(cache))
    }

    /// Of a block, which has all of a head.
    fn warpgroups(&self) -> usize {
        self.heads.map_or(1, |(head_dim, _)| head_dim / OUTPUTS)
    }

    /// Whether heads, if outputs are such, are of those that can be finished.
    fn can_finish(&self) -> bool {
        self.heads.is_none_or(|(head_dim, cache)| {
            HEADS.contains(&head_dim) && self.outputs.is_multiple_of(head_dim) && widest(cache) == widest(self.dtype)
        })
    }

    /// The variant that is launched.
    fn variant(&self) -> Kernel {
        if self.is_of_tens() { self.kernel(self.division()) } else { linear_wgmma_tiles::kernel(self) }
    }

    /// Whether any kernel here is for these on this GPU.
    pub(super) fn is_taken(&self, gpu: &Gpu) -> bool {
        self.rows > FEW_ROWS
            && keeps_order(self.dtype, [self.outputs, self.inputs], gpu)
            && self.can_finish()
            && (self.is_of_tens() || linear_wgmma_tiles::takes(self))
    }

    /// Whether norms between such products are prepared by the one and finished by the other: in 16 bits whose range rows times
    /// weights do not leave, and where no order is promised.
    fn shares_norms(&self) -> bool {
        self.is_of_tens() && !self.ordered && self.dtype == DType::BF16
    }

    /// Whether the kernel prepares the norm of its rows.
    fn prepares_norms(&self) -> bool {
        self.shares_norms() && !self.finishes_norms()
    }

    /// Whether the kernel finishes that of its inputs: no kernel does both.
    fn finishes_norms(&self) -> bool {
        self.shares_norms() && (self.heads.is_some() || !matches!(self.activated, Activated::Not))
    }

    /// Whether rows are as many as the kernel of this file is for.
    fn is_of_tens(&self) -> bool {
        let weight = self.outputs * self.inputs;
        match self.ordered {
            true => !linear_wgmma_tiles::is_filled([self.rows, self.outputs]),
            false if weight <= SMALL_WEIGHT => ROWS.contains(&self.rows),
            false if weight <= LARGE_WEIGHT => ROWS_OF_LARGE_WEIGHTS.contains(&self.rows),
            false => weight <= LARGEST_WEIGHT && ROWS_OF_LARGEST_WEIGHTS.contains(&self.rows),
        }
    }
}

/// Whether the GPU has kernels for many rows that sum in the order of few rows, for weights of this size.
pub(super) fn keeps_order(dtype: DType, [outputs, inputs]: [usize; 2], gpu: &Gpu) -> bool {
    gpu.capability == 90
        && gpu.shared_bytes_of_block(1) >= SHARED_BYTES_OF_ONE
        && matches!(dtype, DType::F16 | DType::BF16)
        && outputs > 0
        && inputs > 0
        && outputs.is_multiple_of(16)
        && inputs.is_multiple_of(8)
}

/// Every kernel that such products may take, with any number of rows.
pub(super) fn kernels(form: Form, gpu: &Gpu) -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::new();
    // Beyond, divisions change with whole tiles.
    let many = (DENSE_ROWS..=linear_wgmma_tiles::ROWS_FILLED).step_by(64);
    for rows in (FEW_ROWS + 1..DENSE_ROWS).chain(many) {
        let form = Form { rows, ..form };
        let kernel = form.is_taken(gpu).then(|| form.variant());
        kernels.extend(kernel.filter(|kernel| !kernels.contains(kernel)));
    }
    kernels
}

/// Whether a kernel here is to multiply these.
pub(super) fn fits(
    x: &Matrix,
    Weights { matrix: weight, scales }: &Weights,
    residual: Option<&Matrix>,
    activated: Activated,
) -> bool {
    let dtype = x.tensor.dtype;
    scales.is_none()
        && can_be_copied(x, weight)
        && Form::of(x, weight, activated).is_taken(&Gpu::current())
        && residual
            .is_none_or(|residual| on_16_bytes(&residual.tensor) && residual.stride.is_multiple_of(widest(dtype)))
}

/// Whether the kernel of such a product finishes norms of `x` that were prepared.
pub(super) fn finishes_norms(x: &Matrix, weights: &Weights, residual: Option<&Matrix>, activated: Activated) -> bool {
    fits(x, weights, residual, activated) && Form::of(x, &weights.matrix, activated).finishes_norms()
}

/// Whether bulk copies take chunks of both.
fn can_be_copied(x: &Matrix, weight: &Matrix) -> bool {
    let dtype = x.tensor.dtype;
    weight.tensor.dtype == dtype && x.has_groups_of(widest(dtype)) && weight.has_groups_of(widest(dtype))
}

/// A product whose rows are queries, keys and values, with what [`rope_and_store_kv`](super::rope_and_store_kv) does with them in
/// the same kernel.
pub(super) struct HeadsProduct<'a> {
    form: Form,
    heads: Heads<'a>,
    out: CubeTensor,
}

impl<'a> HeadsProduct<'a> {
    /// `None` where that would be slower, or is not to be had.
    pub(super) fn of(x: &Matrix, Weights { matrix: weight, scales }: &Weights, target: &'a QkvTarget) -> Option<Self> {
        let QkvOptions { heads, rotary_dim, .. } = target.options;
        let form =
            Form { heads: Some((heads.head_dim, target.key_cache.dtype)), ..Form::of(x, weight, Activated::Not) };
        let is_taken = scales.is_none()
            && [0, heads.head_dim].contains(&rotary_dim)
            && can_be_copied(x, weight)
            && form.is_taken(&Gpu::current());
        if !is_taken {
            return None;
        }
        let out = Matrix::of(x.like(weight.rows));
        let heads = Heads::of(&out, target)?;
        Some(Self { form, heads, out: out.tensor })
    }

    /// Whether norms of `x` that were prepared are finished.
    pub(super) fn finishes_norms(&self) -> bool {
        self.form.finishes_norms()
    }

    pub(super) fn run(self, product: SomeRows) -> CubeTensor {
        product.launch(&self.form, Some(self.heads), None, &self.out);
        self.out
    }
}

impl Form {
    fn of(x: &Matrix, weight: &Matrix, activated: Activated) -> Self {
        Self {
            dtype: x.tensor.dtype,
            activated,
            rows: x.rows,
            outputs: weight.rows,
            inputs: weight.columns,
            ordered: is_batch_invariant(),
            heads: None,
        }
    }
}

impl SomeRows {
    pub(super) fn is_gated(&self) -> bool {
        matches!(self.activated, Activated::Gated(_))
    }

    /// Columns of the result.
    pub(super) fn width(&self) -> usize {
        if self.is_gated() { self.weight.rows / 2 } else { self.weight.rows }
    }

    pub(super) fn run(self) -> CubeTensor {
        let (form, out) = (Form::of(&self.x, &self.weight, self.activated), self.x.like(self.width()));
        self.launch(&form, None, None, &out);
        out
    }

    /// Also the rows times the weight of their norm and the sums of their squares, where those are
    /// [prepared](Form::prepares_norms).
    pub(super) fn run_for_norm(self, norm_weight: CubeTensor) -> (CubeTensor, Option<(CubeTensor, CubeTensor)>) {
        let form = Form::of(&self.x, &self.weight, self.activated);
        if !form.prepares_norms() || !on_16_bytes(&norm_weight) {
            return (self.run(), None);
        }
        let [out, scaled] = [0; 2].map(|_| self.x.like(self.width()));
        let tiles = self.width().div_ceil(OUTPUTS).next_multiple_of(4);
        let squares = empty(&self.x.tensor, [self.x.rows, tiles], DType::F32);
        let prepared = Prepared { norm_weight, scaled: scaled.clone(), squares: squares.clone() };
        self.launch(&form, None, Some(prepared), &out);
        (out, Some((scaled, squares)))
    }

    fn launch(self, form: &Form, heads: Option<Heads>, prepared: Option<Prepared>, out: &CubeTensor) {
        if form.is_of_tens() {
            self.launch_tens(form, heads, prepared, out);
        } else {
            linear_wgmma_tiles::launch(form, self, heads, out);
        }
    }

    fn launch_tens(self, form: &Form, heads: Option<Heads>, prepared: Option<Prepared>, out: &CubeTensor) {
        let (width, is_gated) = (self.width(), self.is_gated());
        let Self { x, norm, weight, bias, residual, .. } = self;
        let division = form.division();
        let shape = Shape {
            rows: x.rows as i32,
            width: width as i32,
            inputs: weight.columns as i32,
            eps: norm.as_ref().map_or(0.0, |norm| norm.eps),
            residual_stride: residual.as_ref().map_or(0, |residual| residual.stride as i64),
        };
        let launch = Launch::new(form.kernel(division), division.grid(form))
            .read_mapped(&x.tensor, rows_of(&x, division.rows.min(x.rows)))
            .read_mapped(&weight.tensor, groups_of(&weight, is_gated, division.outputs()));
        let launch = launch.read_if(bias.as_ref()).read_if(residual.as_ref().map(|residual| &residual.tensor));
        let launch = launch.read_if(norm.as_ref().map(|norm| &norm.squares));
        let launch = match &prepared {
            Some(Prepared { norm_weight, scaled, squares }) => launch.read(norm_weight).write(scaled).write(squares),
            None => launch.absent(3),
        };
        Heads::submit(heads, launch.write(out), Argument::structure(&shape), out);
    }
}

impl Division {
    /// What it takes, but for what all take: the multiplications of the multiprocessor with most blocks, handing sums over, and
    /// finishing rows. The constants are fitted to 2,379 measurements of 16 products of 32 to 640 rows on an H200.
    /// With two warpgroups they choose the fastest tiles of Qwen3-0.6B's heads for eight numbers of rows from 128 to 640.
    fn microseconds(&self, form: &Form) -> f64 {
        let Self { warpgroups, rows, split, .. } = *self;
        let blocks = self.blocks(form);
        // Two at a time take little longer than one.
        let most = blocks.div_ceil(MULTIPROCESSORS);
        let two = if warpgroups == 1 { 1.2 } else { 1.7 };
        let in_turn = (most % 2) as f64 + (most / 2) as f64 * two;
        let chunk = 0.0014 * (self.outputs() + rows) as f64;
        let handing_over = if split > 1 { 0.8 } else { 0.0 };
        let chunks = form.inputs.div_ceil(CHUNK).div_ceil(split);
        handing_over + 0.009 * (rows / split) as f64 + in_turn * chunk * chunks as f64
    }

    /// Of a block.
    fn outputs(&self) -> usize {
        self.warpgroups * OUTPUTS
    }

    fn tiles(&self, form: &Form) -> usize {
        form.outputs.div_ceil(self.outputs()) * form.rows.div_ceil(self.rows)
    }

    fn blocks(&self, form: &Form) -> usize {
        self.split * self.tiles(form)
    }

    fn grid(&self, form: &Form) -> Grid {
        let blocks = [self.split, form.outputs.div_ceil(self.outputs()), form.rows.div_ceil(self.rows)];
        // The source itself says what its clusters are.
        Grid::new(blocks, self.warpgroups * CONSUMERS + PRODUCERS).with_shared(self.shared_bytes(form.ordered))
    }

    /// `Shared` of the source.
    fn shared_bytes(&self, ordered: bool) -> usize {
        let Self { warpgroups, rows, split, weight_stages, x_stages } = *self;
        let rings = (weight_stages * self.outputs() + x_stages * rows) * CHUNK * 2;
        let kept = if ordered { PAIRS / split } else { 1 };
        let senders = if split == 2 { 1 } else { split };
        let consumers = warpgroups * CONSUMERS;
        let received = if split == 1 { 16 } else { senders * kept * (rows / 2 / split) * consumers * size_of::<f32>() };
        rings + received + (2 * weight_stages + 2 * x_stages + 1) * 8
    }
}

/// A chunk of inputs of a block's rows of x.
pub(super) fn rows_of(x: &Matrix, rows: usize) -> TensorMap {
    TensorMap::new(x.tensor.dtype).dimension(x.columns, 1, CHUNK).dimension(x.rows, x.stride, rows)
}

/// A chunk of inputs of so many outputs: by turns 8 and 8 that are `apart`, gates and their values or neighbours.
pub(super) fn groups_of(weight: &Matrix, is_gated: bool, outputs: usize) -> TensorMap {
    let (apart, next) = if is_gated { (weight.rows / 2, 8) } else { (8, 16) };
    TensorMap::new(weight.tensor.dtype)
        .dimension(weight.columns, 1, CHUNK)
        .dimension(8, weight.stride, 8)
        .dimension(2, apart * weight.stride, 2)
        .dimension(weight.rows / 16, next * weight.stride, outputs / 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shared memory of most blocks, so that the next kernel's has room beside it.
    const SHARED_BYTES_MAX: usize = 113 << 10;

    #[test]
    fn every_division_leaves_room_for_the_next_kernel() {
        let check = |warpgroups: usize, tiles: &[Tile], ordered| {
            for &(rows, stages) in tiles {
                for (index, &(weight_stages, x_stages)) in stages.iter().enumerate() {
                    let division = Division { warpgroups, rows, split: 1 << index, weight_stages, x_stages };
                    let bytes = division.shared_bytes(ordered);
                    assert!(bytes <= SHARED_BYTES_MAX, "{division:?}: {bytes}");
                    // The instruction takes rows by eights.
                    assert!((rows >> index).is_multiple_of(8));
                }
            }
        };
        check(1, &TILES, false);
        check(2, &TILES_OF_TWO, false);
        check(1, &TILES_IN_ORDER, true);
        check(2, &[TILE_IN_ORDER_OF_TWO], true);
        for (index, (weight_stages, x_stages)) in STAGES_ALONE.into_iter().enumerate() {
            let division = Division { warpgroups: index + 1, rows: 64, split: 2, weight_stages, x_stages };
            assert!(division.shared_bytes(false) <= SHARED_BYTES_OF_ONE, "{division:?}");
        }
    }

    #[test]
    fn blocks_are_as_many_as_measured_best() {
        let divided = |rows, outputs, inputs, (ordered, heads)| {
            let (dtype, activated) = (DType::BF16, Activated::Not);
            let division = Form { dtype, activated, rows, outputs, inputs, ordered, heads }.division();
            (division.rows, division.split)
        };
        let division = |rows, outputs, inputs| divided(rows, outputs, inputs, (false, None));
        // Qwen3-0.6B.
        let of_heads = |rows| divided(rows, 4096, 1024, (false, Some((128, DType::BF16))));
        assert_eq!([64, 128, 256, 320, 512].map(of_heads), [(64, 2), (64, 2), (64, 1), (96, 1), (128, 1)]);
        let down = |rows| division(rows, 1024, 3072);
        assert_eq!([64, 128, 256, 512].map(down), [(64, 8), (64, 4), (64, 2), (64, 2)]);
        let gates = |rows| division(rows, 6144, 1024);
        assert_eq!([64, 128, 256, 320, 384, 512].map(gates), [(64, 2), (128, 2), (128, 1), (64, 1), (96, 1), (128, 1)]);
        let in_order = |rows, outputs, inputs| divided(rows, outputs, inputs, (true, None));
        assert_eq!([64, 128, 256].map(|rows| in_order(rows, 4096, 1024)), [(64, 2), (128, 1), (128, 1)]);
        assert_eq!([64, 128, 256].map(|rows| in_order(rows, 1024, 3072)), [(64, 4), (64, 4), (64, 2)]);
        // Llama-3.1-8B.
        assert_eq!([64, 128].map(|rows| in_order(rows, 4096, 4096)), [(64, 2), (64, 2)]);
        assert_eq!([64, 128].map(|rows| in_order(rows, 28_672, 4096)), [(64, 2), (128, 1)]);
        // SmolLM2-135M.
        assert_eq!([32, 64, 96, 256].map(|rows| division(rows, 576, 576)), [(64, 4), (64, 4), (64, 4), (64, 2)]);
        assert_eq!([128, 256, 384, 512].map(|rows| division(rows, 3072, 576)), [(64, 2), (64, 1), (96, 1), (128, 1)]);
    }
}
