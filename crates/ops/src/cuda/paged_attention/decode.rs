//! Sequences with one token in the batch: a block for a context, a cluster of blocks, or contexts divided among all blocks.
//!
//! Where there are more contexts than the GPU runs at a time, or long ones, all blocks have a piece of equal length of them: a
//! kernel plans that once for all layers of a step. On Hopper, the contexts of few sequences have a cluster of blocks each, as
//! large as the GPU has room for. How a context is divided then depends on the other sequences, and so do the last bits.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::{Attention, Form, row_bytes, wgmma};
use crate::cube::QkvTarget;
use crate::cuda::driver::COUNTERS;
use crate::cuda::gpu::Gpu;
use crate::cuda::kernel::Kernel;
use crate::cuda::launch::{Argument, Grid, Launch};
use crate::cuda::matrix::empty;
use crate::cuda::rope_and_store_kv::Rotation;
use crate::cuda::{PAGED_ATTENTION_DECODE, PAGED_ATTENTION_PLAN, element};

/// Constants of `paged_attention_decode.cu`.
const TILE: usize = 16;
const HEADS: usize = 8;
const STAGES_MAX: usize = 3;
const LANES: usize = 32;
const CLUSTER_MAX: usize = 8;
const COUNTERS_OF_OTHERS: usize = 32;
/// Threads of `paged_attention_plan.cu`, each of which plans for a block.
pub(super) const PLANNERS: usize = 1024;
/// Columns of heads of which registers suffice for three blocks, of those that run beside prompts and have 4 warps.
const HEAD_DIM_OF_THREE: usize = 128;
/// Columns of heads up to which they are short: 8 warps take them, and their contexts are divided alike.
const SHORT_HEAD: usize = 64;
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

/// How calls are compiled and launched.
pub(super) struct Decode {
    warps: usize,
    /// Where this kernel has the whole GPU.
    alone: Room,
    /// Where the kernel for prompts has a part of it, which only that of [`wgmma`] shares.
    beside: Room,
}

/// How blocks share a multiprocessor: few that copy far ahead, or more that each have less.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Room {
    blocks: usize,
    stages: usize,
    /// Of a block.
    shared_bytes: usize,
}

/// A call whose contexts are divided, if they are to be.
pub(super) struct Planned<'a> {
    decode: &'a Decode,
    division: Option<Division>,
    /// Whether it runs beside the launch before, of which it needs nothing.
    is_beside: bool,
}

/// What `paged_attention_plan.cu` has written.
#[derive(Clone)]
struct Division {
    /// `[S + blocks, 4]`
    parts: CubeTensor,
    /// `[blocks, 12]`
    plans: CubeTensor,
    /// Of each group of heads.
    blocks: usize,
}

impl Decode {
    /// `None` when not even one tile per warp fits into shared memory.
    pub(super) fn new(form: &Form) -> Option<Self> {
        let head_dim = form.heads.head_dim;
        let (taken, warps) = (form.group().min(HEADS), if head_dim <= SHORT_HEAD { 8 } else { 4 });
        let tile_bytes = 2 * TILE * row_bytes(head_dim, form.cache);
        let merging_bytes = merging_bytes(head_dim, (taken, warps), has_clusters(&form.gpu));
        let shared_bytes = |stages: usize| (warps * stages * tile_bytes + merging_bytes).next_multiple_of(16);
        let fitting = |blocks: usize, stages_min: usize| {
            let available = form.gpu.shared_bytes_of_block(blocks);
            let stages = (stages_min..=STAGES_MAX).rev().find(|&stages| shared_bytes(stages) <= available)?;
            Some(Room { blocks, stages, shared_bytes: shared_bytes(stages) })
        };
        let alone = fitting(2, 1).or_else(|| fitting(1, 1))?;
        let may_have_three = wgmma::fits(form) && head_dim == HEAD_DIM_OF_THREE;
        let beside = may_have_three.then(|| fitting(3, 2)).flatten().unwrap_or(alone);
        Some(Self { warps, alone, beside })
    }

