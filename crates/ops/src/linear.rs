//! Multiplication by a weight matrix.

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};

use crate::backend::{FusedOps, Optional};
use crate::tensor_bytes_max;

/// A weight matrix `[N, K]`: `N` outputs, `K` inputs, as Hugging Face stores linear layers.
///
/// A device limits the size of one tensor (on wgpu 128 MiB is all that is guaranteed), so a matrix may be held in parts:
/// consecutive ranges of its rows.
#[derive(Clone, Debug)]
pub struct Weight {
    parts: Vec<Tensor<2>>,
}

impl Weight {
    /// A dense matrix in any float dtype of the device.
    pub fn dense(values: Tensor<2>) -> Self {
        Self { parts: vec![values] }
    }

    /// The matrix whose rows are those of the parts, one after the other.
    pub fn from_parts(parts: Vec<Tensor<2>>) -> Self {
        let columns = parts.first().expect("a matrix has a part").dims()[1];
        assert!(parts.iter().all(|part| part.dims()[1] == columns), "from_parts: row length");
        Self { parts }
    }

    /// A matrix `[N, K]` from its bytes in row-major order, in as many parts as the device wants.
    pub fn from_bytes(bytes: Vec<u8>, [rows, columns]: [usize; 2], (device, dtype): (&Device, DType)) -> Self {
        let row_len = columns * dtype.size();
        assert_eq!(bytes.len(), rows * row_len, "from_bytes: length");
        let rows_per_part = (tensor_bytes_max(device) / row_len.max(1)).max(1);
        let part = |bytes: Vec<u8>, rows: usize| {
            let data = TensorData::from_bytes_vec(bytes, Shape::from([rows, columns]), dtype);
            // Memory of its own: pages for activations would otherwise be as large as the largest weight.
            device.memory_persistent_allocations(data, |data| Tensor::from_data(data, (device, dtype)))
        };
        if rows <= rows_per_part {
            return Self::dense(part(bytes, rows));
        }
        let chunks = bytes.chunks(rows_per_part * row_len);
        Self::from_parts(chunks.map(|chunk| part(chunk.to_vec(), chunk.len() / row_len)).collect())
    }

    /// `[N, K]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.parts.iter().map(|part| part.dims()[0]).sum(), self.parts[0].dims()[1]]
    }

    /// Consecutive ranges of rows that make up the matrix.
    pub fn parts(&self) -> &[Tensor<2>] {
        &self.parts
    }
}

/// `x · weightᵀ + bias`, accumulated in 32-bit floats.
///
/// `x` is `[T, K]`, `bias` `[N]` in 32-bit floats, the result `[T, N]`. A row of the result depends only on the same row
/// of `x`, to the last bit, whatever `T` is. On CUDA that holds for `T` up to 16, and for any `T` when `x` and the weights
/// differ in dtype: more rows than that are a compute-bound product, which only the vendor's library carries out at full
/// speed, and it sums in an order that it chooses by `T`.
pub fn linear(x: Tensor<2>, weight: &Weight, bias: Option<&Tensor<1>>) -> Tensor<2> {
    product(x, weight, bias, None)
}

/// `residual + linear(x)`; `residual` is `[T, N]`.
pub fn linear_add(x: Tensor<2>, weight: &Weight, bias: Option<&Tensor<1>>, residual: Tensor<2>) -> Tensor<2> {
    product(x, weight, bias, Some(residual))
}

fn product(x: Tensor<2>, weight: &Weight, bias: Option<&Tensor<1>>, residual: Option<Tensor<2>>) -> Tensor<2> {
    let [outputs, inputs] = weight.dims();
    let [rows, columns] = x.dims();
    assert_eq!(columns, inputs, "linear: input length");
    assert!(bias.is_none_or(|bias| bias.dims()[0] == outputs), "linear: bias length");
    assert!(residual.as_ref().is_none_or(|residual| residual.dims() == [rows, outputs]), "linear: residual shape");
    let mut first = 0;
    let products = weight.parts.iter().map(|part| {
        let count = part.dims()[0];
        let is_whole = count == outputs;
        let bias = bias.map(|bias| if is_whole { bias.clone() } else { bias.clone().narrow(0, first, count) });
        let residual = residual.clone();
        let residual = residual.map(|sums| if is_whole { sums } else { sums.narrow(1, first, count) });
        first += count;
        let (x, weight) = (x.clone().into_dispatch(), part.clone().into_dispatch());
        Tensor::from_dispatch(Dispatch::linear(x, weight, Optional::of(bias), Optional::of(residual)))
    });
    let mut products: Vec<Tensor<2>> = products.collect();
    if products.len() == 1 { products.remove(0) } else { Tensor::cat(products, 1) }
}

