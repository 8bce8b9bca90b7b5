//! Sequences with one token in the batch: contexts in parts, a block for each.
//!
//! Few parts have a block each and are merged by the last of them; where there would be more than the GPU runs at a time,
//! blocks share a list of parts and a second kernel merges. Both are the same operations in the same order. On Hopper, the
//! contexts of few sequences have a cluster of blocks each, as large as the GPU has room for: how a context is divided then
//! depends on the number of sequences, and so do the last bits.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::{Attention, Form, row_bytes};
use crate::cube::QkvTarget;
use crate::cuda::driver::COUNTERS;
use crate::cuda::gpu::Gpu;
use crate::cuda::kernel::Kernel;
use crate::cuda::launch::{Argument, Grid, Launch};
use crate::cuda::matrix::empty;
use crate::cuda::rope_and_store_kv::Rotation;
use crate::cuda::{PAGED_ATTENTION_DECODE, element};

/// Constants of `paged_attention_decode.cu`.
const TILE: usize = 16;
const HEADS: usize = 8;
const WHOLE_CONTEXT: usize = 1024;
const PART: usize = 512;
const PARTS: usize = 16;
const STAGES_MAX: usize = 3;
const LANES: usize = 32;
const CLUSTER_MAX: usize = 8;
/// Blocks for each multiprocessor that merge parts: as many as have room beside those that attend, so that where no context has
/// parts they have nothing to wait for but the end of those.
const MERGING_BLOCKS: usize = 4;

/// What is still to happen to rows of queries, keys and values.
pub(super) struct Fresh<'a> {
    pub target: &'a QkvTarget,
    pub rotation: Rotation,
}

/// How a call is compiled and launched.
pub(super) struct Decode {
    warps: usize,
    stages: usize,
    /// Shared memory without the list of parts.
    shared_bytes: usize,
    blocks_per_multiprocessor: usize,
}

impl Decode {
    /// `None` when not even one tile per warp fits into shared memory.
    pub(super) fn new(form: &Form, num_sequences: usize) -> Option<Self> {
        let head_dim = form.heads.head_dim;
        let (taken, warps) = (form.group().min(HEADS), if head_dim <= 64 { 8 } else { 4 });
        let tile_bytes = 2 * TILE * row_bytes(head_dim, form.cache);
        let merging_bytes = merging_bytes(head_dim, (taken, warps), has_clusters(&form.gpu));
        let shared_bytes = |stages: usize| (warps * stages * tile_bytes + merging_bytes).next_multiple_of(16);
        let list_bytes = list_bytes(num_sequences);
        let fitting = |blocks: usize| {
            let room = form.gpu.shared_bytes_of_block(blocks).checked_sub(list_bytes)?;
            (1..=STAGES_MAX).rev().find(|&stages| shared_bytes(stages) <= room)
        };
        let (blocks_per_multiprocessor, stages) = match fitting(2) {
            Some(stages) => (2, stages),
            None => (1, fitting(1)?),
        };
        let shared_bytes = shared_bytes(stages);
        Some(Self { warps, stages, shared_bytes, blocks_per_multiprocessor })
    }

    /// Attends; `fresh` says how the rows become queries, keys and values, where that has not happened to them.
    pub(super) fn launch(&self, attention: &Attention, out: &CubeTensor, fresh: Option<&Fresh>) {
        let heads = attention.options.heads;
        let cluster = self.cluster(attention);
        let (sequences, parts_max, per_part) = counts(attention, cluster);
        let blocks = sequences * parts_max * per_part * cluster;
        let is_dense = self.shares_blocks(attention);
        let mut shape = attention.shape();
        shape.parts_max = parts_max as i32;
        shape.dense = is_dense.into();
        // Sums and their scales; one part writes its result itself.
        let partial_len =
            if parts_max > 1 { sequences * heads.num_heads * parts_max * (heads.head_dim + 2) } else { 1 };
        let partial = empty(out, [partial_len], DType::F32);
        let blocks = if is_dense { blocks.min(self.at_once(attention)) } else { blocks };
        let shared_bytes = self.shared_bytes + if is_dense { list_bytes(sequences) } else { 0 };
        let grid = Grid::new([blocks, 1, 1], self.warps * LANES).with_shared(shared_bytes).in_clusters(cluster);
        let kernel = |entry| self.kernel(&attention.form(), entry, fresh.is_some(), cluster > 1);
        let launch = Launch::new(kernel("attend_decode"), grid).read(&attention.qkv.tensor);
        let launch = match fresh {
            Some(_) => launch.write(&attention.keys).write(&attention.values),
            None => launch.read(&attention.keys).read(&attention.values),
        };
        let launch = launch
            .read(&attention.query_starts)
            .read(&attention.context_lens)
            .read(&attention.tables.tensor)
            .write(out)
            .write(&partial)
            .value(Argument::Counters)
            .value(shape.argument());
        match fresh {
            Some(Fresh { target, rotation }) => launch.read_all(target.read_by_kernels()).value(rotation.argument()),
            None => launch,
        }
        .submit(out);
        if is_dense && parts_max > 1 {
            let blocks = (sequences * per_part).min(MERGING_BLOCKS * attention.gpu.multiprocessors);
            let grid = Grid::new([blocks, 1, 1], self.warps * LANES);
            Launch::new(kernel("merge_decode"), grid)
                .read(&attention.query_starts)
                .read(&attention.context_lens)
                .write(out)
                .read(&partial)
                .value(shape.argument())
                .submit(out);
        }
    }

