//! Bulk copies, and the instructions of Hopper: a kernel for tiles of rows and one for tokens that are alone of their sequence.
//!
//! Both give a token the same bits. A block takes items as it gets to them, and as many blocks run as the GPU has room for.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::decode::{PLANNERS, planning};
use super::{Attention, Form};
use crate::cuda::kernel::Kernel;
use crate::cuda::launch::{Argument, Grid, Launch};
use crate::cuda::matrix::empty;
use crate::cuda::rope_and_store_kv::cache_strides;
use crate::cuda::tensor_map::TensorMap;
use crate::cuda::{PAGED_ATTENTION_SINGLE, PAGED_ATTENTION_WGMMA, element};

/// Constants of `paged_attention_wgmma.cu`: rows of a warpgroup, threads of one and of those that copy, the columns of a
/// panel, and the rows and bytes after which its swizzled rows repeat.
const ROWS: usize = 64;
const GROUP_THREADS: usize = 128;
/// Of `paged_attention_single.cu`: threads that copy, and the most query heads that share a KV head.
const COPYING_THREADS: usize = 32;
const SINGLE_GROUP_MAX: usize = 16;
const PANEL: usize = 64;
const SWIZZLED_ROWS: usize = 8;
const SWIZZLED_BYTES: usize = 1024;
/// Barriers and items of `Shared`, at most.
const BOOKKEEPING_BYTES: usize = 256;
/// Prompts have a part of the GPU if it is at least so much, else they are too short to fill it, and if so many sequences are in
/// the batch, of which with fewer most may be padding. Otherwise they have all of it.
const SHARE_OF_PROMPTS_MIN: f64 = 0.35;
const SHARING_SEQUENCES_MIN: usize = 17;
/// Ranges of lengths in `paged_attention_plan.cu`, and what tells an order of contexts from their divisions.
const RANGES: usize = 256;
const ORDER: usize = 2;
/// Registers of two blocks are enough for heads of up to so many columns.
const HEAD_DIM_OF_TWO: usize = 128;

/// What an item is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Items {
    /// Rows of a sequence with any number of tokens.
    Tiles,
    /// The one token of a sequence: no more of them than multiprocessors, or more.
    FewSingleTokens,
    SingleTokens,
}

/// How a call is compiled and launched.
#[derive(Clone, Copy)]
pub(super) struct Wgmma {
    items: Items,
    shared_bytes: usize,
    blocks_per_multiprocessor: usize,
}

impl Wgmma {
    /// `None` when the kernel does not take these.
    pub(super) fn new(form: &Form, items: Items) -> Option<Self> {
        if !fits(form) || form.group() > items.group_max() {
            return None;
        }
        let shared_bytes = shared_bytes(form, items);
        let has_two = items != Items::Tiles
            && form.heads.head_dim <= HEAD_DIM_OF_TWO
            && shared_bytes <= form.gpu.shared_bytes_of_block(2);
        let blocks_per_multiprocessor = if has_two { 2 } else { 1 };
        let has_room = shared_bytes <= form.gpu.shared_bytes_of_block(1);
        has_room.then_some(Self { items, shared_bytes, blocks_per_multiprocessor })
    }

    /// Whether two blocks share a multiprocessor, so that one copies while the other computes.
    pub(super) fn fills_multiprocessors(&self) -> bool {
        self.blocks_per_multiprocessor > 1
    }

    pub(super) fn kernel(&self, form: &Form) -> Kernel {
        let kernel = match self.items {
            Items::Tiles => Kernel::new(&PAGED_ATTENTION_WGMMA, "attend_wgmma"),
            Items::FewSingleTokens | Items::SingleTokens => Kernel::new(&PAGED_ATTENTION_SINGLE, "attend_single"),
        };
        kernel
            .word("ELEMENT", element(form.dtype))
            .number("HEAD_DIM", form.heads.head_dim)
            .number("GROUP", form.group())
            .number("CONSUMERS", self.items.consumers())
            .number("VALUE_STAGES", self.items.stages(form.heads.head_dim)[1])
            .number("BLOCK_SIZE", form.block_size)
            .number("COPIED", copied_positions(form))
            .number("CAPPED", form.is_capped.into())
    }