/// The same in plain tensor operations, in 32-bit floats.
pub fn reference(x: Tensor<2>, weight: &Weight, bias: Option<&Tensor<1>>) -> Tensor<2> {
    let weight = Tensor::cat(weight.parts.clone(), 0).cast(DType::F32);
    let product = x.cast(DType::F32).matmul(weight.transpose());
    match bias {
        Some(bias) => product + bias.clone().unsqueeze(),
        None => product,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        Seeded, assert_close, equal_rows_max, for_each_device, moved, reference_device, weight_dtypes,
    };

    #[test]
    fn equals_the_reference_for_ugly_shapes_and_every_weight_dtype() {
        for_each_device(|device| {
            let mut seeded = Seeded::new(4);
            let host = reference_device(device);
            for dtype in weight_dtypes(device) {
                for (rows, inputs, outputs) in
                    [(1, 1, 1), (1, 576, 1536), (2, 33, 5), (5, 64, 17), (67, 100, 39), (40, 33, 70)]
                {
                    let x = seeded.tensor([rows, inputs], &host);
                    let weight = seeded.tensor([outputs, inputs], &host).cast(dtype);
                    let bias = seeded.tensor([outputs], &host);
                    let got =
                        linear(moved(&x, device), &Weight::dense(moved(&weight, device)), Some(&moved(&bias, device)));
                    assert_close(got, reference(x, &Weight::dense(weight), Some(&bias)), 2e-5);
                }
            }
        });
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_beside_it() {
        for_each_device(|device| {
            let mut seeded = Seeded::new(5);
            let host = reference_device(device);
            let total = 37.min(equal_rows_max(device));
            let x: Tensor<2> = seeded.tensor([total, 576], device);
            for dtype in weight_dtypes(device) {
                let weight = Weight::dense(moved(&seeded.tensor([75, 576], &host).cast(dtype), device));
                let together = linear(x.clone(), &weight, None);
                for (first, rows) in [(0, 1), (5, 2), (7, 3), (11, 4), (total - 7, 7)] {
                    let alone = linear(x.clone().narrow(0, first, rows), &weight, None);
                    assert_close(alone, together.clone().narrow(0, first, rows), 0.0);
                }
            }
        });
    }

    #[test]
    fn a_matrix_in_parts_gives_the_same_bits_as_a_whole_one() {
        for_each_device(|device| {
            let mut seeded = Seeded::new(11);
            let values: Tensor<2> = seeded.tensor([75, 64], device);
            let bias = seeded.tensor([75], device);
            let whole = Weight::dense(values.clone());
            let rows = |first, count| values.clone().narrow(0, first, count);
            let parts = Weight::from_parts(vec![rows(0, 32), rows(32, 1), rows(33, 42)]);
            assert_eq!(parts.dims(), whole.dims());
            for tokens in [1, 40.min(equal_rows_max(device))] {
                let x: Tensor<2> = seeded.tensor([tokens, 64], device);
                let expected = linear(x.clone(), &whole, Some(&bias));
                assert_close(linear(x, &parts, Some(&bias)), expected, 0.0);
            }
        });
    }

    #[test]
    fn a_matrix_from_bytes_holds_them_in_order() {
        for_each_device(|device| {
            for dtype in weight_dtypes(device) {
                let bytes: Vec<u8> = (0..15 * dtype.size()).map(|at| at as u8 % 60).collect();
                let weight = Weight::from_bytes(bytes.clone(), [5, 3], (device, dtype));
                assert_eq!(weight.dims(), [5, 3]);
                assert_eq!(weight.parts()[0].clone().into_data().bytes().to_vec(), bytes);
            }
        });
    }
}
