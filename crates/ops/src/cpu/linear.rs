//! Multiplication by a weight matrix: tiles of dot products over rows that are contiguous on both sides.
//!
//! Threads take strips of outputs. A few rows of `x` read the weights once, widening them in registers; many rows widen a
//! strip into a buffer that stays in the cache and pass all of `x` over it.

use burn::tensor::DType;
use burn_flex::FlexTensor;
use half::{bf16, f16};
use rayon::prelude::*;

use super::lanes::Lanes;
use super::math::Unit;
use super::{dims2, floats, narrow, tensor2, unsupported};
use crate::launch::{SimdTask, with_simd};

/// Rows of `x` up to which weights are widened in registers.
const FEW_ROWS: usize = 4;
/// Widened weights of one strip, so that they stay in a core's second-level cache.
const STRIP_ELEMENTS: usize = 64 * 1024;
/// Multiplications per thread below which starting one costs more than it saves.
const PRODUCTS_PER_TASK: usize = 1 << 16;

pub(super) fn linear(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: Option<&FlexTensor>,
    residual: Option<&FlexTensor>,
) -> FlexTensor {
    let [rows, _] = dims2(x);
    let [outputs, _] = dims2(weight);
    let weight = weight.to_contiguous();
    let products = match weight.dtype() {
        DType::F32 => multiply::<f32>(&floats(x), weight.storage(), rows, outputs),
        DType::F16 => multiply::<f16>(&floats(x), weight.storage(), rows, outputs),
        DType::BF16 => multiply::<bf16>(&floats(x), weight.storage(), rows, outputs),
        other => unsupported(other),
    };
    finish(products, [rows, outputs], bias, residual)
}

/// Adds to products what comes after them.
pub(super) fn finish(
    mut out: Vec<f32>,
    [rows, outputs]: [usize; 2],
    bias: Option<&FlexTensor>,
    residual: Option<&FlexTensor>,
) -> FlexTensor {
    if let Some(bias) = bias {
        let bias = floats(bias);
        for row in out.chunks_exact_mut(outputs) {
            row.iter_mut().zip(bias.iter()).for_each(|(out, bias)| *out += bias);
        }
    }
    if let Some(residual) = residual {
        out.iter_mut().zip(floats(residual).iter()).for_each(|(out, residual)| *out += residual);
    }
    tensor2(out, rows, outputs)
}

/// `x · weightᵀ`, of so many rows of `x` and so many of units.
pub(super) fn multiply<W: Unit>(x: &[f32], weight: &[W], rows: usize, outputs: usize) -> Vec<f32> {
    let units = weight.len() / outputs;
    let inputs = units * W::NUMBERS;
    let threads = rayon::current_num_threads();
    let strips_wanted = (rows * inputs * outputs / PRODUCTS_PER_TASK).clamp(1, 4 * threads);
    let even = outputs.div_ceil(strips_wanted).next_multiple_of(8);
    let fits_cache = (STRIP_ELEMENTS / inputs.max(1)).max(8) / 8 * 8;
    let strip = if rows > FEW_ROWS || cfg!(target_arch = "wasm32") { even.min(fits_cache) } else { even };
    let compute = |strip_weight: &[W]| with_simd(Strip { x, weight: strip_weight, rows, inputs });
    let strips: Vec<Vec<f32>> = if strips_wanted == 1 {
        weight.chunks(strip * units).map(compute).collect()
    } else {
        weight.par_chunks(strip * units).map(compute).collect()
    };
    let mut out = Vec::with_capacity(rows * outputs);
    for row in 0..rows {
        for part in &strips {
            let width = part.len() / rows;
            out.extend_from_slice(&part[row * width..(row + 1) * width]);
        }
    }
    out
}

/// The products of all rows of `x` with the weights of one strip of outputs.
struct Strip<'a, W> {
    x: &'a [f32],
    weight: &'a [W],
    rows: usize,
    inputs: usize,
}

impl<W: Unit> SimdTask for Strip<'_, W> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Vec<f32> {
        let width = self.weight.len() * W::NUMBERS / self.inputs;
        let mut out = vec![0.0; self.rows * width];
        if cfg!(target_arch = "wasm32") {
            let weight = W::widen_all::<L>(self.weight);
            // Blocks as equal as can be: five rows and one take as long as five and five.
            let block = self.rows.div_ceil(self.rows.div_ceil(narrow::ROWS_MAX));
            for (x, out) in self.x.chunks(block * self.inputs).zip(out.chunks_mut(block * width)) {
                narrow::multiply(x, &weight, self.inputs, out);
            }
            return out;
        }
        match self.rows {
            1 => row_block::<L, 1, 8, W>(self.x, self.weight, self.inputs, &mut out),
            2 => row_block::<L, 2, 8, W>(self.x, self.weight, self.inputs, &mut out),
            3 => row_block::<L, 3, 4, W>(self.x, self.weight, self.inputs, &mut out),
            4 => row_block::<L, 4, 4, W>(self.x, self.weight, self.inputs, &mut out),
            _ => {
                let widened = W::widen_all::<L>(self.weight);
                let x_blocks = self.x.chunks(4 * self.inputs);
                for (x, out) in x_blocks.zip(out.chunks_mut(4 * width)) {
                    match x.len() / self.inputs {
                        4 => row_block::<L, 4, 4, f32>(x, &widened, self.inputs, out),
                        3 => row_block::<L, 3, 4, f32>(x, &widened, self.inputs, out),
                        2 => row_block::<L, 2, 4, f32>(x, &widened, self.inputs, out),
                        _ => row_block::<L, 1, 4, f32>(x, &widened, self.inputs, out),
                    }
                }
            }
        }
        out
    }
}

/// `M` rows of `x` times every row of `weight`, `N` at a time; `out` is `[M, width]`.
#[inline(always)]
fn row_block<L: Lanes, const M: usize, const N: usize, W: Unit>(
    x: &[f32],
    weight: &[W],
    inputs: usize,
    out: &mut [f32],
) {
    let units = inputs / W::NUMBERS;
    let width = weight.len() / units;
    let x: [&[f32]; M] = std::array::from_fn(|m| &x[m * inputs..(m + 1) * inputs]);
    let row = |n: usize| &weight[n * units..(n + 1) * units];
    let mut n = 0;
    while n + N <= width {
        let products = W::dot_tile::<L, M, N>(x, std::array::from_fn(|offset| row(n + offset)));
        for m in 0..M {
            out[m * width + n..][..N].copy_from_slice(&products[m]);
        }
        n += N;
    }
    while n < width {
        let products = W::dot_tile::<L, M, 1>(x, [row(n)]);
        for m in 0..M {
            out[m * width + n] = products[m][0];
        }
        n += 1;
    }
}
