//! Multiplication by a weight matrix: own kernels for few rows and for mixed dtypes, cuBLASLt for many rows.
//!
//! Our kernels sum in an order that depends on the inputs alone; cuBLASLt's algorithm, and with it the order, depends on
//! the number of rows. Few rows go through [`linear_few_rows`](super::linear_few_rows), tens to hundreds with small weights on
//! Hopper through [`linear_wgmma`](super::linear_wgmma); beyond, the library keeps the matrix units busy, or
//! [`linear_wgmma_tiles`](super::linear_wgmma_tiles) where something comes after the product. Where bits must not depend on the
//! batch, the kernels of Hopper take all rows but few, and [`linear_tiles`](super::linear_tiles) those on other cards.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use bytemuck::{Pod, Zeroable};

use super::cublaslt::{Multiplied, Product};
use super::gpu::is_batch_invariant;
use super::kernel::Kernel;
use super::launch::{Argument, Grid, Operands, Session, submit};
use super::linear_few_rows::{After, FEW_ROWS, FewRows, fits, suits};
use super::linear_tiles::linear_tiles;
use super::linear_wgmma::{self, SomeRows};
use super::matrix::{Matrix, Weights, dense};
use super::{LINEAR, element};
use crate::backend::Activated;

/// Threads of a block in `linear.cu`, and the outputs and rows that it takes there.
const THREADS: usize = 256;
const OUTPUTS_PER_BLOCK: usize = 8;
const ROWS_PER_BLOCK: usize = 8;

/// `Shape` of the sources.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Shape {
    pub rows: i32,
    pub outputs: i32,
    pub inputs: i32,
    pub padding: i32,
    pub x_stride: i64,
    pub weight_stride: i64,
    pub residual_stride: i64,
}

/// One call.
struct Linear {
    x_dtype: DType,
    weight_dtype: DType,
    rows: usize,
    outputs: usize,
    inputs: usize,
    x_stride: usize,
    weight_stride: usize,
    residual_stride: usize,
    is_batch_invariant: bool,
    /// x, weight, scales, bias, residual, out.
    arguments: [Argument; 6],
}

pub(crate) fn linear(
    x: CubeTensor,
    weight: CubeTensor,
    bias: Option<CubeTensor>,
    residual: Option<CubeTensor>,
) -> CubeTensor {
    let weights = Weights { matrix: Matrix::of(weight), scales: None };
    multiply(Matrix::of(x), weights, bias.map(dense), residual.map(Matrix::of))
}

/// The same with weights in any form.
pub(super) fn multiply(x: Matrix, weights: Weights, bias: Option<CubeTensor>, residual: Option<Matrix>) -> CubeTensor {
    let (x_dtype, weight_dtype) = (x.tensor.dtype, weights.matrix.tensor.dtype);
    assert!(
        x_dtype == weight_dtype || x_dtype == DType::F32 || weights.scales.is_some(),
        "linear: x in {x_dtype:?} cannot meet a weight in {weight_dtype:?}"
    );
    assert!(bias.as_ref().is_none_or(|bias| bias.dtype == DType::F32), "linear: the bias is in 32-bit floats");
    assert!(
        residual.as_ref().is_none_or(|residual| residual.tensor.dtype == x_dtype),
        "linear: the residual is in the dtype of x"
    );
    if fits(&x, &weights) {
        return FewRows { x, norm: None, weights, bias, after: After::Store(residual) }.run();
    }
    if linear_wgmma::fits(&x, &weights, residual.as_ref(), Activated::Not) {
        let weight = weights.matrix;
        return SomeRows { x, norm: None, weight, bias, residual, activated: Activated::Not }.run();
    }
    let is_batch_invariant = is_batch_invariant();
    if is_batch_invariant && weights.scales.is_none() && suits(&x, &weights) {
        return linear_tiles(&x, &weights.matrix, bias.as_ref(), residual.as_ref());
    }
    let Weights { matrix: weight, scales } = weights;
    let out = x.like(weight.rows);
    let mut operands = Operands::default();
    let mut read =
        |tensor: Option<&CubeTensor>| tensor.map_or(Argument::Null, |tensor| Argument::Address(operands.read(tensor)));
    let arguments = [
        read(Some(&x.tensor)),
        read(Some(&weight.tensor)),
        read(scales.as_ref()),
        read(bias.as_ref()),
        read(residual.as_ref().map(|residual| &residual.tensor)),
        Argument::Address(operands.write(&out)),
    ];
    let call = Linear {
        x_dtype,
        weight_dtype,
        rows: x.rows,
        outputs: weight.rows,
        inputs: weight.columns,
        x_stride: x.stride,
        weight_stride: weight.stride,
        residual_stride: residual.as_ref().map_or(0, |residual| residual.stride),
        is_batch_invariant,
        arguments,
    };
    submit(&out, operands, move |session| call.run(session));
    out
}

