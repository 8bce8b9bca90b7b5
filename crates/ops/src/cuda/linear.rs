//! Multiplication by a weight matrix: own kernels for few rows and for mixed dtypes, cuBLASLt for many rows.
//!
//! Our kernels sum in an order that depends on the inputs alone; cuBLASLt's algorithm, and with it the order, depends on
//! the number of rows. Up to [`FEW_ROWS`] rows reading the weights is what takes time, and an own kernel reads them as
//! fast; beyond, only the library keeps the matrix units busy.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use bytemuck::{Pod, Zeroable};

use super::cublaslt::{Multiplied, Product};
use super::driver::Kernel;
use super::launch::{Argument, Grid, Operands, Session, submit};
use super::matrix::{Matrix, dense};
use super::{LINEAR, LINEAR_FEW_ROWS, element};

/// Rows of `x` up to which a row's result has the same bits whatever their number is.
pub(crate) const FEW_ROWS: usize = 16;

/// Threads of a block in `linear.cu` and `linear_few_rows.cu`, and the outputs and rows that it takes there.
const THREADS: usize = 256;
const OUTPUTS_PER_BLOCK_FEW_ROWS: usize = 16;
const OUTPUTS_PER_BLOCK: usize = 8;
const ROWS_PER_BLOCK: usize = 8;

/// `Shape` of the sources.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Shape {
    rows: i32,
    outputs: i32,
    inputs: i32,
    padding: i32,
    x_stride: i64,
    weight_stride: i64,
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
    /// x, weight, bias, out.
    arguments: [Argument; 4],
}

pub(crate) fn linear(x: CubeTensor, weight: CubeTensor, bias: Option<CubeTensor>) -> CubeTensor {
    let (x, weight, bias) = (Matrix::of(x), Matrix::of(weight), bias.map(dense));
    let (x_dtype, weight_dtype) = (x.tensor.dtype, weight.tensor.dtype);
    assert!(
        x_dtype == weight_dtype || x_dtype == DType::F32,
        "linear: x in {x_dtype:?} cannot meet a weight in {weight_dtype:?}"
    );
    assert!(bias.as_ref().is_none_or(|bias| bias.dtype == DType::F32), "linear: the bias is in 32-bit floats");
    let out = x.like(weight.rows);
    let mut operands = Operands::default();
    let arguments = [
        Argument::Address(operands.read(&x.tensor)),
        Argument::Address(operands.read(&weight.tensor)),
        bias.as_ref().map_or(Argument::Null, |bias| Argument::Address(operands.read(bias))),
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
        if self.rows > FEW_ROWS && self.x_dtype == self.weight_dtype {
            return self.many_rows(&mut session);
        }
        let has_tensor_cores = session.driver.target.major >= 8;
        if self.rows <= FEW_ROWS && self.weight_dtype != DType::F32 && self.x_dtype != DType::F32 && has_tensor_cores {
            return self.few_rows(&mut session);
        }
        self.any_rows(&mut session)
    }

    fn many_rows(&self, session: &mut Session) -> Result<(), String> {
        let address = |argument: &Argument| match argument {
            Argument::Address(index) => Some(session.addresses[*index]),
            _ => None,
        };
        let [x, weight, bias, out] = self.arguments.each_ref().map(address);
        let product = Product {
            dtype: self.x_dtype,
            rows: self.rows,
            outputs: self.outputs,
            inputs: self.inputs,
            x_stride: self.x_stride,
            weight_stride: self.weight_stride,
            x: x.expect("always an operand"),
            weight: weight.expect("always an operand"),
            out: out.expect("always an operand"),
            bias,
        };
        match session.driver.blas()?.multiply(&product, session.stream)? {
            Multiplied::Whole => Ok(()),
            Multiplied::WithoutBias => self.add_bias(session),
            Multiplied::Unsupported => self.any_rows(session),
        }
    }

    fn few_rows(&self, session: &mut Session) -> Result<(), String> {
        let kernel = Kernel::new(&LINEAR_FEW_ROWS, "linear_few_rows").word("ELEMENT", element(self.x_dtype));
        let blocks = self.outputs.div_ceil(OUTPUTS_PER_BLOCK_FEW_ROWS);
        session.launch(&kernel, Grid::new([blocks, 1, 1], THREADS), &self.with_shape())
    }

    fn any_rows(&self, session: &mut Session) -> Result<(), String> {
        let blocks = [self.outputs.div_ceil(OUTPUTS_PER_BLOCK), self.rows.div_ceil(ROWS_PER_BLOCK), 1];
        session.launch(&self.kernel("any_rows"), Grid::new(blocks, THREADS), &self.with_shape())
    }

    fn add_bias(&self, session: &mut Session) -> Result<(), String> {
        let [_, _, bias, out] = self.arguments.clone();
        let grid = Grid::new([self.rows, self.outputs.div_ceil(THREADS), 1], THREADS);
        session.launch(&self.kernel("add_bias"), grid, &[out, bias, self.outputs.into()])
    }

    fn kernel(&self, entry: &'static str) -> Kernel {
        let kernel = Kernel::new(&LINEAR, entry).word("ELEMENT", element(self.x_dtype));
        kernel.word("WEIGHT", element(self.weight_dtype))
    }

    fn with_shape(&self) -> Vec<Argument> {
        let shape = Shape {
            rows: self.rows as i32,
            outputs: self.outputs as i32,
            inputs: self.inputs as i32,
            padding: 0,
            x_stride: self.x_stride as i64,
            weight_stride: self.weight_stride as i64,
        };
        self.arguments.iter().cloned().chain([Argument::structure(&shape)]).collect()
    }
}