    /// Blocks that the GPU runs at a time.
    fn at_once(&self, attention: &Attention) -> usize {
        attention.gpu.multiprocessors * self.blocks_per_multiprocessor
    }

    /// Whether there may be more parts than blocks, so that a block takes several.
    pub(super) fn shares_blocks(&self, attention: &Attention) -> bool {
        let cluster = self.cluster(attention);
        let (sequences, parts_max, per_part) = counts(attention, cluster);
        sequences * parts_max * per_part * cluster > self.at_once(attention) || sequences * per_part > COUNTERS
    }

    /// Blocks that share a context, all of which run at a time; 1: contexts have parts instead.
    fn cluster(&self, attention: &Attention) -> usize {
        if !has_clusters(&attention.gpu) {
            return 1;
        }
        let (sequences, _, per_part) = counts(attention, 1);
        let contexts = (sequences * per_part).max(1);
        // Measured: a block for each multiprocessor is best. Two halves are better than none as long as no cluster has to
        // wait for places that lie together.
        match attention.gpu.multiprocessors / contexts {
            0 | 1 if 2 * contexts <= self.at_once(attention) * 3 / 4 => 2,
            0 => 1,
            blocks => (1 << blocks.ilog2()).min(CLUSTER_MAX),
        }
    }

    /// Every kernel that decodes, for rows as the projection left them or not.
    pub(super) fn kernels(&self, form: &Form, fresh: bool) -> Vec<Kernel> {
        let clustered = if has_clusters(&form.gpu) { &[false, true][..] } else { &[false] };
        clustered.iter().map(|&clustered| self.kernel(form, "attend_decode", fresh, clustered)).collect()
    }

    fn kernel(&self, form: &Form, entry: &'static str, fresh: bool, clustered: bool) -> Kernel {
        let kernel = Kernel::new(&PAGED_ATTENTION_DECODE, entry).word("ELEMENT", element(form.dtype));
        form.gpu
            .with_cache(kernel, form.cache)
            .number("HEAD_DIM", form.heads.head_dim)
            .number("GROUP", form.group())
            .number("BLOCK_SIZE", form.block_size)
            .number("STAGES", self.stages)
            .number("FRESH", fresh.into())
            .number("CLUSTERED", clustered.into())
    }
}

fn has_clusters(gpu: &Gpu) -> bool {
    gpu.capability >= 90
}

/// Sequences, parts of each at most, and blocks, or clusters of them, that attend to one part.
fn counts(attention: &Attention, cluster: usize) -> (usize, usize, usize) {
    let per_part = attention.options.heads.num_kv_heads * attention.group().div_ceil(HEADS);
    let parts_max = if cluster > 1 { 1 } else { parts_max(attention) };
    (attention.num_sequences(), parts_max, per_part)
}

/// Parts of a context at most: one more than fill it where a window can begin inside a part.
fn parts_max(attention: &Attention) -> usize {
    let window = attention.options.sliding_window;
    let seen = window.map_or(usize::MAX, |window| window.max(1)).min(attention.context_max());
    let parts = if seen <= WHOLE_CONTEXT { 1 } else { seen.div_ceil(PART).min(PARTS) };
    parts + usize::from(window.is_some())
}

/// Where the parts of each sequence begin, and its context.
fn list_bytes(sequences: usize) -> usize {
    (2 * sequences + 1) * size_of::<i32>()
}

/// What `Shared` of the source has besides the rings.
fn merging_bytes(head_dim: usize, (taken, warps): (usize, usize), clustered: bool) -> usize {
    let words = warps * taken * (head_dim + 8) + 2 * warps * HEADS + taken * (LANES + 1) + warps + 1;
    let sent = taken * head_dim + 4 * CLUSTER_MAX + 2 * CLUSTER_MAX * taken + 4;
    (words + if clustered { sent } else { 0 }) * size_of::<f32>()
}
