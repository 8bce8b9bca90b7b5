//! Normalises and rotates queries and keys, and copies keys and values into their slots: lanes per head.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use bytemuck::{Pod, Zeroable};

use super::gpu::Gpu;
use super::kernel::Kernel;
use super::launch::{Argument, Grid, Launch};
use super::matrix::{Matrix, dense, on_16_bytes, owned, widest};
use super::{ROPE_AND_STORE_KV, element};
use crate::cube::{QkvInputs, QkvTarget};
use crate::e4m3::E4M3;
use crate::rope_and_store_kv::QkvOptions;

/// Threads of a block: all of them, or for many rows at most.
const THREADS: usize = 128;
/// Rows from which a thread takes a head of `TOKENS` of them: fewer would leave much of the GPU without work.
const ROWS_MIN: usize = 1024;
const TOKENS: usize = 2;
const LANES_OF_WARP: usize = 32;

/// `Rows` of `qkv_rows.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Rows {
    num_heads: i32,
    num_kv_heads: i32,
    head_dim: i32,
    num_tokens: i32,
    row_stride: i64,
    slot_stride: i64,
    head_stride: i64,
}

impl Rows {
    /// All rows of these.
    fn of(qkv: &Matrix, target: &QkvTarget) -> Self {
        let heads = target.options.heads;
        let [slot_stride, head_stride] = cache_strides(&target.key_cache, &target.value_cache);
        Self {
            num_heads: heads.num_heads as i32,
            num_kv_heads: heads.num_kv_heads as i32,
            head_dim: heads.head_dim as i32,
            num_tokens: qkv.rows as i32,
            row_stride: qkv.stride as i64,
            slot_stride: slot_stride as i64,
            head_stride: head_stride as i64,
        }
    }
}

/// `Rotation` of `heads.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Rotation {
    table_stride: i64,
    rotary_dim: i32,
    normalise: i32,
    lanes: i32,
    wide: i32,
    in_halves: i32,
    eps: f32,
}

impl Rotation {
    /// For these rows, and what happens to them.
    pub(super) fn of(qkv: &Matrix, target: &QkvTarget) -> Self {
        let QkvOptions { heads, rotary_dim, norm_eps } = target.options;
        let (dtype, cache_dtype) = (qkv.tensor.dtype, target.key_cache.dtype);
        let [slot_stride, head_stride] = cache_strides(&target.key_cache, &target.value_cache);
        let strides = [qkv.stride, slot_stride, head_stride, heads.head_dim, rotary_dim / 2];
        let QkvTarget { query_norm, key_norm, table, key_cache, value_cache, .. } = target;
        let operands = [&qkv.tensor, key_cache, value_cache, query_norm, key_norm, table];
        let wide = widest(dtype) == widest(cache_dtype)
            && strides.iter().all(|stride| stride.is_multiple_of(widest(dtype)))
            && operands.into_iter().all(on_16_bytes);
        let lanes = lanes(&target.options, if wide { widest(dtype) } else { 1 });
        Self {
            table_stride: rotary_dim as i64,
            rotary_dim: rotary_dim as i32,
            normalise: norm_eps.is_some().into(),
            lanes: lanes as i32,
            wide: wide.into(),
            in_halves: (wide && can_be_in_halves(&target.options, dtype, cache_dtype)).into(),
            eps: norm_eps.unwrap_or(0.0),
        }
    }

    /// Whether lanes take as many elements of either rotated half as an access moves, and no others.
    pub(super) fn is_in_halves(&self) -> bool {
        self.in_halves != 0
    }

    pub(super) fn argument(&self) -> Argument {
        Argument::structure(self)
    }
}

/// What finishes heads in the kernel of a product.
pub(super) struct Heads<'a> {
    target: &'a QkvTarget,
    rows: Rows,
    rotation: Rotation,
}

impl<'a> Heads<'a> {
    /// For the rows of `out`; `None` where heads are not where the widest access could take them.
    pub(super) fn of(out: &Matrix, target: &'a QkvTarget) -> Option<Self> {
        let rotation = Rotation::of(out, target);
        (rotation.wide != 0).then(|| Self { target, rows: Rows::of(out, target), rotation })
    }

    /// Gives a product its last arguments, `shape` among them, and enqueues it. Without `heads` they are there, and not read.
    pub(super) fn submit(heads: Option<Self>, launch: Launch, shape: Argument, out: &CubeTensor) {
        let (launch, rows, rotation) = match heads {
            None => (launch.absent(7), Rows::zeroed(), Rotation::zeroed()),
            Some(Self { target, rows, rotation }) => {
                let launch = launch.read_all(target.read_by_kernels());
                (launch.write(&target.key_cache).write(&target.value_cache), rows, rotation)
            }
        };
        launch.value(shape).value(Argument::structure(&rows)).value(rotation.argument()).submit(out);
    }
}

