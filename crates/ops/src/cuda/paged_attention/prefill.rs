//! Sequences with several tokens in the batch: a block takes rows of one sequence and one KV head.
//!
//! The grid is a bound of the number of such tiles that needs no look at the sequences' lengths: blocks without a tile
//! end at once. On compute capability 9.0, [`Wgmma`] takes them where it fits.

use burn_cubecl::tensor::CubeTensor;

use super::wgmma::{self, Items, Wgmma};
use super::{Attention, Form, row_bytes};
use crate::cuda::kernel::Kernel;
use crate::cuda::launch::{Grid, Launch};
use crate::cuda::{PAGED_ATTENTION_TILES, element};

/// Positions of a tile and threads in `paged_attention_tiles.cu`.
const TILES_POSITIONS: usize = 64;
const TILES_THREADS: usize = 128;

/// Which kernel takes a call.
pub(super) enum Prefill {
    Wgmma(Wgmma),
    Tiles(Tiles),
}

/// `paged_attention_tiles.cu`, and its shared memory.
pub(super) struct Tiles {
    shared_bytes: usize,
}

impl Prefill {
    /// `None` when no kernel fits into shared memory.
    pub(super) fn new(form: &Form) -> Option<Self> {
        if wgmma::fits(form) {
            return Wgmma::new(form, Items::Tiles).map(Self::Wgmma);
        }
        let shared_bytes = tiles_shared_bytes(form);
        (shared_bytes <= form.gpu.shared_bytes_of_block(1)).then_some(Self::Tiles(Tiles { shared_bytes }))
    }

    /// The share of the GPU that it has beside a launch for the sequences with one token, if they may run together.
    pub(super) fn share(&self, attention: &Attention) -> Option<f64> {
        matches!(self, Self::Wgmma(_)).then(|| wgmma::share_of_prompts(attention))
    }

    /// `beside`: its share of the GPU, if others run at the same time.
    pub(super) fn launch(&self, attention: &Attention, out: &CubeTensor, beside: Option<f64>) {
        match self {
            Self::Wgmma(wgmma) => wgmma.launch(attention, out, beside),
            Self::Tiles(tiles) => tiles.launch(attention, out),
        }
    }

    pub(super) fn kernel(&self, form: &Form) -> Kernel {
        match self {
            Self::Wgmma(wgmma) => wgmma.kernel(form),
            Self::Tiles(_) => Tiles::kernel(form),
        }
    }
}

impl Tiles {
    fn kernel(form: &Form) -> Kernel {
        let kernel = Kernel::new(&PAGED_ATTENTION_TILES, "attend_tiles").word("ELEMENT", element(form.dtype));
        let kernel = kernel.number("HEAD_DIM", form.heads.head_dim).number("GROUP", form.group());
        form.gpu.with_cache(kernel, form.cache)
    }

    fn launch(&self, attention: &Attention, out: &CubeTensor) {
        let heads = attention.options.heads;
        let rows = tiles_rows(heads.head_dim);
        let tiles = attention.qkv.rows * attention.group() / rows + attention.num_sequences();
        let grid = Grid::new([tiles * heads.num_kv_heads, 1, 1], TILES_THREADS).with_shared(self.shared_bytes);
        Launch::new(Self::kernel(&attention.form()), grid)
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
