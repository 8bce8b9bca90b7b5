//! Elementwise activations, plain and gated.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::kernel::Kernel;
use super::launch::{Grid, Launch};
use super::matrix::{Matrix, widest};
use super::{ACTIVATION, element};
use crate::activation::Activation;
use crate::backend::Activated;

const THREADS: usize = 256;

pub(crate) fn activation(x: CubeTensor, kind: Activation) -> CubeTensor {
    let x = Matrix::of(x);
    let columns = x.columns;
    launch("activation", x, columns, kind)
}

pub(crate) fn gated_activation(gate_up: CubeTensor, kind: Activation) -> CubeTensor {
    let gate_up = Matrix::of(gate_up);
    let columns = gate_up.columns / 2;
    launch("gated_activation", gate_up, columns, kind)
}

fn launch(entry: &'static str, x: Matrix, columns: usize, kind: Activation) -> CubeTensor {
    let out = x.like(columns);
    let kernel = kernel(entry, x.tensor.dtype, kind);
    let groups = columns.div_ceil(widest(x.tensor.dtype));
    // Blocks of equal size, so that none is half empty.
    let blocks = groups.div_ceil(THREADS);
    let threads = groups.div_ceil(blocks).next_multiple_of(32);
    Launch::new(kernel, Grid::new([x.rows, blocks, 1], threads))
        .read(&x.tensor)
        .value(x.stride)
        .write(&out)
        .value(columns)
        .submit(&out);
    out
}

pub(super) fn kernel(entry: &'static str, dtype: DType, kind: Activation) -> Kernel {
    Kernel::new(&ACTIVATION, entry).word("ELEMENT", element(dtype)).word("KIND", name(kind))
}

/// The name of a kind in the source.
pub(super) fn name(kind: Activation) -> &'static str {
    match kind {
        Activation::Silu => "SILU",
        Activation::GeluTanh => "GELU_TANH",
        Activation::GeluErf => "GELU_ERF",
        Activation::Relu => "RELU",
    }
}

/// A kernel that does this after a product, in the words of the sources.
pub(super) fn with_after(kernel: Kernel, dtype: DType, activated: Activated) -> Kernel {
    let (after, kind) = match activated {
        Activated::Not => ("STORE", Activation::Relu),
        Activated::All(kind) => ("ACTIVATE", kind),
        Activated::Gated(kind) => ("GATE", kind),
    };
    kernel.word("ELEMENT", element(dtype)).word("AFTER", after).word("KIND", name(kind))
}
