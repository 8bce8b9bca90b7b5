//! Products of few rows, with what stands before and after them: reading the weights is what takes time, and a kernel of
//! our own reads them as fast as a library, in an order of sums that depends on the inputs alone.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use bytemuck::{Pod, Zeroable};

use super::activation::name;
use super::gpu::{Gpu, is_batch_invariant};
use super::kernel::Kernel;
use super::launch::{Argument, Grid, Launch};
use super::linear_fp8::multiplies;
use super::linear_wgmma::keeps_order;
use super::matrix::{Matrix, Weights, on_16_bytes, widest};
use super::rope_and_store_kv::cache_strides;
use super::{LINEAR_FEW_ROWS, element, rms_norm};
use crate::HeadLayout;
use crate::activation::Activation;
use crate::built_kernels::NormKind;
use crate::e4m3::E4M3;

/// Rows of `x` up to which a row's result has the same bits whatever their number is.
pub(crate) const FEW_ROWS: usize = 16;

/// Rows up to which the kernel is faster than what takes more rows: the library with weights of up to so many numbers, which
/// it needs several kernels for, and tiles of rows where no row's bits may depend on the batch. Hopper has another kernel.
const MORE_ROWS: usize = 32;
const SMALL_WEIGHT: usize = 8_000_000;

/// Rows of `x` times codes of the weights up to which the kernel, which widens codes for every 8 rows, is faster than three
/// that make codes of `x` and multiply by them; with a single row it always is. Measured on an H200: 8 rows break even with 8
/// million codes, 16 with 3 million.
const WIDENED_CODES_MAX: usize = 64_000_000;

/// The GPUs whose matrix units and copies the kernel is written for, from this on.
const CAPABILITY_MIN: u32 = 80;

/// Threads of a block, and chunks of inputs that a warp may have in flight: at most (more gain nothing), at least.
const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;
const STAGES: std::ops::RangeInclusive<usize> = 3..=8;
/// Inputs of a chunk, and where weights are codes.
const CHUNK: usize = 32;
const CHUNK_OF_CODES: usize = 64;
/// Codes that an access moves.
const CODES_AT_ONCE: usize = 16;
/// Shared memory that a block asks for at least, where there is so much, with one row and with several. Measured on Hopper:
/// with less, kernels far behind in a graph find room and hold up those that are due.
const SHARED_BYTES_MIN: [usize; 2] = [80_000, 116_000];

/// `Shape` of the source.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Shape {
    rows: i32,
    outputs: i32,
    inputs: i32,
    half: i32,
    pairs: i32,
    padding: i32,
    x_stride: i64,
    weight_stride: i64,
    residual_stride: i64,
    eps: f32,
    num_heads: i32,
    num_kv_heads: i32,
    rotary_dim: i32,
    slot_stride: i64,
    head_stride: i64,
}

/// The normalisation before the product.
pub(super) struct Norm {
    pub weight: CubeTensor,
    /// Present for a layer norm.
    pub bias: Option<CubeTensor>,
    pub eps: f32,
}

/// What is done with the sums.
#[allow(clippy::large_enum_variant)] // made for one call
pub(super) enum After {
    Store(Option<Matrix>),
    Activate(Activation),
    Gate(Activation),
    Rotate(Rotation),
}

/// Where queries, keys and values go.
pub(super) struct Rotation {
    pub table: CubeTensor,
    pub positions: CubeTensor,
    pub slots: CubeTensor,
    pub keys: CubeTensor,
    pub values: CubeTensor,
    pub heads: HeadLayout,
    pub rotary_dim: usize,
}

/// A product that [`fits`].
pub(super) struct FewRows {
    pub x: Matrix,
    pub norm: Option<Norm>,
    pub weights: Weights,
    pub bias: Option<CubeTensor>,
    pub after: After,
}

/// How the work is divided; the bits of the result do not depend on it.
#[derive(Clone, Copy)]
struct Division {
    /// Groups of 8 rows of x.
    tiles: usize,
    /// Groups of 16 outputs that a block takes at a time.
    passes: usize,
    stages: usize,
    blocks: usize,
    shared_bytes: usize,
}

/// What is done with the sums, as far as it decides how a call is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follow {
    Store,
    Activate(Activation),
    Gate(Activation),
    Rotate { head_dim: usize },
}

/// What decides how a call is compiled, beside the GPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub dtype: DType,
    /// The same, or [codes](E4M3).
    pub weight: DType,
    /// That of the cache where keys and values are stored, else that of x.
    pub cache: DType,
    pub norm: Option<NormKind>,
    pub follow: Follow,
    pub rows: usize,
    pub outputs: usize,
    pub inputs: usize,
    /// Whether sums have the order that [`linear_wgmma`] gives them among many rows.
    pub ordered: bool,
}

