//! Sequences with several tokens in the batch: a block takes rows of one sequence and one KV head.
//!
//! The grid is a bound of the number of such tiles that needs no look at the sequences' lengths: blocks without a tile
//! end at once. On compute capability 9.0 a block per multiprocessor takes tiles as it gets to
//! them.

use burn_cubecl::tensor::CubeTensor;

use super::{Attention, Form, row_bytes};
use crate::cuda::kernel::Kernel;
use crate::cuda::launch::{Argument, Grid, Launch};
use crate::cuda::rope_and_store_kv::cache_strides;
use crate::cuda::tensor_map::TensorMap;
use crate::cuda::{PAGED_ATTENTION_TILES, PAGED_ATTENTION_WGMMA, element};

/// Rows, positions of a tile and threads in `paged_attention_tiles.cu`.
const TILES_POSITIONS: usize = 64;
const TILES_THREADS: usize = 128;
/// Rows and threads in `paged_attention_wgmma.cu`, and the columns of a panel.
const WGMMA_ROWS: usize = 128;
const WGMMA_THREADS: usize = 384;
const WGMMA_STAGES: usize = 2;
const PANEL: usize = 64;

/// Which kernel takes a call, and its shared memory.
pub(super) struct Prefill {
    uses_wgmma: bool,
    shared_bytes: usize,
}

impl Prefill {
    /// `None` when no kernel fits into shared memory.
    pub(super) fn new(form: &Form) -> Option<Self> {
        let uses_wgmma = fits_wgmma(form);
        let head_dim = form.heads.head_dim;
        let shared_bytes = if uses_wgmma { wgmma_shared_bytes(head_dim) } else { tiles_shared_bytes(form) };
        (shared_bytes <= form.gpu.shared_bytes_of_block(1)).then_some(Self { uses_wgmma, shared_bytes })
    }

    pub(super) fn launch(&self, attention: &Attention, out: &CubeTensor) {
        if self.uses_wgmma {
            self.launch_wgmma(attention, out);
        } else {
            self.launch_tiles(attention, out);
        }
    }

    pub(super) fn kernel(&self, form: &Form) -> Kernel {
        let compiled = |kernel: Kernel| {
            let kernel = kernel.word("ELEMENT", element(form.dtype)).number("HEAD_DIM", form.heads.head_dim);
            kernel.number("GROUP", form.group())
        };
        if self.uses_wgmma {
            return compiled(Kernel::new(&PAGED_ATTENTION_WGMMA, "attend_wgmma"));
        }
        form.gpu.with_cache(compiled(Kernel::new(&PAGED_ATTENTION_TILES, "attend_tiles")), form.cache)
    }

    fn launch_tiles(&self, attention: &Attention, out: &CubeTensor) {
        let heads = attention.options.heads;
        let rows = tiles_rows(heads.head_dim);
        let tiles = attention.qkv.rows * attention.group() / rows + attention.num_sequences();
        let grid = Grid::new([tiles * heads.num_kv_heads, 1, 1], TILES_THREADS).with_shared(self.shared_bytes);
        Launch::new(self.kernel(&attention.form()), grid)
            .read(&attention.qkv.tensor)
            .read(&attention.keys)
            .read(&attention.values)
            .read(&attention.query_starts)
            .read(&attention.context_lens)
            .read(&attention.tables.tensor)
            .write(out)
            .value(attention.shape().argument())
            .submit(out);
    }

    fn launch_wgmma(&self, attention: &Attention, out: &CubeTensor) {
        let heads = attention.options.heads;
        let group = attention.group();
        let tokens = WGMMA_ROWS / group;
        let items = (attention.qkv.rows / tokens + attention.num_sequences()) * heads.num_kv_heads;
        let blocks = items.min(attention.gpu.multiprocessors);
        let grid = Grid::new([blocks, 1, 1], WGMMA_THREADS).with_shared(self.shared_bytes);
        let positions = greatest_common_divisor(attention.options.block_size, wgmma_keys(heads.head_dim));
        let [slot_stride, head_stride] = cache_strides(&attention.keys, &attention.values);
        let slots = attention.keys.meta.shape[0];
        // Columns, query heads of a group, groups, tokens.
        let queries = TensorMap::new(attention.qkv.tensor.dtype)
            .dimension(heads.head_dim, 1, PANEL)
            .dimension(group, heads.head_dim, group)
            .dimension(heads.num_kv_heads, group * heads.head_dim, 1)
            .dimension(attention.qkv.rows, attention.qkv.stride, tokens);
        // Columns, KV heads, slots.
        let cache = TensorMap::new(attention.keys.dtype)
            .dimension(heads.head_dim, 1, PANEL)
            .dimension(heads.num_kv_heads, head_stride, 1)
            .dimension(slots, slot_stride, positions);
        let mut shape = attention.shape();
        shape.dense = positions as i32;
        Launch::new(self.kernel(&attention.form()), grid)
            .read_mapped(&attention.qkv.tensor, queries)
            .read_mapped(&attention.keys, cache.clone())
            .read_mapped(&attention.values, cache)
            .read(&attention.query_starts)
            .read(&attention.context_lens)
            .read(&attention.tables.tensor)
            .write(out)
            .value(Argument::Counters)
            .value(shape.argument())
            .submit(out);
    }
}

/// Keys and values that are factors as they are, whole panels of a head, and copies of whole swizzled rows of 8 positions.
fn fits_wgmma(form: &Form) -> bool {
    form.gpu.capability == 90
        && form.cache == form.dtype
        && [64, 128, 256].contains(&form.heads.head_dim)
        && form.block_size.is_multiple_of(8)
        && form.group() <= WGMMA_ROWS
}

fn wgmma_keys(head_dim: usize) -> usize {
    if head_dim <= 128 { 128 } else { 64 }
}

/// `Shared` of the source, with room to begin on 1024 bytes.
fn wgmma_shared_bytes(head_dim: usize) -> usize {
    let (query, context) = (WGMMA_ROWS * head_dim * 2, wgmma_keys(head_dim) * head_dim * 2);
    1024 + query + 2 * WGMMA_STAGES * context + 256
}

fn tiles_rows(head_dim: usize) -> usize {
    if head_dim <= 128 { 128 } else { 64 }
}

/// `Shared` of the source.
fn tiles_shared_bytes(form: &Form) -> usize {
    let head_dim = form.heads.head_dim;
    let query = tiles_rows(head_dim) * row_bytes(head_dim, form.dtype);
    let context = 2 * TILES_POSITIONS * row_bytes(head_dim, form.cache);
    query + context + 2 * TILES_POSITIONS * size_of::<i32>()
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
