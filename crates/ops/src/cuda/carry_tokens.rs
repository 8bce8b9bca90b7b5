//! Tokens that the step before has chosen, put where this step reads its own.

use burn_cubecl::tensor::CubeTensor;

use super::GATHER_ROWS;
use super::kernel::Kernel;
use super::launch::{Grid, Launch};
use super::matrix::dense;

const THREADS: usize = 128;

/// Writes into the memory of `tokens`.
pub(crate) fn carry_tokens(tokens: CubeTensor, sources: CubeTensor, choices: CubeTensor) -> CubeTensor {
    let (sources, choices) = (dense(sources), dense(choices));
    let count = tokens.meta.num_elements();
    Launch::new(
        Kernel::new(&GATHER_ROWS, "carry_tokens").number("UNIT", 4),
        Grid::new([count.div_ceil(THREADS), 1, 1], THREADS),
    )
    .write(&tokens)
    .read(&sources)
    .read(&choices)
    .value(count)
    .submit(&tokens);
    tokens
}