impl Form {
    /// The variant for this GPU.
    pub(super) fn variant(&self, gpu: &Gpu) -> Kernel {
        self.kernel(self.division(gpu), gpu)
    }

    fn kernel(&self, division: Division, gpu: &Gpu) -> Kernel {
        let norm = match self.norm {
            None => "NO_NORM",
            Some(NormKind::Rms) => "RMS_NORM",
            Some(NormKind::Layer) => "LAYER_NORM",
        };
        let (follow, kind) = match self.follow {
            Follow::Store => ("STORE", Activation::Relu),
            Follow::Activate(kind) => ("ACTIVATE", kind),
            Follow::Gate(kind) => ("GATE", kind),
            Follow::Rotate { .. } => ("ROTATE", Activation::Relu),
        };
        let kernel = Kernel::new(&LINEAR_FEW_ROWS, "linear_few_rows")
            .word("ELEMENT", element(self.dtype))
            .word("WEIGHT", element(self.weight));
        gpu.with_cache(kernel, self.cache)
            .word("NORM", norm)
            .word("AFTER", follow)
            .word("KIND", name(kind))
            .number("TILES", division.tiles)
            .number("PASSES", division.passes)
            .number("STAGES", division.stages)
            .number("ORDERED", self.ordered.into())
    }

    /// The distance of the two outputs of a pair, and the number of pairs.
    fn pairs(&self) -> [usize; 2] {
        match self.follow {
            Follow::Gate(_) => [self.outputs / 2, self.outputs / 2],
            Follow::Rotate { head_dim } => [head_dim / 2, self.outputs / 2],
            // Any outputs: a tile of the matrix units has 16 of them.
            _ => [8, self.outputs.div_ceil(16) * 8],
        }
    }

    /// A block for each multiprocessor or fewer, which take more outputs at a time where that is no more work for the one that
    /// has most, with as many copies in flight as help and shared memory has room for.
    fn division(&self, gpu: &Gpu) -> Division {
        let multiprocessors = gpu.multiprocessors;
        let tiles = self.rows.div_ceil(8);
        let groups = self.pairs()[1].div_ceil(8);
        let rounds = |passes: usize| groups.div_ceil(passes).div_ceil(multiprocessors);
        // Three at a time leave no registers for more rows, or for codes.
        let takes_three = tiles == 1 && self.weight == self.dtype && 3 * rounds(3) < 2 * rounds(2);
        let wanted = if rounds(1) == 1 { 1 } else { 2 + usize::from(takes_three) };
        let chunks_of_warp = self.inputs.div_ceil(chunk(self.weight)).div_ceil(WARPS);
        let stages_wanted = match wanted {
            _ if tiles > 1 && wanted * tiles > 2 => 5,
            1 => chunks_of_warp.clamp(6, *STAGES.end()),
            2 => 6,
            _ => chunks_of_warp.clamp(4, 6),
        };
        let candidates = (1..=wanted).rev().flat_map(|passes| {
            STAGES.rev().filter(|&stages| stages <= stages_wanted).map(move |stages| (passes, stages))
        });
        let shared_bytes_min = SHARED_BYTES_MIN[usize::from(self.rows > 1)].min(room(gpu));
        let division = |(passes, stages)| Division {
            tiles,
            passes,
            stages,
            blocks: groups.div_ceil(passes).min(multiprocessors),
            shared_bytes: self.shared_bytes(tiles, passes, stages).max(shared_bytes_min),
        };
        let mut candidates = candidates.map(division);
        let smallest = division((1, *STAGES.start()));
        candidates.find(|division| division.shared_bytes <= room(gpu)).unwrap_or(smallest)
    }

    /// The shared memory that the source divides: rings, partial sums, sums of a norm's warps, the normalised row.
    fn shared_bytes(&self, tiles: usize, passes: usize, stages: usize) -> usize {
        let chunk = chunk(self.weight);
        let norm_sums = 2 * WARPS * size_of::<f32>();
        let whole = if self.ordered { 2 * chunk } else { chunk };
        let norm = self.norm.map_or(0, |_| norm_sums + self.inputs.next_multiple_of(whole) * 2);
        let rows_in_ring = if self.norm.is_some() { 0 } else { self.rows };
        shared_bytes((rows_in_ring, chunk), (tiles, passes, stages)) + norm
    }
}

/// Numbers of rows for which the kernel may be chosen, for weights of this size on this GPU; `tiles_after` says that
/// `linear_tiles` takes more.
pub(super) fn rows_taken(weight: usize, gpu: &Gpu, tiles_after: bool) -> impl Iterator<Item = usize> {
    let gpu = *gpu;
    (1..=MORE_ROWS).filter(move |&rows| is_few(rows, weight, &gpu, tiles_after))
}

