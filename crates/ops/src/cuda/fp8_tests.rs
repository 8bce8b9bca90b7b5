//! Weights in FP8: few rows with the numbers of the codes, many rows rounded to codes themselves.

use burn::tensor::{Device, Tensor};

use super::FEW_ROWS;
use super::attention_tests::{HIDDEN, SAME_BITS, compare_with_single_operations};
use super::gpu::Gpu;
use super::gpu::limited::with_capability;
use super::tests::{compare_projections, floats, for_both_dtypes, pair};
use crate::e4m3::{decode, quantise_row};
use crate::testing::{Seeded, assert_close, moved, reference_device};
use crate::{
    Activation, CapturedGraph, GraphMemory, HeadLayout, Projection, QkvOptions, RowNorm, Then, Weight, float_tensor,
    linear, linear_add, project, reference,
};

/// The same matrix on the host and on the device.
fn weights(seed: u64, shape: [usize; 2], device: &Device) -> (Weight, Weight) {
    (Seeded::new(seed).fp8(shape, &reference_device(device)), Seeded::new(seed).fp8(shape, device))
}

/// Rows as the codes that stand for them say.
fn rounded(x: &Tensor<2>) -> Tensor<2> {
    let [_, columns] = x.dims();
    let values: Vec<f32> = x.clone().into_data().convert::<f32>().try_to_vec().expect("just converted");
    let row = |row: &[f32]| {
        let mut codes = vec![0; columns];
        let scale = quantise_row(row, &mut codes);
        codes.into_iter().map(move |code| decode(code) * scale)
    };
    float_tensor(values.chunks(columns).flat_map(row).collect(), x.dims(), &x.device())
}

#[test]
fn every_code_has_its_number_in_products_of_few_rows() {
    for_both_dtypes(|device, dtype, _| {
        // Rows of x that are 1 at one input and 0 elsewhere take single numbers out of the weights: those of all codes. 9
        // outputs are no multiple of what the library takes.
        let codes: Vec<u8> = (0..=255).filter(|code| code & 0x7f != 0x7f).chain([0, 0x80]).collect();
        let weight = Weight::fp8(vec![codes.repeat(9).into()], vec![0.25; 9], [9, 256], device);
        for (first, codes) in (0..).step_by(16).zip(codes.chunks(16)) {
            let one = |row: usize| (0..256).map(move |column| f32::from(u8::from(column == first + row)));
            let x =
                float_tensor::<2>((0..16).flat_map(one).collect(), [16, 256], &reference_device(device)).cast(dtype);
            let expected = codes.iter().flat_map(|code| [decode(*code) * 0.25; 9]).collect();
            let expected = float_tensor(expected, [16, 9], &reference_device(device));
            assert_close(linear(moved(&x, device), &weight, None), expected, 0.0);
        }
    });
}

#[test]
fn few_rows_equal_the_reference_of_the_numbers() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(50);
        // Outputs are no multiples of what the library takes.
        for (inputs, outputs) in [(576, 1530), (16, 1), (4096, 90), (48, 130), (64, 17), (14336, 31), (40, 9)] {
            let (weight, device_weight) = weights(51, [outputs, inputs], device);
            for rows in [1, 2, 8, 9, 16, 24, 32] {
                // Cards with less shared memory leave more rows to the library, which takes them as codes.
                if rows > FEW_ROWS && Gpu::current().capability < 90 {
                    continue;
                }
                let (x, device_x) = pair(&mut seeded, [rows, inputs], (device, dtype));
                let (bias, device_bias) = floats(&mut seeded, [outputs], device);
                let (residual, device_residual) = pair(&mut seeded, [rows, outputs], (device, dtype));
                let expected = reference::linear(x, &weight, Some(&bias));
                let got = linear(device_x.clone(), &device_weight, Some(&device_bias));
                assert_close(got, expected.clone(), rounding);
                let got = linear_add(device_x, &device_weight, Some(&device_bias), device_residual);
                assert_close(got, expected + residual, 2.0 * rounding);
            }
        }
    });
}

#[test]
fn a_row_has_the_same_bits_among_few_rows_with_weights_in_fp8() {
    for_both_dtypes(|device, dtype, _| {
        let mut seeded = Seeded::new(52);
        for (inputs, outputs) in [(576, 75), (4096, 40), (112, 33)] {
            let (_, x) = pair(&mut seeded, [FEW_ROWS, inputs], (device, dtype));
            let (_, weight) = weights(53, [outputs, inputs], device);
            let together = linear(x.clone(), &weight, None);
            for (first, rows) in [(0, 1), (15, 1), (3, 8), (4, 9), (2, 5)] {
                let alone = linear(x.clone().narrow(0, first, rows), &weight, None);
                assert_close(alone, together.clone().narrow(0, first, rows), 0.0);
            }
        }
    });
}

#[test]
fn projections_of_few_rows_in_fp8_have_the_bits_of_the_single_operations() {
    for_both_dtypes(|device, dtype, _| {
        let mut seeded = Seeded::new(54);
        for (inputs, outputs) in [(576, 1536), (16, 6), (4096, 70), (1040, 4400)] {
            let (_, weight) = weights(55, [outputs, inputs], device);
            let ranges = [0..1, 0..2, 0..9, 0..16];
            compare_projections(&mut seeded, (device, dtype), &weight, [inputs, outputs], &ranges);
        }
    });
}

