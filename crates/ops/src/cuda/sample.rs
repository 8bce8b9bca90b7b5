//! The choice of tokens: one pass over the logits, then further ones for the rows that need them.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::kernel::Kernel;
use super::launch::{Grid, Launch};
use super::matrix::{Matrix, dense, empty, widest};
use super::{SAMPLE, element};
use crate::sample::SampleOptions;

/// Threads of a block of `sample`, and of one that has a row to itself.
const THREADS: usize = 256;
const WIDE_THREADS: usize = 1024;
/// Blocks of THREADS that a multiprocessor holds.
const BLOCKS_PER_MULTIPROCESSOR: usize = 8;

pub(crate) fn sample(logits: CubeTensor, plan: CubeTensor, options: SampleOptions) -> CubeTensor {
    let (logits, plan) = (Matrix::of(logits), dense(plan));
    let out = empty(&plan, [options.result_words()], DType::I32);
    let tokens = logits.columns;
    let parts = parts(&logits, options.rows);
    let per_part = tokens.div_ceil(parts).next_multiple_of(THREADS);
    let parts = tokens.div_ceil(per_part);
    // A bit for each token that a block takes.
    let mask_bytes = |tokens: usize| if options.has_edits { tokens.div_ceil(32) * size_of::<u32>() } else { 0 };
    let launch = |entry, blocks, threads, shared_bytes| {
        let grid = Grid::new(blocks, threads).with_shared(shared_bytes);
        let launch = Launch::new(kernel(entry, logits.tensor.dtype), grid);
        launch.read(&logits.tensor).value(logits.stride).write(&plan).write(&out).value(tokens)
    };
    launch("sample", [parts, options.rows, 1], THREADS, mask_bytes(per_part)).value(per_part).submit(&out);
    if options.has_filters {
        launch("sample_filtered", [options.rows, 1, 1], WIDE_THREADS, mask_bytes(tokens)).submit(&out);
    }
    if options.logprobs_max.is_some() {
        launch("sample_logprobs", [options.rows, 1, 1], WIDE_THREADS, 0).submit(&out);
    }
    out
}

/// Blocks among which a row is divided: as many as the GPU holds at once, but no fewer tokens than fill one.
fn parts(logits: &Matrix, rows: usize) -> usize {
    let multiprocessors =
        logits.tensor.client.properties().hardware.num_streaming_multiprocessors.unwrap_or(1) as usize;
    let held = BLOCKS_PER_MULTIPROCESSOR * multiprocessors / rows.max(1);
    held.clamp(1, logits.columns.div_ceil(THREADS * widest(logits.tensor.dtype)))
}

pub(super) fn kernel(entry: &'static str, dtype: DType) -> Kernel {
    Kernel::new(&SAMPLE, entry).word("ELEMENT", element(dtype))
}
