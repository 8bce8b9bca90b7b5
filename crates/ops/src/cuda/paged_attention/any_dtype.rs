//! Attention in any dtype, without tensor cores: a block per token, KV head and group of query heads that share it.
//!
//! A context is taken in chunks of a fixed length. Where tokens and heads alone occupy the GPU, a block takes all chunks
//! of its token; otherwise each chunk has its own block and a second kernel merges them. Both do the same operations in
//! the same order, so that the choice, which depends on the batch, does not show in the result.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use bytemuck::{Pod, Zeroable};

use super::{Attention, Form};
use crate::attention::AttentionOptions;
use crate::cuda::kernel::Kernel;
use crate::cuda::launch::{Argument, Grid, Launch};
use crate::cuda::matrix::{empty, on_16_bytes, widest};
use crate::cuda::rope_and_store_kv::cache_strides;
use crate::cuda::{PAGED_ATTENTION, element};

/// Positions of a chunk and threads of a block in `paged_attention.cu`.
const CHUNK: usize = 256;
const THREADS: usize = 128;
/// Query heads that a block takes at most.
const GROUP_MAX: usize = 8;
/// Blocks per multiprocessor from which more of them would not read the cache faster.
const BLOCKS_PER_MULTIPROCESSOR: usize = 4;
/// Memory for the sums of single chunks.
const SUMS_BYTES_MAX: usize = 256 << 20;

/// `Shape` of the source.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Shape {
    num_heads: i32,
    num_kv_heads: i32,
    block_size: i32,
    blocks_per_row: i32,
    window: i32,
    chunks_max: i32,
    row_stride: i64,
    slot_stride: i64,
    head_stride: i64,
    scale: f32,
    softcap: f32,
}

/// A call, and how its kernel is compiled.
struct Whole<'a> {
    attention: &'a Attention,
    /// Query heads that a block takes.
    group: usize,
    wide: bool,
}

pub(super) fn attend_any_dtype(attention: &Attention, out: &CubeTensor) {
    let whole = Whole::new(attention);
    if whole.splits_contexts() {
        whole.attend_by_chunk(out);
    } else {
        whole.attend_whole(out);
    }
}

/// Every kernel of a form: whether a cache is read in the widest accesses depends on where it lies.
pub(super) fn kernels(form: &Form) -> Vec<Kernel> {
    [true, false].map(|wide| kernel(form, wide, "attend_whole")).to_vec()
}

fn kernel(form: &Form, wide: bool, entry: &'static str) -> Kernel {
    let kernel = Kernel::new(&PAGED_ATTENTION, entry).word("ELEMENT", element(form.dtype));
    form.gpu
        .with_cache(kernel, form.cache)
        .number("HEAD_DIM", form.heads.head_dim)
        .number("GROUP", form.group().min(GROUP_MAX))
        .number("WIDE", wide.into())
}

impl<'a> Whole<'a> {
    fn new(attention: &'a Attention) -> Self {
        let (keys, values) = (&attention.keys, &attention.values);
        let [slot_stride, head_stride] = cache_strides(keys, values);
        let width = widest(keys.dtype);
        let strides = [slot_stride, head_stride, attention.options.heads.head_dim];
        let wide =
            strides.iter().all(|stride| stride.is_multiple_of(width)) && on_16_bytes(keys) && on_16_bytes(values);
        Self { attention, group: attention.group().min(GROUP_MAX), wide }
    }

    /// Blocks per token.
    fn blocks_per_token(&self) -> usize {
        self.attention.options.heads.num_kv_heads * self.attention.group().div_ceil(self.group)
    }

    /// Chunks of the longest context that the block tables have room for.
    fn chunks_max(&self) -> usize {
        self.attention.context_max().div_ceil(CHUNK)
    }

    /// Whether chunks are worth a block each: more than one of them, a GPU that would otherwise wait, and the memory.
    fn splits_contexts(&self) -> bool {
        let multiprocessors = self.attention.gpu.multiprocessors;
        let sums_bytes =
            self.attention.qkv.rows * self.attention.options.heads.output_len() * self.chunks_max() * size_of::<f32>();
        self.chunks_max() > 1
            && self.attention.qkv.rows * self.blocks_per_token() < BLOCKS_PER_MULTIPROCESSOR * multiprocessors
            && sums_bytes <= SUMS_BYTES_MAX
    }

    fn attend_whole(&self, out: &CubeTensor) {
        let grid = self.grid(1);
        self.with_inputs("attend_whole", grid).write(out).value(self.shape()).submit(out);
    }

    fn attend_by_chunk(&self, out: &CubeTensor) {
        let heads = self.attention.options.heads;
        let (tokens, chunks) = (self.attention.qkv.rows, self.chunks_max());
        let sums = empty(out, [tokens * heads.num_heads * chunks, heads.head_dim], DType::F32);
        let scales = empty(out, [tokens * heads.num_heads * chunks, 2], DType::F32);
        let grid = self.grid(chunks);
        self.with_inputs("attend_chunk", grid).write(&sums).write(&scales).value(self.shape()).submit(out);
        Launch::new(self.kernel("merge_chunks"), Grid::new([tokens, heads.num_heads, 1], THREADS))
            .read(&sums)
            .read(&scales)
            .read(&self.attention.positions)
            .write(out)
            .value(self.shape())
            .submit(out);
    }

    fn with_inputs(&self, entry: &'static str, grid: Grid) -> Launch {
        Launch::new(self.kernel(entry), grid)
            .read(&self.attention.qkv.tensor)
            .read(&self.attention.keys)
            .read(&self.attention.values)
            .read(&self.attention.positions)
            .read(&self.attention.sequences)
            .read(&self.attention.tables.tensor)
    }

    fn kernel(&self, entry: &'static str) -> Kernel {
        kernel(&self.attention.form(), self.wide, entry)
    }

    fn grid(&self, chunks: usize) -> Grid {
        let shared_bytes = self.shared_words() * size_of::<f32>();
        Grid::new([self.attention.qkv.rows, self.blocks_per_token(), chunks], THREADS).with_shared(shared_bytes)
    }

    /// The size of `Shared` in the source, in words of 4 bytes.
    fn shared_words(&self) -> usize {
        let (group, head_dim) = (self.group, self.attention.options.heads.head_dim);
        let width = if self.wide { widest(self.attention.keys.dtype) } else { 1 };
        let shares = (THREADS / (head_dim / width)).max(1);
        let query = group * head_dim;
        query + shares * query + group * CHUNK + 4 * group + CHUNK
    }

    fn shape(&self) -> Argument {
        let AttentionOptions { heads, block_size, scale, sliding_window, softcap } = self.attention.options;
        let [slot_stride, head_stride] = cache_strides(&self.attention.keys, &self.attention.values);
        Argument::structure(&Shape {
            num_heads: heads.num_heads as i32,
            num_kv_heads: heads.num_kv_heads as i32,
            block_size: block_size as i32,
            blocks_per_row: self.attention.tables.stride as i32,
            window: sliding_window.unwrap_or(0) as i32,
            chunks_max: self.chunks_max() as i32,
            row_stride: self.attention.qkv.stride as i64,
            slot_stride: slot_stride as i64,
            head_stride: head_stride as i64,
            scale,
            softcap: softcap.unwrap_or(0.0),
        })
    }
}
