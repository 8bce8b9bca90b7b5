//! Products of tens to hundreds of rows: what comes after them, rows apart, sizes that fill no tile.

use burn::tensor::{DType, Device, Tensor};

use super::gpu::Gpu;
use super::gpu::limited::with_batch_invariance;
use super::linear_wgmma::Form;
use super::tests::{floats, for_both_dtypes, pair};
use crate::backend::Activated;
use crate::testing::{Seeded, assert_close};
use crate::{
    Activation, Projection, RowNorm, Then, Weight, activation, gated_activation, linear, linear_add, project,
    project_onto, reference,
};

/// Rows that fill tiles of 64, 96 and 128, or do not.
const ROWS: [usize; 10] = [17, 32, 63, 65, 96, 129, 200, 256, 385, 640];
/// Inputs and outputs: of models, and such that leave a tile of outputs or a chunk of inputs half full; blocks that
/// share inputs are 1, 2, 4 and 8.
const SIZES: [(usize, usize); 6] = [(576, 576), (72, 16), (1032, 272), (768, 2304), (3072, 272), (576, 6144)];

/// Rows of `columns` that are apart by more, and do not begin where the memory does.
fn rows_apart(seeded: &mut Seeded, [rows, columns]: [usize; 2], on: (&Device, DType)) -> [Tensor<2>; 2] {
    let (host, device) = pair(seeded, [rows, columns + 24], on);
    [host, device].map(|tensor| tensor.narrow(1, 8, columns))
}