fn is_few(rows: usize, weight: usize, gpu: &Gpu, tiles_after: bool) -> bool {
    (1..=FEW_ROWS).contains(&rows)
        || (tiles_after || weight <= SMALL_WEIGHT && gpu.capability != 90)
            && rows <= MORE_ROWS
            && smallest_shared_bytes(rows) <= room(gpu)
}

/// Whether sums have one order among few rows and many.
fn is_ordered(x: &Matrix, weights: &Weights, gpu: &Gpu) -> bool {
    let Weights { matrix, scales } = weights;
    is_batch_invariant() && scales.is_none() && keeps_order(x.tensor.dtype, [matrix.rows, matrix.columns], gpu)
}

/// Whether the kernel is to multiply these: few rows that [suit it](suits), and with codes not [many of those](WIDENED_CODES_MAX).
pub(super) fn fits(x: &Matrix, weights: &Weights) -> bool {
    let weight = &weights.matrix;
    let (numbers, gpu) = (weight.rows * weight.columns, Gpu::current());
    let is_few = match weights.scales {
        None => is_few(x.rows, numbers, &gpu, is_batch_invariant() && !is_ordered(x, weights, &gpu)),
        Some(_) if x.rows == 1 || !multiplies(x, weight) => x.rows <= FEW_ROWS,
        Some(_) => x.rows <= FEW_ROWS && x.rows * numbers <= WIDENED_CODES_MAX,
    };
    is_few && suits(x, weights)
}

/// Inputs of a chunk.
fn chunk(weight: DType) -> usize {
    if weight == E4M3 { CHUNK_OF_CODES } else { CHUNK }
}

/// Whether the kernel can read these: 16-bit elements, rows on 16-byte boundaries, a GPU that is new enough.
pub(super) fn suits(x: &Matrix, Weights { matrix: weight, scales }: &Weights) -> bool {
    let dtype = x.tensor.dtype;
    let (expected, group) = if scales.is_some() { (E4M3, CODES_AT_ONCE) } else { (dtype, widest(dtype)) };
    x.rows > 0
        && weight.rows > 0
        && weight.columns > 0
        && weight.tensor.dtype == expected
        && matches!(dtype, DType::F16 | DType::BF16)
        && x.has_groups_of(widest(dtype))
        && weight.has_groups_of(group)
        && runs_on(&Gpu::current())
}

/// Whether the GPU is new enough.
pub(super) fn runs_on(gpu: &Gpu) -> bool {
    gpu.capability >= CAPABILITY_MIN
}

/// Shared memory for the rings and the sums.
fn shared_bytes((rows_in_ring, chunk): (usize, usize), (tiles, passes, stages): (usize, usize, usize)) -> usize {
    let ring = WARPS * stages * (passes * 1024 + rows_in_ring * chunk * 2);
    ring + 2 * WARPS * tiles * 8 * (16 * passes + 4) * size_of::<f32>()
}

fn smallest_shared_bytes(rows: usize) -> usize {
    shared_bytes((rows, CHUNK), (rows.div_ceil(8), 1, *STAGES.start()))
}

/// Shared memory that a block may have.
fn room(gpu: &Gpu) -> usize {
    gpu.shared_bytes_of_block(1)
}

impl FewRows {
    /// Computes the result. More than one row are normalised by a kernel of their own, which then is faster.
    pub(super) fn run(mut self) -> CubeTensor {
        if let Some(norm) = self.norm.take() {
            if self.x.rows == 1 && [Some(&norm.weight), norm.bias.as_ref()].into_iter().flatten().all(on_16_bytes) {
                self.norm = Some(norm);
            } else {
                self.x = Matrix::of(norm.of(self.x.tensor));
            }
        }
        let out = self.x.like(match &self.after {
            After::Gate(_) => self.weights.matrix.rows / 2,
            _ => self.weights.matrix.rows,
        });
        self.launch(&out);
        out
    }

    fn launch(&self, out: &CubeTensor) {
        let (form, gpu) = (self.form(), Gpu::current());
        let division = form.division(&gpu);
        let grid = Grid::new([division.blocks, 1, 1], THREADS).with_shared(division.shared_bytes);
        let residual = match &self.after {
            After::Store(residual) => residual.as_ref().map(|residual| &residual.tensor),
            _ => None,
        };
        let rotation = match &self.after {
            After::Rotate(rotation) => Some(rotation),
            _ => None,
        };
        let launch = Launch::new(form.kernel(division, &gpu), grid)
            .read(&self.x.tensor)
            .read(&self.weights.matrix.tensor)
            .read_if(self.weights.scales.as_ref())
            .read_if(residual)
            .read_if(self.norm.as_ref().map(|norm| &norm.weight))
            .read_if(self.norm.as_ref().and_then(|norm| norm.bias.as_ref()))
            .read_if(self.bias.as_ref());
        let launch = match rotation {
            None => launch.absent(5),
            Some(rotation) => launch
                .read(&rotation.table)
                .read(&rotation.positions)
                .read(&rotation.slots)
                .write(&rotation.keys)
                .write(&rotation.values),
        };
        launch.write(out).value(self.shape()).submit(out);
    }

