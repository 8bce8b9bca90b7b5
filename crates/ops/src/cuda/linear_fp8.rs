//! Products of many rows with weights in FP8: rows become codes of 8 bits, the vendor's library multiplies codes by codes, and
//! a kernel of our own applies the scales with what comes after.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use bytemuck::{Pod, Zeroable};

use super::activation::with_after;
use super::cublaslt::{Multiplied, Product, sums_factor};
use super::gpu::is_batch_invariant;
use super::kernel::Kernel;
use super::launch::{Argument, Grid, Launch, Operands, submit};
use super::linear_few_rows::Norm;
use super::linear_quantize::quantize_rows;
use super::matrix::{Matrix, dense, empty, on_16_bytes};
use super::{LINEAR_FP8, multiplies_fp8};
use crate::backend::Activated;
use crate::e4m3::E4M3;

/// What the library wants inputs and outputs to be multiples of.
const MULTIPLE: usize = 16;
/// Results of a thread, and threads of a block.
const RESULTS: usize = 8;
const THREADS: usize = 256;

/// `Shape` of the source.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Shape {
    outputs: i32,
    columns: i32,
    residual_stride: i64,
    factor: f32,
    padding: u32,
}

/// A product that [`multiplies`] is for.
pub(super) struct ManyRows {
    pub x: Matrix,
    pub norm: Option<Norm>,
    pub codes: Matrix,
    pub scales: CubeTensor,
    pub bias: Option<CubeTensor>,
    pub residual: Option<CubeTensor>,
    pub activated: Activated,
}

/// Whether the library multiplies these, once `x` is codes.
pub(super) fn multiplies(x: &Matrix, codes: &Matrix) -> bool {
    multiplies_fp8()
        && !is_batch_invariant()
        && matches!(x.tensor.dtype, DType::F16 | DType::BF16)
        && x.rows > 0
        && [codes.rows, codes.columns, codes.stride].iter().all(|size| *size > 0 && size.is_multiple_of(MULTIPLE))
        && on_16_bytes(&codes.tensor)
}

impl ManyRows {
    pub(super) fn run(mut self) -> CubeTensor {
        // A layer norm, and rows that are not made for wide accesses, get kernels of their own.
        self.norm = match self.norm.take() {
            Some(norm) if norm.bias.is_some() || !on_16_bytes(&norm.weight) => {
                self.x = Matrix::of(norm.of(self.x.tensor));
                None
            }
            norm => norm,
        };
        if !self.x.has_groups_of(RESULTS) {
            self.x = Matrix::of(dense(self.x.tensor).copy());
        }
        let (x_codes, x_scales) = quantize_rows(&self.x, self.norm.as_ref());
        let sums = self.sums(&x_codes);
        self.finish(&sums, &x_scales)
    }

    /// `x_codes · codesᵀ`, times [`sums_factor`].
    fn sums(&self, x_codes: &CubeTensor) -> CubeTensor {
        let dtype = self.x.tensor.dtype;
        let sums = self.x.like(self.codes.rows);
        let mut operands = Operands::default();
        let (x, weight) = (operands.read(x_codes), operands.read(&self.codes.tensor));
        let out = operands.write(&sums);
        let (rows, outputs, inputs) = (self.x.rows, self.codes.rows, self.codes.columns);
        let weight_stride = self.codes.stride;
        submit(&sums, operands, move |session| {
            let address = |index: usize| session.addresses[index];
            let product = Product {
                dtype,
                operands: E4M3,
                rows,
                outputs,
                inputs,
                x_stride: inputs,
                weight_stride,
                x: address(x),
                weight: address(weight),
                out: address(out),
                bias: None,
                residual: None,
            };
            match session.driver.blas()?.multiply(&product, session.stream)? {
                Multiplied::Whole | Multiplied::WithoutBias => Ok(()),
                Multiplied::Unsupported => Err(format!(
                    "this cuBLASLt has no FP8 product for {product:?}; update CUDA, or use --deterministic, which widens weights"
                )),
            }
        });
        sums
    }

    fn finish(self, sums: &CubeTensor, x_scales: &CubeTensor) -> CubeTensor {
        let is_gated = matches!(self.activated, Activated::Gated(_));
        let columns = if is_gated { self.codes.rows / 2 } else { self.codes.rows };
        let dtype = self.x.tensor.dtype;
        let aligned = |tensor: CubeTensor| if on_16_bytes(&tensor) { tensor } else { tensor.copy() };
        let residual = self.residual.map(|residual| {
            let residual = Matrix::of(residual);
            if residual.has_groups_of(RESULTS) { residual } else { Matrix::of(dense(residual.tensor).copy()) }
        });
        let bias = self.bias.map(aligned);
        let out = empty(sums, [self.x.rows, columns], dtype);
        let shape = Shape {
            outputs: self.codes.rows as i32,
            columns: columns as i32,
            residual_stride: residual.as_ref().map_or(0, |residual| residual.stride as i64),
            factor: 1.0 / sums_factor(dtype),
            padding: 0,
        };
        let groups = columns / RESULTS;
        let threads = groups.next_multiple_of(32).clamp(32, THREADS);
        let kernel = kernel(dtype, self.activated);
        let launch = Launch::new(kernel, Grid::new([self.x.rows, groups.div_ceil(threads), 1], threads))
            .read(sums)
            .read(x_scales)
            .read(&aligned(self.scales));
        let launch = launch.read_if(bias.as_ref()).read_if(residual.as_ref().map(|residual| &residual.tensor));
        launch.write(&out).value(Argument::structure(&shape)).submit(&out);
        out
    }
}

/// The variant that applies the scales, and what comes after.
pub(super) fn kernel(dtype: DType, activated: Activated) -> Kernel {
    with_after(Kernel::new(&LINEAR_FP8, "linear_fp8"), dtype, activated)
}
