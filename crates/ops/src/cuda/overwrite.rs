//! The words of a step: a kernel reads them from host memory and puts the tokens among them that the step before has chosen.
//!
//! A copy engine would take longer: it and the kernels around it wait for each other.

use burn_cubecl::tensor::CubeTensor;
use cubecl::bytes::Bytes;
use cudarc::driver::sys;

use super::GATHER_ROWS;
use super::driver::check;
use super::kernel::Kernel;
use super::launch::{Argument, Grid, Operands, Session, submit};
use super::matrix::dense;
use super::pinned::PIECE_BYTES_MAX;

const THREADS: usize = 256;

/// What goes where in the words.
pub(crate) struct Carried {
    pub choices: CubeTensor,
    pub tokens: usize,
    pub sources: usize,
}

/// Writes into the memory of `target`, which has no gaps.
pub(crate) fn overwrite(target: CubeTensor, values: Vec<i32>, carried: Option<Carried>) -> CubeTensor {
    let count = values.len();
    let is_small = count * size_of::<i32>() <= PIECE_BYTES_MAX;
    if !is_small {
        target.client.write(&target.handle, Bytes::from_elems(values.clone()));
        if carried.is_none() {
            return target;
        }
    }
    let mut operands = Operands::default();
    let to = Argument::Address(operands.write(&target));
    let places = carried.map(|Carried { choices, tokens, sources }| {
        [Argument::Address(operands.read(&dense(choices))), tokens.into(), sources.into()]
    });
    let [choices, tokens, sources] = places.unwrap_or([Argument::Null, 0.into(), 0.into()]);
    submit(&target, operands, move |mut session| {
        let from = if is_small { session.place(&values)? } else { session.addresses[0] };
        let kernel = Kernel::new(&GATHER_ROWS, "overwrite").number("UNIT", 4);
        let grid = Grid::new([count.div_ceil(THREADS), 1, 1], THREADS);
        session.launch(&kernel, grid, &[to, Argument::Word(from), count.into(), choices, tokens, sources])
    });
    target
}

impl Session<'_> {
    /// Where the next kernel finds the words: in host memory, or in the first operand where the device cannot read that.
    fn place(&mut self, words: &[i32]) -> Result<u64, String> {
        let bytes = bytemuck::cast_slice(words);
        if let Ok(ring) = self.driver.ring(self.stream) {
            return ring.place(bytes, self.stream);
        }
        let target = self.addresses[0];
        // SAFETY: the operand has as many words, and memory that is not pinned has been read when the call returns.
        let copied = unsafe { sys::cuMemcpyHtoDAsync_v2(target, bytes.as_ptr().cast(), bytes.len(), self.stream) };
        check("cuMemcpyHtoDAsync", copied).map(|()| target)
    }
}