    /// Divides the contexts, where they are to be, unless a layer before has. `beside`: the launch that follows takes the other
    /// sequences of the batch, on this share of the GPU.
    pub(super) fn planned(&self, attention: &Attention, beside: Option<f64>) -> Planned<'_> {
        let division = self.divides(attention).then(|| {
            let blocks = self.dividing_blocks(attention, beside);
            let shape = attention.shape();
            let kind = usize::from(attention.options.heads.head_dim <= SHORT_HEAD);
            let key = [kind, blocks, shape.window as usize, shape.mixed as usize];
            attention.derived.get_or_make(key, || Division::new(attention, blocks))
        });
        Planned { decode: self, division, is_beside: beside.is_some() }
    }

    /// Shared memory of a block in a cluster.
    fn clustered_shared_bytes(&self, attention: &Attention) -> usize {
        if attention.options.heads.head_dim <= SHORT_HEAD {
            return self.alone.shared_bytes;
        }
        let available = attention.gpu.shared_bytes_of_block(self.alone.blocks);
        self.alone.shared_bytes.max(CLUSTERED_SHARED_BYTES_MIN.min(available))
    }

    /// Blocks that the GPU runs at a time, if it runs no others.
    fn at_once(&self, attention: &Attention) -> usize {
        attention.gpu.multiprocessors * self.alone.blocks
    }

    /// For each group of heads, so that as many run at a time as can; smaller pieces where others take a part of the GPU.
    fn dividing_blocks(&self, attention: &Attention, beside: Option<f64>) -> usize {
        let groups = groups_of_heads(attention);
        let is_shared = beside.is_some_and(|share| share < 1.0);
        let at_once = attention.gpu.multiprocessors * self.room(beside.is_some()).blocks;
        let blocks = at_once * if is_shared { PIECES_BESIDE } else { 1 };
        (blocks.min(COUNTERS - COUNTERS_OF_OTHERS) / groups).clamp(1, PLANNERS)
    }

    /// Whether blocks have pieces of all contexts: where there are more contexts than blocks, or long ones, and a block can list
    /// them to plan that.
    pub(super) fn divides(&self, attention: &Attention) -> bool {
        let is_uneven = seen(attention) > WHOLE_CONTEXT || contexts(attention) > self.at_once(attention);
        let sums_bytes = PLANNERS / LANES * size_of::<i32>();
        let can_list = list_bytes(attention.num_sequences()) + sums_bytes <= attention.gpu.shared_bytes_of_block(1);
        self.cluster(attention) == 1 && is_uneven && can_list
    }

    /// Whether contexts are short, and so many that blocks take whole ones.
    pub(super) fn has_short_contexts(&self, attention: &Attention) -> bool {
        self.cluster(attention) == 1 && seen(attention) <= WHOLE_CONTEXT
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

    fn room(&self, is_beside: bool) -> Room {
        if is_beside { self.beside } else { self.alone }
    }

    /// Every kernel that decodes, for rows as the projection left them or not.
    pub(super) fn kernels(&self, form: &Form, fresh: bool) -> Vec<Kernel> {
        let clustered = if has_clusters(&form.gpu) { &[false, true][..] } else { &[false] };
        let alone = clustered.iter().map(|&clustered| self.kernel(form, fresh, clustered, self.alone));
        let beside = (!fresh && self.beside != self.alone).then(|| self.kernel(form, fresh, false, self.beside));
        alone.chain(beside).collect()
    }

    fn kernel(&self, form: &Form, fresh: bool, clustered: bool, room: Room) -> Kernel {
        let kernel = Kernel::new(&PAGED_ATTENTION_DECODE, "attend_decode").word("ELEMENT", element(form.dtype));
        form.gpu
            .with_cache(kernel, form.cache)
            .number("HEAD_DIM", form.heads.head_dim)
            .number("GROUP", form.group())
            .number("BLOCK_SIZE", form.block_size)
            .number("STAGES", room.stages)
            .number("RESIDENT", room.blocks)
            .number("FRESH", fresh.into())
            .number("CLUSTERED", clustered.into())
    }
}