#[test]
fn many_rows_equal_the_reference_of_rows_rounded_to_codes() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(56);
        for (rows, inputs, outputs) in [
            (33, 576, 1536),
            (67, 64, 16),
            (300, 4096, 96),
            (40, 2048, 9600),
            (65, 40, 24),
            (2, 4096, 9600),
            (7, 4096, 3072),
            (16, 2048, 4096),
        ] {
            let (x, device_x) = pair(&mut seeded, [rows, inputs], (device, dtype));
            let (weight, device_weight) = weights(57, [outputs, inputs], device);
            let (bias, device_bias) = floats(&mut seeded, [outputs], device);
            let (residual, device_residual) = pair(&mut seeded, [rows, 2 * outputs], (device, dtype));
            // A residual whose rows are apart.
            let (residual, device_residual) = (residual.narrow(1, 0, outputs), device_residual.narrow(1, 0, outputs));
            let by_codes = super::multiplies_fp8() && inputs % 16 == 0 && outputs % 16 == 0;
            let x = if by_codes { rounded(&x) } else { x };
            let product = reference::linear(x, &weight, Some(&bias));
            // The sums are rounded before the scales are applied.
            let tolerance = 3.0 * rounding;
            assert_close(linear(device_x.clone(), &device_weight, Some(&device_bias)), product.clone(), tolerance);
            let sum = linear_add(device_x.clone(), &device_weight, Some(&device_bias), device_residual);
            assert_close(sum, product.clone() + residual, tolerance);
            let projection = Projection { norm: None, weight: &device_weight, bias: Some(&device_bias) };
            let kind = Activation::Silu;
            let got = project(device_x.clone(), projection, Then::Activate(kind));
            assert_close(got, reference::activation(product.clone(), kind), tolerance);
            let half = outputs / 2;
            let gates = reference::activation(product.clone().narrow(1, 0, half), kind);
            let gated = gates * product.narrow(1, half, half);
            assert_close(project(device_x, projection, Then::Gate(kind)), gated, 2.0 * tolerance);
        }
    });
}

#[test]
fn a_norm_before_many_rows_is_the_one_of_the_single_operation() {
    for_both_dtypes(|device, dtype, _| {
        let mut seeded = Seeded::new(58);
        for (rows, inputs, outputs) in [(40, 576, 9600 * 2), (300, 4096, 96)] {
            let (_, x) = pair(&mut seeded, [rows, inputs], (device, dtype));
            let (_, weight) = weights(59, [outputs, inputs], device);
            let (_, norm_weight) = floats(&mut seeded, [inputs], device);
            let (_, norm_bias) = floats(&mut seeded, [inputs], device);
            let root_mean_square = RowNorm { weight: &norm_weight, bias: None, eps: 1e-5 };
            for norm in [root_mean_square, RowNorm { bias: Some(&norm_bias), ..root_mean_square }] {
                let projection = Projection { norm: Some(norm), weight: &weight, bias: None };
                let expected = linear(norm.of(x.clone()), &weight, None);
                assert_close(project(x.clone(), projection, Then::Keep), expected, 0.0);
            }
        }
    });
}

#[test]
fn attention_with_its_projection_in_fp8_has_the_bits_of_the_single_operations() {
    for_both_dtypes(|device, dtype, _| {
        let mut seeded = Seeded::new(60);
        for (num_heads, num_kv_heads, head_dim, head_norm) in
            [(9, 3, 64, false), (32, 8, 128, false), (16, 8, 128, true)]
        {
            let heads = HeadLayout { num_heads, num_kv_heads, head_dim };
            let options = QkvOptions { heads, rotary_dim: head_dim, norm_eps: head_norm.then_some(1e-6) };
            let (_, weight) = weights(61, [heads.row_len(), HIDDEN], device);
            let single = |count| vec![(1, 33); count];
            for sequences in [single(1), single(8), single(20), vec![(5, 5), (1, 33), (3, 20)], vec![(33, 33), (9, 50)]]
            {
                compare_with_single_operations(&mut seeded, (device, dtype), (&weight, options), &sequences, SAME_BITS);
            }
        }
    });
}

#[test]
fn products_in_fp8_can_be_recorded() {
    for_both_dtypes(|device, dtype, _| {
        let mut seeded = Seeded::new(62);
        for rows in [1, 16, 100] {
            let (_, up) = weights(63, [3072, 576], device);
            let (_, down) = weights(64, [576, 1536], device);
            let (_, norm) = floats(&mut seeded, [576], device);
            let (_, x) = pair(&mut seeded, [rows, 576], (device, dtype));
            let step = move |x: Tensor<2>| {
                let norm = Some(RowNorm { weight: &norm, bias: None, eps: 1e-5 });
                let up = Projection { norm, weight: &up, bias: None };
                let inner = project(x.clone(), up, Then::Gate(Activation::Silu));
                project(inner * 0.01, Projection { norm: None, weight: &down, bias: None }, Then::AddTo(x))
            };
            let expected = step(x.clone());
            let graph = CapturedGraph::record(&GraphMemory::default(), device, move || step(x.clone()))
                .expect("every operation can be recorded");
            for _ in 0..3 {
                assert_close(graph.replay().expect("the device works"), expected.clone(), 0.0);
            }
        }
    });
}

#[test]
fn cards_without_fp8_multiply_by_the_numbers_of_the_codes() {
    for_both_dtypes(|device, dtype, rounding| {
        with_capability(75, || {
            let mut seeded = Seeded::new(65);
            let (x, device_x) = pair(&mut seeded, [40, 576], (device, dtype));
            let (weight, device_weight) = weights(66, [96, 576], device);
            assert_close(linear(device_x, &device_weight, None), reference::linear(x, &weight, None), 2.0 * rounding);
        });
    });
}