#[test]
fn the_sizes_are_those_of_the_kernels_on_hopper() {
    let [mut gpu, _] = Gpu::of_architecture(90);
    let form = |rows, outputs, inputs| {
        let (dtype, activated) = (DType::BF16, Activated::Not);
        Form { dtype, activated, rows, outputs, inputs, ordered: false, heads: None }
    };
    for (inputs, outputs) in SIZES {
        assert!(ROWS.iter().all(|&rows| form(rows, outputs, inputs).is_taken(&gpu)), "{inputs}, {outputs}");
    }
    assert!(!Form { dtype: DType::F32, ..form(64, 576, 576) }.is_taken(&gpu), "32-bit floats");
    assert!(!form(64, 577, 576).is_taken(&gpu), "outputs that are no multiple of 16");
    assert!(!form(641, 576, 576).is_taken(&gpu), "too many rows");
    for rows in [16, 32, 128] {
        assert!(!form(rows, 28672, 4096).is_taken(&gpu), "{rows} rows: another is faster");
    }
    assert!([17, 32, 64].iter().all(|&rows| form(rows, 4096, 14_336).is_taken(&gpu)));
    assert!(form(33, 28_672, 4096).is_taken(&gpu) && !form(65, 4096, 14_336).is_taken(&gpu));
    assert!([17, 100, 513, 8192].iter().all(|&rows| Form { ordered: true, ..form(rows, 576, 576) }.is_taken(&gpu)));
    assert!(!Form { ordered: true, ..form(16, 576, 576) }.is_taken(&gpu), "few rows");
    gpu.capability = 89;
    assert!(!form(64, 576, 576).is_taken(&gpu), "no such instructions");
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

/// The norm of a product's rows is begun by its kernel and finished by that of the next product.
#[test]
fn norms_between_products_equal_the_reference() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(46);
        for (inputs, hidden, outputs) in [(1536, 576, 3072), (200, 80, 16), (768, 1040, 2304), (3072, 1024, 272)] {
            let (first, device_first) = pair(&mut seeded, [hidden, inputs], (device, dtype));
            let (second, device_second) = pair(&mut seeded, [outputs, hidden], (device, dtype));
            let [first, device_first] = [first, device_first].map(Weight::dense);
            let [second, device_second] = [second, device_second].map(Weight::dense);
            let (norm_weight, device_norm_weight) = floats(&mut seeded, [hidden], device);
            let norm = RowNorm { weight: &device_norm_weight, bias: None, eps: 1e-5 };
            for rows in ROWS {
                let [x, device_x] = rows_apart(&mut seeded, [rows, inputs], (device, dtype));
                let [residual, device_residual] = rows_apart(&mut seeded, [rows, hidden], (device, dtype));
                let projection = Projection { norm: None, weight: &device_first, bias: None };
                // What memory held before must not count: of tensors as large as those that are made next.
                for columns in [hidden, hidden.div_ceil(256) * 4] {
                    drop(Tensor::<2>::full([rows, columns], -1e9, device));
                }
                let stream = project_onto(device_residual.clone(), device_x.clone(), projection, Some(norm));
                assert_eq!(stream.is_prepared(), dtype == DType::BF16, "{rows} x {inputs}");
                let sums = project(device_x, projection, Then::AddTo(device_residual));
                assert_close(stream.rows().clone(), sums, 0.0);
                let normed = reference::rms_norm(reference::linear(x, &first, None) + residual, &norm_weight, 1e-5);
                let product = reference::linear(normed, &second, None);
                let projection = Projection { norm: Some(norm), weight: &device_second, bias: None };
                assert_close(project(stream.clone(), projection, Then::Keep), product.clone(), 2.0 * rounding);
                let [gate, up] = [0, outputs / 2].map(|first| product.clone().narrow(1, first, outputs / 2));
                let expected = reference::activation(gate, Activation::Silu) * up;
                assert_close(project(stream, projection, Then::Gate(Activation::Silu)), expected, 4.0 * rounding);
            }
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

/// Few rows, tens and hundreds go through three kernels.
#[test]
fn rows_have_the_same_bits_among_few_tens_and_hundreds_where_the_batch_must_not_matter() {
    const TOGETHER: usize = 700;
    const PARTS: [(usize, usize); 9] =
        [(0, 1), (3, 8), (50, 16), (7, 17), (9, 64), (2, 100), (128, 300), (1, 513), (60, 640)];
    for_both_dtypes(|device, dtype, rounding| {
        with_batch_invariance(|| {
            let mut seeded = Seeded::new(45);
            // The last two have tiles enough for hundreds of rows, and for a hundred: blocks without a cluster.
            let sizes = [(576, 576), (72, 16), (1032, 272), (3072, 1024), (1024, 4096), (4096, 2080), (200, 12_304)];
            for (inputs, outputs) in sizes {
                let (x, device_x) = pair(&mut seeded, [TOGETHER, inputs], (device, dtype));
                let (weight, device_weight) = pair(&mut seeded, [outputs, inputs], (device, dtype));
                let (_, residual) = pair(&mut seeded, [TOGETHER, outputs], (device, dtype));
                let (bias, device_bias) = floats(&mut seeded, [outputs], device);
                let (weight, device_weight) = (Weight::dense(weight), Weight::dense(device_weight));
                let projection = Projection { norm: None, weight: &device_weight, bias: Some(&device_bias) };
                let got = |first, rows, then: &dyn Fn(Tensor<2>) -> Then| {
                    let residual = residual.clone().narrow(0, first, rows);
                    project(device_x.clone().narrow(0, first, rows), projection, then(residual))
                };
                let thens: [&dyn Fn(Tensor<2>) -> Then; 5] = [
                    &|_| Then::Keep,
                    &Then::AddTo,
                    &|_| Then::Gate(Activation::Silu),
                    &|_| Then::Gate(Activation::GeluTanh),
                    &|_| Then::Activate(Activation::GeluErf),
                ];
                for then in thens {
                    let together = got(0, TOGETHER, then);
                    for (first, rows) in PARTS {
                        assert_close(got(first, rows, then), together.clone().narrow(0, first, rows), 0.0);
                    }
                }
                assert_close(got(0, TOGETHER, thens[0]), reference::linear(x, &weight, Some(&bias)), rounding);
            }
        });
    });
}