impl Planned<'_> {
    /// Attends; `fresh` says how the rows become queries, keys and values, where that has not happened to them.
    pub(super) fn launch(&self, attention: &Attention, out: &CubeTensor, fresh: Option<&Fresh>) {
        let Self { decode, division, is_beside } = self;
        let cluster = decode.cluster(attention);
        let mut shape = attention.shape();
        shape.divided = division.is_some().into();
        shape.beside = (*is_beside).into();
        let groups = groups_of_heads(attention);
        let rows = division.as_ref().map_or(attention.num_sequences(), |division| division.blocks);
        // Sums, their largest score and total, of two parts for each block.
        let of_part = attention.group().min(HEADS) * (attention.options.heads.head_dim + 2);
        let places = if division.is_some() { 2 * groups * rows * of_part } else { 1 };
        let partial = empty(out, [places], DType::F32);
        let room = decode.room(*is_beside && cluster == 1);
        let shared_bytes = if cluster == 1 { room.shared_bytes } else { decode.clustered_shared_bytes(attention) };
        let grid = Grid::new([groups * cluster, rows, 1], decode.warps * LANES).with_shared(shared_bytes);
        let grid = grid.in_clusters(cluster);
        let grid = if *is_beside { grid.starting_early() } else { grid };
        let launch = Launch::new(decode.kernel(&attention.form(), fresh.is_some(), cluster > 1, room), grid);
        let launch = launch.read(&attention.qkv.tensor);
        let launch = match fresh {
            Some(_) => launch.write(&attention.keys).write(&attention.values),
            None => launch.read(&attention.keys).read(&attention.values),
        };
        let launch = launch
            .read(&attention.query_starts)
            .read(&attention.context_lens)
            .read(&attention.tables.tensor)
            .read_if(division.as_ref().map(|division| &division.parts))
            .read_if(division.as_ref().map(|division| &division.plans))
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
}

impl Division {
    /// Divides the contexts of the batch among so many blocks of each group of heads.
    fn new(attention: &Attention, blocks: usize) -> Self {
        let sequences = attention.num_sequences();
        let like = &attention.context_lens;
        let [parts, plans] = [[sequences + blocks, 4], [blocks, 12]].map(|shape| empty(like, shape, DType::I32));
        let shape = attention.shape();
        let grid = Grid::new([1, 1, 1], PLANNERS).with_shared(list_bytes(sequences));
        Launch::new(divide_contexts(&attention.form()), grid)
            .read(&attention.query_starts)
            .read(&attention.context_lens)
            .write(&parts)
            .write(&plans)
            .value(sequences)
            .value(shape.window as usize)
            .value(shape.mixed as usize)
            .value(blocks)
            .submit(like);
        Self { parts, plans, blocks }
    }
}

pub(super) fn divide_contexts(form: &Form) -> Kernel {
    planning("divide_contexts", form)
}

/// A kernel of `paged_attention_plan.cu`.
pub(super) fn planning(entry: &'static str, form: &Form) -> Kernel {
    Kernel::new(&PAGED_ATTENTION_PLAN, entry).number("HEAD_DIM", form.heads.head_dim)
}

/// Positions of the longest context that its token sees.
fn seen(attention: &Attention) -> usize {
    attention.options.sliding_window.unwrap_or(usize::MAX).min(attention.context_max())
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

/// `List` of `paged_attention_plan.cu`.
fn list_bytes(sequences: usize) -> usize {
    (2 * sequences + 1) * size_of::<i32>()
}

/// What `Shared` of the source has besides the rings.
fn merging_bytes(head_dim: usize, (taken, warps): (usize, usize), clustered: bool) -> usize {
    let words = warps * taken * (head_dim + 8) + 2 * warps * HEADS + 1;
    let sent = taken * head_dim + 4 * CLUSTER_MAX + 2 * CLUSTER_MAX * taken + 4;
    (words + if clustered { sent } else { 0 }) * size_of::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeadLayout;
    use crate::e4m3::E4M3;

    #[test]
    fn three_blocks_share_a_multiprocessor_beside_prompts_where_they_fit() {
        let [hopper, ampere] = [90, 80].map(|capability| Gpu::of_architecture(capability)[0]);
        let blocks = |gpu, (num_heads, head_dim), cache| {
            let heads = HeadLayout { num_heads, num_kv_heads: 8, head_dim };
            let form = Form { dtype: DType::BF16, cache, heads, block_size: 16, is_capped: false, gpu };
            let Decode { alone, beside, .. } = Decode::new(&form).expect("a tile fits");
            [alone.blocks, beside.blocks]
        };
        assert_eq!(blocks(hopper, (16, 128), DType::BF16), [2, 3]);
        // Sums of four heads take the room of a third; heads of 64 have twice the warps.
        assert_eq!(blocks(hopper, (32, 128), DType::BF16), [2, 2]);
        assert_eq!(blocks(hopper, (16, 64), DType::BF16), [2, 2]);
        // Nothing runs beside prompts of other kernels.
        assert_eq!(blocks(hopper, (16, 128), E4M3), [2, 2]);
        assert_eq!(blocks(ampere, (16, 128), DType::BF16)[1], blocks(ampere, (16, 128), DType::BF16)[0]);
    }
}
