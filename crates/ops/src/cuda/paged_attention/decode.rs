//! Sequences with one token in the batch: a block for a context, a cluster of blocks, or contexts divided among all blocks.
//!
//! Where there are more contexts than the GPU runs at a time, or long ones, all blocks have a piece of equal length of them. On
//! Hopper, the contexts of few sequences have a cluster of blocks each, as large as the GPU has room for. How a context is
//! divided then depends on the other sequences, and so do the last bits.

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
const STAGES_MAX: usize = 3;
const LANES: usize = 32;
const CLUSTER_MAX: usize = 8;
const COUNTERS_OF_OTHERS: usize = 32;
/// Shared memory that a block in a cluster asks for at least if heads are long, as those of products do. Measured with
/// Qwen3-0.6B: where a block of gates finds room beside it, one sequence takes 5 % longer.
const CLUSTERED_SHARED_BYTES_MIN: usize = 105_472;
/// Pieces of contexts for each block that runs at a time, beside another kernel.
const PIECES_BESIDE: usize = 2;
/// Positions up to which a block takes a whole context.
const WHOLE_CONTEXT: usize = 1024;

/// What is still to happen to rows of queries, keys and values.
pub(super) struct Fresh<'a> {
    pub target: &'a QkvTarget,
    pub rotation: Rotation,
}

/// How a call is compiled and launched.
pub(super) struct Decode {
    warps: usize,
    stages: usize,
    /// Shared memory without the list of contexts.
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
    /// `beside`: the launch before takes the other sequences of the batch, on this share of the GPU, and nothing of it is needed.
    pub(super) fn launch(&self, attention: &Attention, out: &CubeTensor, fresh: Option<&Fresh>, beside: Option<f64>) {
        let cluster = self.cluster(attention);
        let divides = self.divides(attention);
        let mut shape = attention.shape();
        shape.divided = divides.into();
        shape.beside = beside.is_some().into();
        let blocks = if divides { self.dividing_blocks(attention, beside) } else { contexts(attention) * cluster };
        // Sums, their largest score and total, of two parts for each block.
        let of_part = attention.group().min(HEADS) * (attention.options.heads.head_dim + 2);
        let partial = empty(out, [if divides { 2 * blocks * of_part } else { 1 }], DType::F32);
        let shared_bytes = match cluster {
            1 if divides => self.shared_bytes + list_bytes(attention.num_sequences()),
            1 => self.shared_bytes,
            _ => self.clustered_shared_bytes(attention),
        };
        let grid = Grid::new([blocks, 1, 1], self.warps * LANES).with_shared(shared_bytes).in_clusters(cluster);
        let grid = if beside.is_some() { grid.starting_early() } else { grid };
        let launch = Launch::new(self.kernel(&attention.form(), fresh.is_some(), cluster > 1), grid);
        let launch = launch.read(&attention.qkv.tensor);
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
    }

    /// Shared memory of a block in a cluster.
    fn clustered_shared_bytes(&self, attention: &Attention) -> usize {
        if attention.options.heads.head_dim <= 64 {
            return self.shared_bytes;
        }
        let room = attention.gpu.shared_bytes_of_block(self.blocks_per_multiprocessor);
        self.shared_bytes.max(CLUSTERED_SHARED_BYTES_MIN.min(room))
    }

    /// Blocks that the GPU runs at a time.
    fn at_once(&self, attention: &Attention) -> usize {
        attention.gpu.multiprocessors * self.blocks_per_multiprocessor
    }

    /// As many as run at a time, and the same number for each group of heads; smaller pieces where others take a part of the GPU.
    fn dividing_blocks(&self, attention: &Attention, beside: Option<f64>) -> usize {
        let groups = groups_of_heads(attention);
        let is_shared = beside.is_some_and(|share| share < 1.0);
        let blocks = self.at_once(attention) * if is_shared { PIECES_BESIDE } else { 1 };
        groups * (blocks.min(COUNTERS - COUNTERS_OF_OTHERS) / groups).max(1)
    }

    /// Whether blocks have pieces of all contexts: where there are more contexts than blocks, or long ones.
    pub(super) fn divides(&self, attention: &Attention) -> bool {
        let seen = attention.options.sliding_window.unwrap_or(usize::MAX).min(attention.context_max());
        self.cluster(attention) == 1 && (seen > WHOLE_CONTEXT || contexts(attention) > self.at_once(attention))
    }

    /// Blocks that share a context, all of which run at a time; 1: contexts have parts instead.
    fn cluster(&self, attention: &Attention) -> usize {
        if !has_clusters(&attention.gpu) {
            return 1;
        }
        let contexts = contexts(attention).max(1);
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
        clustered.iter().map(|&clustered| self.kernel(form, fresh, clustered)).collect()
    }

    fn kernel(&self, form: &Form, fresh: bool, clustered: bool) -> Kernel {
        let kernel = Kernel::new(&PAGED_ATTENTION_DECODE, "attend_decode").word("ELEMENT", element(form.dtype));
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

/// Groups of query heads that a block takes together.
fn groups_of_heads(attention: &Attention) -> usize {
    attention.options.heads.num_kv_heads * attention.group().div_ceil(HEADS)
}

/// Contexts, counted once for each group of heads.
fn contexts(attention: &Attention) -> usize {
    attention.num_sequences() * groups_of_heads(attention)
}

/// `List` of the source.
fn list_bytes(sequences: usize) -> usize {
    (2 * sequences + 1) * size_of::<i32>()
}

/// What `Shared` of the source has besides the rings.
fn merging_bytes(head_dim: usize, (taken, warps): (usize, usize), clustered: bool) -> usize {
    let words = warps * taken * (head_dim + 8) + 2 * warps * HEADS + warps + 2;
    let sent = taken * head_dim + 4 * CLUSTER_MAX + 2 * CLUSTER_MAX * taken + 4;
    (words + if clustered { sent } else { 0 }) * size_of::<f32>()
}