impl Linear {
    fn run(&self, mut session: Session) -> Result<(), String> {
        if self.rows == 0 {
            return Ok(());
        }
        if self.rows > FEW_ROWS && self.x_dtype == self.weight_dtype && !self.is_batch_invariant {
            return self.many_rows(&mut session);
        }
        self.any_rows(&mut session)
    }

    fn many_rows(&self, session: &mut Session) -> Result<(), String> {
        let address = |argument: &Argument| match argument {
            Argument::Address(index) => Some(session.addresses[*index]),
            _ => None,
        };
        let [x, weight, _, bias, residual, out] = self.arguments.each_ref().map(address);
        let product = Product {
            dtype: self.x_dtype,
            operands: self.x_dtype,
            rows: self.rows,
            outputs: self.outputs,
            inputs: self.inputs,
            x_stride: self.x_stride,
            weight_stride: self.weight_stride,
            x: x.expect("always an operand"),
            weight: weight.expect("always an operand"),
            out: out.expect("always an operand"),
            bias,
            residual: residual.map(|address| (address, self.residual_stride)),
        };
        match session.driver.blas()?.multiply(&product, session.stream)? {
            Multiplied::Whole => Ok(()),
            Multiplied::WithoutBias => self.add_bias(session),
            Multiplied::Unsupported => self.any_rows(session),
        }
    }

    fn any_rows(&self, session: &mut Session) -> Result<(), String> {
        let blocks = [self.outputs.div_ceil(OUTPUTS_PER_BLOCK), self.rows.div_ceil(ROWS_PER_BLOCK), 1];
        session.launch(&self.kernel("any_rows"), Grid::new(blocks, THREADS), &self.with_shape())
    }

    fn add_bias(&self, session: &mut Session) -> Result<(), String> {
        let [_, _, _, bias, _, out] = self.arguments.clone();
        let grid = Grid::new([self.rows, self.outputs.div_ceil(THREADS), 1], THREADS);
        session.launch(&self.kernel("add_bias"), grid, &[out, bias, self.outputs.into()])
    }

    fn kernel(&self, entry: &'static str) -> Kernel {
        kernel(entry, self.x_dtype, self.weight_dtype)
    }

    fn with_shape(&self) -> Vec<Argument> {
        let shape = Shape {
            rows: self.rows as i32,
            outputs: self.outputs as i32,
            inputs: self.inputs as i32,
            padding: 0,
            x_stride: self.x_stride as i64,
            weight_stride: self.weight_stride as i64,
            residual_stride: self.residual_stride as i64,
        };
        self.arguments.iter().cloned().chain([Argument::structure(&shape)]).collect()
    }
}

pub(super) fn kernel(entry: &'static str, x: DType, weight: DType) -> Kernel {
    Kernel::new(&LINEAR, entry).word("ELEMENT", element(x)).word("WEIGHT", element(weight))
}
