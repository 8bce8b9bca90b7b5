//! Products of tens to hundreds of rows: what comes after them, rows apart, sizes that fill no tile.

use burn::tensor::{DType, Device, Tensor};

use super::gpu::Gpu;
use super::linear_wgmma::is_for;
use super::tests::{floats, for_both_dtypes, pair};
use crate::testing::{Seeded, assert_close};
use crate::{
    Activation, Projection, Then, Weight, activation, gated_activation, linear, linear_add, project, reference,
};

/// Rows that fill tiles of 64, 96 and 128, or do not.
const ROWS: [usize; 8] = [17, 32, 63, 65, 96, 129, 200, 256];
/// Inputs and outputs: of models, and such that leave a tile of outputs or a chunk of inputs half full; blocks that
/// share inputs are 1, 2, 4 and 8.
const SIZES: [(usize, usize); 6] = [(576, 576), (72, 16), (1032, 272), (768, 2304), (3072, 272), (576, 6144)];

/// Rows of `columns` that are apart by more, and do not begin where the memory does.
fn rows_apart(seeded: &mut Seeded, [rows, columns]: [usize; 2], on: (&Device, DType)) -> [Tensor<2>; 2] {
    let (host, device) = pair(seeded, [rows, columns + 24], on);
    [host, device].map(|tensor| tensor.narrow(1, 8, columns))
}

#[test]
fn the_sizes_are_those_of_the_kernel_on_hopper() {
    let [mut gpu, _] = Gpu::of_architecture(90);
    for (inputs, outputs) in SIZES {
        assert!(ROWS.iter().all(|&rows| is_for(DType::BF16, [rows, outputs, inputs], &gpu)), "{inputs}, {outputs}");
    }
    assert!(!is_for(DType::F32, [64, 576, 576], &gpu), "32-bit floats");
    assert!(!is_for(DType::F16, [64, 577, 576], &gpu), "outputs that are no multiple of 16");
    assert!(!is_for(DType::F16, [257, 576, 576], &gpu), "too many rows");
    for rows in [16, 32, 128] {
        assert!(!is_for(DType::F16, [rows, 28672, 4096], &gpu), "{rows} rows: another is faster");
    }
    gpu.capability = 89;
    assert!(!is_for(DType::F16, [64, 576, 576], &gpu), "no such instructions");
}

#[test]
fn products_of_tens_of_rows_equal_the_reference_whatever_comes_after() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(41);
        for (inputs, outputs) in SIZES {
            let (weight, device_weight) = pair(&mut seeded, [outputs, inputs], (device, dtype));
            let (bias, device_bias) = floats(&mut seeded, [outputs], device);
            let (weight, device_weight) = (Weight::dense(weight), Weight::dense(device_weight));
            for rows in ROWS {
                let [x, device_x] = rows_apart(&mut seeded, [rows, inputs], (device, dtype));
                let [residual, device_residual] = rows_apart(&mut seeded, [rows, outputs], (device, dtype));
                let product = reference::linear(x, &weight, Some(&bias));
                let projection = Projection { norm: None, weight: &device_weight, bias: Some(&device_bias) };
                let got = |then| project(device_x.clone(), projection, then);
                assert_close(got(Then::Keep), product.clone(), rounding);
                assert_close(got(Then::AddTo(device_residual)), product.clone() + residual, 2.0 * rounding);
                for kind in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu] {
                    let expected = reference::activation(product.clone(), kind);
                    assert_close(got(Then::Activate(kind)), expected, 2.0 * rounding);
                    let [gate, up] = [0, outputs / 2].map(|first| product.clone().narrow(1, first, outputs / 2));
                    let expected = reference::activation(gate, kind) * up;
                    assert_close(got(Then::Gate(kind)), expected, 3.0 * rounding);
                }
            }
        }
    });
}

#[test]
fn tens_of_rows_without_bias_or_with_a_residual_equal_the_reference() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(42);
        for (inputs, outputs) in SIZES {
            let (weight, device_weight) = pair(&mut seeded, [outputs, inputs], (device, dtype));
            let (weight, device_weight) = (Weight::dense(weight), Weight::dense(device_weight));
            let [x, device_x] = rows_apart(&mut seeded, [129, inputs], (device, dtype));
            let [residual, device_residual] = rows_apart(&mut seeded, [129, outputs], (device, dtype));
            let product = reference::linear(x, &weight, None);
            assert_close(linear(device_x.clone(), &device_weight, None), product.clone(), rounding);
            let got = linear_add(device_x, &device_weight, None, device_residual);
            assert_close(got, product + residual, 2.0 * rounding);
        }
    });
}

/// Activations in the kernel and in one of their own differ by the quick forms of exponential and division alone.
#[test]
fn activations_after_a_product_are_those_of_the_single_operations() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(44);
        let (_, x) = pair(&mut seeded, [100, 576], (device, dtype));
        let (_, weight) = pair(&mut seeded, [1536, 576], (device, dtype));
        let weight = Weight::dense(weight);
        let projection = Projection { norm: None, weight: &weight, bias: None };
        let product = linear(x.clone(), &weight, None);
        for kind in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu] {
            let got = project(x.clone(), projection, Then::Activate(kind));
            assert_close(got, activation(product.clone(), kind), 2.0 * rounding);
            let got = project(x.clone(), projection, Then::Gate(kind));
            assert_close(got, gated_activation(product.clone(), kind), 2.0 * rounding);
        }
    });
}