    fn form(&self) -> Form {
        let dtype = self.x.tensor.dtype;
        let (cache, follow) = match &self.after {
            After::Store(_) => (dtype, Follow::Store),
            After::Activate(kind) => (dtype, Follow::Activate(*kind)),
            After::Gate(kind) => (dtype, Follow::Gate(*kind)),
            After::Rotate(rotation) => (rotation.keys.dtype, Follow::Rotate { head_dim: rotation.heads.head_dim }),
        };
        let norm = self.norm.as_ref().map(|norm| if norm.bias.is_none() { NormKind::Rms } else { NormKind::Layer });
        let matrix = &self.weights.matrix;
        let (weight, rows) = (matrix.tensor.dtype, self.x.rows);
        let (outputs, inputs, ordered) =
            (matrix.rows, matrix.columns, is_ordered(&self.x, &self.weights, &Gpu::current()));
        Form { dtype, weight, cache, norm, follow, rows, outputs, inputs, ordered }
    }

    fn shape(&self) -> Argument {
        let [half, pairs] = self.form().pairs();
        let mut shape = Shape {
            rows: self.x.rows as i32,
            outputs: self.weights.matrix.rows as i32,
            inputs: self.weights.matrix.columns as i32,
            half: half as i32,
            pairs: pairs as i32,
            x_stride: self.x.stride as i64,
            weight_stride: self.weights.matrix.stride as i64,
            eps: self.norm.as_ref().map_or(0.0, |norm| norm.eps),
            ..Zeroable::zeroed()
        };
        match &self.after {
            After::Store(Some(residual)) => shape.residual_stride = residual.stride as i64,
            After::Rotate(rotation) => {
                let [slot_stride, head_stride] = cache_strides(&rotation.keys, &rotation.values);
                shape.num_heads = rotation.heads.num_heads as i32;
                shape.num_kv_heads = rotation.heads.num_kv_heads as i32;
                shape.rotary_dim = rotation.rotary_dim as i32;
                (shape.slot_stride, shape.head_stride) = (slot_stride as i64, head_stride as i64);
            }
            _ => {}
        }
        Argument::structure(&shape)
    }
}

impl Norm {
    /// The normalised rows, by a kernel of their own.
    pub(super) fn of(self, x: CubeTensor) -> CubeTensor {
        match self.bias {
            None => rms_norm(x, self.weight, self.eps),
            Some(bias) => super::layer_norm(x, self.weight, bias, self.eps),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_divided_as_measured_best() {
        let [_, gpu] = Gpu::of_architecture(90);
        let division = |rows, norm, follow, [outputs, inputs]: [usize; 2]| {
            let (dtype, norm) = (DType::BF16, (norm && rows == 1).then_some(NormKind::Rms));
            let form = Form { dtype, weight: dtype, cache: dtype, norm, follow, rows, outputs, inputs, ordered: false };
            let division = form.division(&gpu);
            assert!((SHARED_BYTES_MIN[usize::from(rows > 1)]..=room(&gpu)).contains(&division.shared_bytes));
            [division.passes, division.stages, division.blocks]
        };
        let gate = Follow::Gate(Activation::Silu);
        // Qwen3-0.6B: three groups of outputs at a time where two would take two rounds.
        assert_eq!(division(1, true, Follow::Store, [4096, 1024]), [2, 6, 128]);
        assert_eq!(division(1, false, Follow::Store, [1024, 2048]), [1, 8, 64]);
        assert_eq!(division(8, false, Follow::Store, [1024, 3072]), [1, 8, 64]);
        assert_eq!(division(1, true, gate, [6144, 1024]), [3, 4, 128]);
        assert_eq!(division(16, true, gate, [6144, 1024]), [2, 5, 132]);
        // SmolLM2-135M and Llama-3.1-8B.
        assert_eq!(division(1, true, Follow::Rotate { head_dim: 64 }, [960, 576]), [1, 6, 60]);
        assert_eq!(division(1, true, Follow::Rotate { head_dim: 128 }, [6144, 4096]), [3, 6, 128]);
        assert_eq!(division(1, true, gate, [28_672, 4096]), [2, 6, 132]);
    }
}
