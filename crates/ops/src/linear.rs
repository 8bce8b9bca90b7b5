//! Multiplication by a weight matrix.

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};

#[cfg(feature = "cuda")]
use crate::Backend;
use crate::Weight;
#[cfg(any(feature = "cpu", feature = "wgpu"))]
use crate::backend::PackedOps;
use crate::backend::{FusedOps, Optional};
#[cfg(feature = "cuda")]
use crate::backend_of;
use crate::weight::Part;

/// `x · weightᵀ + bias`, accumulated in 32-bit floats.
///
/// `x` is `[T, K]`, `bias` `[N]` in 32-bit floats, the result `[T, N]`. A row of the result depends only on the same row
/// of `x`, to the last bit, whatever `T` is. On CUDA that holds for `T` up to 16, and for any `T` when `x` and the weights
/// differ in dtype: more rows than that are a compute-bound product, which only the vendor's library carries out at full
/// speed, and it sums in an order that it chooses by `T`. Where it multiplies weights in [FP8](Weight::fp8), `x` too is rounded
/// to codes of 8 bits, with a scale for each row; that begins at two rows with large weights. A single row stays as it is.
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
    let products = weight.parts().iter().map(|part| {
        let count = part.dims()[0];
        let is_whole = count == outputs;
        let bias = bias.map(|bias| if is_whole { bias.clone() } else { bias.clone().narrow(0, first, count) });
        let residual = residual.clone();
        let residual = residual.map(|sums| if is_whole { sums } else { sums.narrow(1, first, count) });
        first += count;
        product_with(x.clone(), part, Optional::of(bias), Optional::of(residual))
    });
    let mut products: Vec<Tensor<2>> = products.collect();
    if products.len() == 1 { products.remove(0) } else { Tensor::cat(products, 1) }
}

fn product_with(x: Tensor<2>, part: &Part, bias: Optional<Dispatch>, residual: Optional<Dispatch>) -> Tensor<2> {
    #[cfg(feature = "cuda")]
    let device = x.device();
    let x = x.into_dispatch();
    Tensor::from_dispatch(match part {
        Part::Dense(values) => Dispatch::linear(x, values.clone().into_dispatch(), bias, residual),
        #[cfg(any(feature = "cpu", feature = "wgpu"))]
        Part::Packed(words, packing) => {
            Dispatch::linear_packed(x, words.clone().into_dispatch(), *packing, bias, residual)
        }
        #[cfg(not(any(feature = "cpu", feature = "wgpu")))]
        Part::Packed(..) => unreachable!("`Weight::packed` refuses devices without kernels for it"),
        #[cfg(feature = "cuda")]
        Part::Fp8(..) if backend_of(&device) == Backend::Cuda => {
            crate::projection::on_cuda::multiply(x, part, bias, residual)
        }
        Part::Fp8(..) => Dispatch::linear(x, part.to_dense().into_dispatch(), bias, residual),
    })
}

/// The same in plain tensor operations, in 32-bit floats.
pub fn reference(x: Tensor<2>, weight: &Weight, bias: Option<&Tensor<1>>) -> Tensor<2> {
    let product = x.cast(DType::F32).matmul(weight.to_dense().transpose());
    match bias {
        Some(bias) => product + bias.clone().unsqueeze(),
        None => product,
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::Packing;
    use crate::testing::{
        Seeded, assert_close, equal_rows_max, for_each_device, for_each_packed, moved, reference_device, weight_dtypes,
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
            let parts = Weight::join([rows(0, 32), rows(32, 1), rows(33, 42)].map(Weight::dense).into());
            assert_eq!(parts.dims(), whole.dims());
            for tokens in [1, 40.min(equal_rows_max(device))] {
                let x: Tensor<2> = seeded.tensor([tokens, 64], device);
                let expected = linear(x.clone(), &whole, Some(&bias));
                assert_close(linear(x, &parts, Some(&bias)), expected, 0.0);
            }
        });
    }

    #[test]
    fn packed_weights_give_the_bits_of_their_numbers_as_floats() {
        for_each_packed(|device, packing| {
            let mut seeded = Seeded::new(14);
            for (rows, inputs, outputs) in [(1, 32, 1), (1, 576, 1536), (2, 96, 5), (5, 64, 17), (67, 160, 39)] {
                let x: Tensor<2> = seeded.tensor([rows, inputs], device);
                let bias = seeded.tensor([outputs], device);
                let residual: Tensor<2> = seeded.tensor([rows, outputs], device);
                let weight = seeded.packed([outputs, inputs], (device, packing));
                let dense = Weight::dense(weight.to_dense());
                let got = linear(x.clone(), &weight, Some(&bias));
                assert_close(got.clone(), reference(x.clone(), &weight, Some(&bias)), 2e-5);
                assert_close(got, linear(x.clone(), &dense, Some(&bias)), 0.0);
                let sums = linear_add(x.clone(), &weight, None, residual.clone());
                assert_close(sums, linear_add(x, &dense, None, residual), 0.0);
            }
        });
    }

    #[test]
    fn weights_in_fp8_give_the_products_of_their_numbers() {
        for_each_device(|device| {
            if crate::backend_of(device) == crate::Backend::Wgpu {
                return; // which has no tensors of bytes
            }
            let mut seeded = Seeded::new(16);
            let host = reference_device(device);
            for (rows, inputs, outputs) in [(1, 576, 1536), (2, 33, 5), (5, 64, 17), (67, 160, 39)] {
                let x: Tensor<2> = seeded.tensor([rows, inputs], &host);
                let bias = seeded.tensor([outputs], &host);
                let residual: Tensor<2> = seeded.tensor([rows, outputs], &host);
                let seed = seeded.next_u64();
                let [first, third] = [outputs, 3].map(|outputs| [outputs, inputs]);
                let two = |device: &Device| [first, third].map(|shape| Seeded::new(seed).fp8(shape, device));
                let (joined, joined_there) = (Weight::join(two(&host).into()), Weight::join(two(device).into()));
                assert_eq!(joined_there.dims(), [outputs + 3, inputs]);
                let [x_there, residual_there] = [&x, &residual].map(|tensor| moved(tensor, device));
                let got = linear(x_there.clone(), &joined_there, None);
                assert_close(got, reference(x.clone(), &joined, None), 2e-5);
                let [single, single_there] = [&host, device].map(|device| Seeded::new(seed).fp8(first, device));
                let got = linear_add(x_there, &single_there, Some(&moved(&bias, device)), residual_there);
                assert_close(got, reference(x, &single, Some(&bias)) + residual, 2e-5);
            }
        });
    }

    #[test]
    fn parts_may_be_packed_in_different_ways() {
        for_each_packed(|device, packing| {
            let mut seeded = Seeded::new(15);
            let x: Tensor<2> = seeded.tensor([3, 64], device);
            let other = seeded.packed([5, 64], (device, Packing::ALL[0]));
            let dense = Weight::dense(seeded.tensor([3, 64], device));
            let mixed = Weight::join(vec![seeded.packed([7, 64], (device, packing)), dense, other]);
            assert_eq!(mixed.dims(), [15, 64]);
            let whole = Weight::dense(mixed.to_dense());
            assert_close(linear(x.clone(), &mixed, None), linear(x, &whole, None), 0.0);
        });
    }
}