impl QkvTarget {
    /// What kernels read of it, in their order.
    pub(super) fn read_by_kernels(&self) -> [&CubeTensor; 5] {
        [&self.query_norm, &self.key_norm, &self.table, &self.positions, &self.slot_mapping]
    }

    /// As kernels take it: without gaps. Without a rotation something of rank 1 stands in for the table, and is not read.
    /// The cache is written where it is: it has one owner, and while the device's thread works on it, it would seem to have
    /// more.
    pub(super) fn for_kernels(self) -> Self {
        Self {
            query_norm: dense(self.query_norm),
            key_norm: dense(self.key_norm),
            table: dense(self.table),
            positions: dense(self.positions),
            slot_mapping: dense(self.slot_mapping),
            key_cache: self.key_cache,
            value_cache: self.value_cache,
            options: self.options,
        }
    }
}

pub(crate) fn rope_and_store_kv(inputs: QkvInputs) -> (CubeTensor, CubeTensor, CubeTensor) {
    let (qkv, target) = (Matrix::of(owned(inputs.qkv)), inputs.target.for_kernels());
    let heads = target.options.heads;
    let (rows, rotation) = (Rows::of(&qkv, &target), Rotation::of(&qkv, &target));
    let mut kernel = kernel(qkv.tensor.dtype, target.key_cache.dtype, &Gpu::current());
    let (lanes, num_heads) = (rotation.lanes as usize, heads.num_heads + 2 * heads.num_kv_heads);
    let grid = if rotation.is_in_halves() && qkv.rows >= ROWS_MIN {
        kernel.entry = "rope_and_store_many";
        // Blocks of equal size, so that none is half empty.
        let blocks = (num_heads * lanes).div_ceil(THREADS);
        let threads = (num_heads * lanes).div_ceil(blocks).next_multiple_of(LANES_OF_WARP);
        Grid::new([qkv.rows.div_ceil(TOKENS), num_heads.div_ceil(threads / lanes), 1], threads)
    } else {
        Grid::new([qkv.rows, num_heads.div_ceil(THREADS / lanes), 1], THREADS)
    };
    Launch::new(kernel, grid)
        .write(&qkv.tensor)
        .read_all(target.read_by_kernels())
        .write(&target.key_cache)
        .write(&target.value_cache)
        .value(Argument::structure(&rows))
        .value(rotation.argument())
        .submit(&qkv.tensor);
    (qkv.tensor, target.key_cache, target.value_cache)
}

/// The variant for these elements.
pub(super) fn kernel(dtype: DType, cache: DType, gpu: &Gpu) -> Kernel {
    let kernel = Kernel::new(&ROPE_AND_STORE_KV, "rope_and_store_kv").word("ELEMENT", element(dtype));
    gpu.with_cache(kernel, cache)
}

/// Lanes that take a head, each so many elements at a time. The rotated halves go together; what is not rotated goes after
/// them.
fn lanes(options: &QkvOptions, elements: usize) -> usize {
    let longest = (options.rotary_dim / 2).max(options.heads.head_dim - options.rotary_dim);
    longest.div_ceil(elements).next_power_of_two().min(32)
}

/// Whether [`lanes`] take all of a head as [halves](Rotation::is_in_halves), where addresses allow the widest access.
pub(super) fn can_be_in_halves(options: &QkvOptions, dtype: DType, cache: DType) -> bool {
    let QkvOptions { heads, rotary_dim, .. } = *options;
    let elements = widest(dtype);
    elements == widest(cache) && rotary_dim == heads.head_dim && 2 * lanes(options, elements) * elements == rotary_dim
}

/// Elements from one slot to the next and from one head to the next, of a cache whose heads have no gaps.
pub(super) fn cache_strides(keys: &CubeTensor, values: &CubeTensor) -> [usize; 2] {
    let strides = &keys.meta.strides;
    assert_eq!(strides[2], 1, "the KV cache keeps the elements of a head together");
    assert_eq!(strides, &values.meta.strides, "keys and values are laid out alike");
    assert!(matches!(keys.dtype, DType::F32 | DType::F16 | DType::BF16 | E4M3), "a KV cache in {:?}", keys.dtype);
    assert_eq!(keys.dtype, values.dtype, "keys and values have one dtype");
    [strides[0], strides[1]]
}