    /// `beside`: its share of the GPU, if others run at the same time.
    pub(super) fn launch(&self, attention: &Attention, out: &CubeTensor, beside: Option<f64>) {
        let heads = attention.options.heads;
        let group = attention.group();
        // Of a tile; and tiles of all sequences at most.
        let (tokens, tiles) = match self.items {
            Items::Tiles => {
                let tokens = ROWS * self.items.consumers() / group;
                (tokens, attention.qkv.rows / tokens + attention.num_sequences())
            }
            Items::FewSingleTokens | Items::SingleTokens => (1, attention.num_sequences()),
        };
        let items = tiles * heads.num_kv_heads;
        let multiprocessors = attention.gpu.multiprocessors as f64 * beside.unwrap_or(1.0);
        let places = multiprocessors.ceil() as usize * self.blocks_per_multiprocessor;
        let grid = Grid::new([items.min(places), 1, 1], self.items.threads()).with_shared(self.shared_bytes);
        let grid = if self.items == Items::Tiles { grid.starting_early() } else { grid };
        let [queries, cache] = tensor_maps(attention, tokens);
        let launch = Launch::new(self.kernel(&attention.form()), grid);
        let launch = match self.items {
            Items::Tiles => launch.read_mapped(&attention.qkv.tensor, queries),
            Items::FewSingleTokens | Items::SingleTokens => launch.read(&attention.qkv.tensor),
        };
        let launch = launch
            .read_mapped(&attention.keys, cache.clone())
            .read_mapped(&attention.values, cache)
            .read(&attention.query_starts)
            .read(&attention.context_lens)
            .read(&attention.tables.tensor);
        let launch = match self.items {
            Items::Tiles => launch,
            // It matters where some blocks take more than one.
            Items::FewSingleTokens | Items::SingleTokens => {
                launch.read_if((items > places).then(|| order(attention)).as_ref())
            }
        };
        launch.write(out).value(Argument::Counters).value(attention.shape().argument()).submit(out);
    }
}

/// Of queries, so many tokens at a time: columns, query heads of a group, groups, tokens. Of keys and of values: columns, KV heads,
/// slots.
fn tensor_maps(attention: &Attention, tokens: usize) -> [TensorMap; 2] {
    let (heads, group) = (attention.options.heads, attention.group());
    let [slot_stride, head_stride] = cache_strides(&attention.keys, &attention.values);
    let queries = TensorMap::new(attention.qkv.tensor.dtype)
        .dimension(heads.head_dim, 1, PANEL)
        .dimension(group, heads.head_dim, group)
        .dimension(heads.num_kv_heads, group * heads.head_dim, 1)
        .dimension(attention.qkv.rows, attention.qkv.stride, tokens);
    let cache = TensorMap::new(attention.keys.dtype)
        .dimension(heads.head_dim, 1, PANEL)
        .dimension(heads.num_kv_heads, head_stride, 1)
        .dimension(attention.keys.meta.shape[0], slot_stride, copied_positions(&attention.form()));
    [queries, cache]
}

/// The sequences by the lengths of their contexts, longest first, for all layers of a step.
fn order(attention: &Attention) -> CubeTensor {
    let shift = attention.context_max().div_ceil(RANGES - 1).next_power_of_two().ilog2() as usize;
    let mixed = attention.shape().mixed as usize;
    attention.derived.get_or_make([ORDER, shift, mixed, 0], || {
        let like = &attention.context_lens;
        let order = empty(like, [attention.num_sequences()], DType::I32);
        Launch::new(order_contexts(&attention.form()), Grid::new([1, 1, 1], PLANNERS))
            .read(&attention.query_starts)
            .read(like)
            .write(&order)
            .value(attention.num_sequences())
            .value(shift)
            .value(mixed)
            .submit(like);
        order
    })
}

fn order_contexts(form: &Form) -> Kernel {
    planning("order_contexts", form)
}

impl Items {
    /// Warpgroups that compute.
    fn consumers(self) -> usize {
        match self {
            Items::Tiles => 2,
            Items::FewSingleTokens | Items::SingleTokens => 1,
        }
    }

    fn threads(self) -> usize {
        let copying = if self == Items::Tiles { GROUP_THREADS } else { COPYING_THREADS };
        GROUP_THREADS * self.consumers() + copying
    }

    /// The most query heads that may share a KV head.
    fn group_max(self) -> usize {
        if self == Items::Tiles { ROWS * self.consumers() } else { SINGLE_GROUP_MAX }
    }

    /// Tiles of keys and of values that a block has room for. With few items a multiprocessor has one block, which is faster
    /// with more.
    fn stages(self, head_dim: usize) -> [usize; 2] {
        match (self, head_dim) {
            (Items::Tiles | Items::FewSingleTokens, 128) | (_, 129..) => [2, 2],
            (Items::SingleTokens, 128) => [2, 1],
            (Items::Tiles, _) => [2, 2],
            _ => [3, 3],
        }
    }
}

/// The part of the multiprocessors that prompts have beside sequences with one token each, if all contexts were as long. Prompts
/// are multiplied at 340 TFLOP/s, and of the others 4.3 TB/s are read, for which fewer multiprocessors suffice (measured).
pub(super) fn share_of_prompts(attention: &Attention) -> f64 {
    let rows = (attention.group() * attention.qkv.rows) as f64;
    let ratio = 2.0 * 4.3 / (4.0 * 340.0) * rows / attention.num_sequences() as f64;
    let share = ratio / (ratio + 0.6);
    let is_shared = share >= SHARE_OF_PROMPTS_MIN && attention.num_sequences() >= SHARING_SEQUENCES_MIN;
    if is_shared { share } else { 1.0 }
}

/// Keys and values that are factors as they are, whole panels of a head, and copies of whole swizzled rows of 8 positions.
pub(super) fn fits(form: &Form) -> bool {
    form.gpu.capability == 90
        && form.cache == form.dtype
        && [64, 128, 256].contains(&form.heads.head_dim)
        && form.block_size.is_multiple_of(SWIZZLED_ROWS)
        && form.group() <= Items::Tiles.group_max()
}

/// Positions of a tile.
fn keys(head_dim: usize) -> usize {
    if head_dim <= 128 { 128 } else { 64 }
}

/// `Shared` of the source, with room to begin where swizzled rows repeat.
fn shared_bytes(form: &Form, items: Items) -> usize {
    let (head_dim, keys) = (form.heads.head_dim, keys(form.heads.head_dim));
    let stages = items.stages(head_dim);
    let beside_context = match items {
        Items::Tiles => {
            let items_at_once = if head_dim > HEAD_DIM_OF_TWO { 1 } else { 2 };
            items_at_once * ROWS * items.consumers() * head_dim * 2
        }
        // What warps tell each other: the weights of each tile in 16 bits, the largest scores of 4 warps, and 16 totals.
        Items::FewSingleTokens | Items::SingleTokens => {
            let rows = form.group().next_multiple_of(SWIZZLED_ROWS);
            rows * (stages[0] * (keys * 2 + 16 + 4 * 4) + 16 * 4)
        }
    };
    SWIZZLED_BYTES + stages.iter().sum::<usize>() * keys * head_dim * 2 + BOOKKEEPING_BYTES + beside_context
}

/// What one copy brings: positions that are in one block and one tile, which has a power of two of them.
fn copied_positions(form: &Form) -> usize {
    keys(form.heads.head_dim).min(1 << form.block_size.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::HeadLayout;
    use crate::cuda::gpu::Gpu;

    fn form(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> Form {
        let heads = HeadLayout { num_heads, num_kv_heads, head_dim };
        let gpu = Gpu::of_architecture(90)[0];
        Form { dtype: DType::BF16, cache: DType::BF16, heads, block_size: 16, is_capped: false, gpu }
    }

    #[test]
    fn two_blocks_of_single_tokens_share_a_multiprocessor() {
        let blocks = |form: &Form, items| Wgmma::new(form, items).map(|wgmma| wgmma.blocks_per_multiprocessor);
        for head_dim in [64, 128] {
            assert_eq!(blocks(&form(32, 8, head_dim), Items::SingleTokens), Some(2), "heads of {head_dim}");
        }
        assert_eq!(blocks(&form(4, 1, 256), Items::SingleTokens), Some(1));
        assert_eq!(blocks(&form(32, 8, 128), Items::Tiles), Some(1));
    }

    #[test]
    fn copies_stay_in_a_block_and_in_a_tile() {
        let copied = |head_dim, block_size| copied_positions(&Form { block_size, ..form(8, 8, head_dim) });
        assert_eq!([8, 16, 24, 48, 256].map(|block_size| copied(128, block_size)), [8, 16, 8, 16, 128]);
        assert_eq!(copied(256, 128), 64);
    }

    #[test]
    fn more_heads_than_a_matrix_instruction_has_rows_go_through_the_kernel_for_prompts() {
        let takes = |num_heads, items| Wgmma::new(&form(num_heads, 1, 64), items).is_some();
        assert!([16, 17, 128].map(|heads| takes(heads, Items::Tiles)).iter().all(|&taken| taken));
        assert_eq!([16, 17].map(|heads| takes(heads, Items::SingleTokens)), [true, false]);
    }
}
