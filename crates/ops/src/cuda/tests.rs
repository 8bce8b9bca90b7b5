//! What only this backend promises: 16-bit activations, equal bits, capture in a graph, and errors that surface.

use std::ops::Range;

use burn::tensor::{DType, Device, Int, Shape, Tensor};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;

use super::gpu::limited::with_batch_invariance;
use super::kernel::Kernel;
use super::launch::{Grid, Launch};
use super::{FEW_ROWS, GATHER_ROWS, RMS_NORM, SOURCES};
use crate::testing::{AttentionCase, Seeded, assert_close, for_each_device, moved, reference_device};
use crate::{
    Activation, Backend, CapturedGraph, GraphMemory, HeadLayout, KvLayer, Projection, QkvOptions, RopeTable, RowNorm,
    RowParams, SamplePlan, Then, Weight, activation, add_rms_norm, backend_of, carry_tokens, gated_activation,
    gather_rows, layer_norm, linear, linear_add, project, reference, rms_norm, rope_and_store_kv, sample, section,
};

/// Runs a test on the CUDA device, if there is one, in both 16-bit dtypes, with the error of one rounding.
pub(super) fn for_both_dtypes(test: impl Fn(&Device, DType, f32)) {
    for_each_device(|device| {
        if backend_of(device) == Backend::Cuda {
            test(device, DType::F16, 1.0 / 2048.0);
            test(device, DType::BF16, 1.0 / 256.0);
        }
    });
}

/// Random values rounded to `dtype`: in 32 bits on the host, and on the device.
pub(super) fn pair<const D: usize>(
    seeded: &mut Seeded,
    shape: [usize; D],
    (device, dtype): (&Device, DType),
) -> (Tensor<D>, Tensor<D>) {
    let rounded = seeded.tensor(shape, &reference_device(device)).cast(dtype);
    (rounded.clone().cast(DType::F32), moved(&rounded, device))
}

/// A tensor of 32-bit floats on the host, and on the device.
pub(super) fn floats<const D: usize>(
    seeded: &mut Seeded,
    shape: [usize; D],
    device: &Device,
) -> (Tensor<D>, Tensor<D>) {
    let values = seeded.tensor(shape, &reference_device(device));
    (values.clone(), moved(&values, device))
}

#[test]
fn every_file_in_kernels_is_a_source_and_names_its_variants_and_what_it_needs() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels");
    // The test may run where there is no source tree.
    let Ok(files) = std::fs::read_dir(folder) else { return };
    for file in files {
        let path = file.expect("a readable folder").path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("an ASCII name");
            let source = SOURCES.iter().find(|(source, _)| source.name == stem);
            let (source, headers) = source.unwrap_or_else(|| panic!("{stem}.cu is not in the table of sources"));
            assert!(source.text.contains("\n// Variants: "), "{stem}.cu names no variants");
            let named = source.text.lines().find_map(|line| line.strip_prefix("// Needs: ")).unwrap_or_default();
            let named: Vec<&str> = named.split_whitespace().map(|header| header.trim_end_matches(".cuh")).collect();
            assert_eq!(named, *headers, "{stem}.cu needs what the table of sources says");
        }
    }
}

#[test]
fn sixteen_bit_products_equal_the_reference() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(20);
        for rows in [1, 2, 8, 9, 16, 17, 67, 300] {
            for (inputs, outputs) in [(576, 1536), (33, 5), (64, 17), (4096, 96), (40, 130)] {
                let (x, device_x) = pair(&mut seeded, [rows, inputs], (device, dtype));
                let (weight, device_weight) = pair(&mut seeded, [outputs, inputs], (device, dtype));
                let (bias, device_bias) = floats(&mut seeded, [outputs], device);
                let (weight, device_weight) = (Weight::dense(weight), Weight::dense(device_weight));
                let got = linear(device_x.clone(), &device_weight, Some(&device_bias));
                assert_eq!(got.dtype(), dtype);
                // cuBLASLt may round before the bias is added.
                assert_close(got, reference::linear(x.clone(), &weight, Some(&bias)), 2.0 * rounding);
                let got = linear(device_x, &device_weight, None);
                assert_close(got, reference::linear(x, &weight, None), rounding);
            }
        }
    });
}

#[test]
fn a_row_has_the_same_bits_among_few_rows() {
    for_both_dtypes(|device, dtype, _| {
        let mut seeded = Seeded::new(21);
        for (inputs, outputs) in [(576, 75), (4096, 40), (100, 33)] {
            let (_, x) = pair(&mut seeded, [FEW_ROWS, inputs], (device, dtype));
            let (_, weight) = pair(&mut seeded, [outputs, inputs], (device, dtype));
            let weight = Weight::dense(weight);
            let together = linear(x.clone(), &weight, None);
            for (first, rows) in [(0, 1), (15, 1), (3, 8), (4, 9), (2, 5)] {
                let alone = linear(x.clone().narrow(0, first, rows), &weight, None);
                assert_close(alone, together.clone().narrow(0, first, rows), 0.0);
            }
        }
    });
}

#[test]
fn a_row_has_the_same_bits_among_any_number_of_rows_where_the_batch_must_not_matter() {
    for_both_dtypes(|device, dtype, rounding| {
        with_batch_invariance(|| {
            let mut seeded = Seeded::new(22);
            // Rows of the last two are not on 16-byte boundaries, or do not fill the tiles.
            for (inputs, outputs) in [(576, 75), (4096, 130), (200, 4400), (16, 1), (33, 50), (1032, 8)] {
                let (x, device_x) = pair(&mut seeded, [300, inputs], (device, dtype));
                let (weight, device_weight) = pair(&mut seeded, [outputs, inputs], (device, dtype));
                let (residual, device_residual) = pair(&mut seeded, [300, outputs], (device, dtype));
                let (bias, device_bias) = floats(&mut seeded, [outputs], device);
                let (weight, device_weight) = (Weight::dense(weight), Weight::dense(device_weight));
                let multiply = |first, rows| {
                    let x = device_x.clone().narrow(0, first, rows);
                    let residual = device_residual.clone().narrow(0, first, rows);
                    linear_add(x, &device_weight, Some(&device_bias), residual)
                };
                let together = multiply(0, 300);
                let expected = reference::linear(x, &weight, Some(&bias)) + residual;
                assert_close(together.clone(), expected, 2.0 * rounding);
                for (first, rows) in [(0, 1), (15, 1), (3, 8), (2, 20), (7, 33), (5, 64), (9, 100), (1, 257)] {
                    assert_close(multiply(first, rows), together.clone().narrow(0, first, rows), 0.0);
                }
                let plain = linear(device_x.clone(), &device_weight, None);
                assert_close(linear(device_x.narrow(0, 40, 2), &device_weight, None), plain.narrow(0, 40, 2), 0.0);
            }
        });
    });
}

/// Projections of few rows, those of each range of rows that a seed makes, with every norm and with none.
pub(super) fn compare_projections(
    seeded: &mut Seeded,
    on: (&Device, DType),
    weight: &Weight,
    [inputs, outputs]: [usize; 2],
    ranges: &[Range<usize>],
) {
    let (_, x) = pair(seeded, [FEW_ROWS, inputs], on);
    let (_, residual) = pair(seeded, [FEW_ROWS, outputs], on);
    let [norm_weight, norm_bias] = [0; 2].map(|_| floats(seeded, [inputs], on.0).1);
    let (_, bias) = floats(seeded, [outputs], on.0);
    let root_mean_square = RowNorm { weight: &norm_weight, bias: None, eps: 1e-5 };
    let layer = RowNorm { bias: Some(&norm_bias), ..root_mean_square };
    for Range { start, end } in ranges.iter().cloned() {
        let (x, residual) = (x.clone().narrow(0, start, end - start), residual.clone().narrow(0, 0, end - start));
        for norm in [None, Some(root_mean_square), Some(layer)] {
            compare_projection(&x, Projection { norm, weight, bias: Some(&bias) }, &residual);
        }
    }
}

/// A projection of few rows has the bits of the operations one after the other, whatever comes after it.
fn compare_projection(x: &Tensor<2>, projection: Projection, residual: &Tensor<2>) {
    let Projection { norm, weight, bias } = projection;
    let normed = norm.map_or_else(|| x.clone(), |norm| norm.of(x.clone()));
    let product = linear(normed.clone(), weight, bias);
    let got = |then| project(x.clone(), projection, then);
    assert_close(got(Then::Keep), product.clone(), 0.0);
    let sum = linear_add(normed, weight, bias, residual.clone());
    assert_close(got(Then::AddTo(residual.clone())), sum, 0.0);
    for kind in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu] {
        assert_close(got(Then::Activate(kind)), activation(product.clone(), kind), 0.0);
        assert_close(got(Then::Gate(kind)), gated_activation(product.clone(), kind), 0.0);
    }
}

#[test]
fn projections_of_few_rows_have_the_bits_of_the_single_operations() {
    for_both_dtypes(|device, dtype, _| {
        let mut seeded = Seeded::new(28);
        for (inputs, outputs) in [(576, 1536), (8, 6), (4096, 70), (40, 130), (1032, 4400)] {
            let (_, weight) = pair(&mut seeded, [outputs, inputs], (device, dtype));
            let ranges = [3..4, 3..5, 3..11, 3..12, 0..16];
            compare_projections(&mut seeded, (device, dtype), &Weight::dense(weight), [inputs, outputs], &ranges);
        }
    });
}

#[test]
fn sums_with_a_residual_equal_the_reference() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(29);
        for (rows, inputs, outputs) in [(1, 576, 75), (16, 64, 17), (17, 576, 1536), (67, 33, 5), (300, 4096, 96)] {
            let (x, device_x) = pair(&mut seeded, [rows, inputs], (device, dtype));
            let (weight, device_weight) = pair(&mut seeded, [outputs, inputs], (device, dtype));
            let (residual, device_residual) = pair(&mut seeded, [rows, 2 * outputs], (device, dtype));
            let (bias, device_bias) = floats(&mut seeded, [outputs], device);
            let (weight, device_weight) = (Weight::dense(weight), Weight::dense(device_weight));
            // A residual whose rows are apart.
            let (residual, device_residual) = (residual.narrow(1, 0, outputs), device_residual.narrow(1, 0, outputs));
            for bias in [None, Some((&bias, &device_bias))] {
                let (bias, device_bias) = bias.unzip();
                let got = linear_add(device_x.clone(), &device_weight, device_bias, device_residual.clone());
                assert_close(got, reference::linear(x.clone(), &weight, bias) + residual.clone(), 2.0 * rounding);
            }
        }
    });
}

/// The feed-forward parts of several layers: every kernel starts while the one before it runs.
#[test]
fn a_recorded_chain_of_projections_gives_the_bits_of_the_same_calls_for_any_input() {
    for_both_dtypes(|device, dtype, _| {
        let mut seeded = Seeded::new(31);
        for rows in [1, 5, 16, 48, 128, 256] {
            let layers: Vec<(Weight, Weight, Tensor<1>)> = (0..12)
                .map(|_| {
                    let (_, up) = pair(&mut seeded, [3072, 576], (device, dtype));
                    let (_, down) = pair(&mut seeded, [576, 1536], (device, dtype));
                    (Weight::dense(up * 0.06), Weight::dense(down * 0.03), floats(&mut seeded, [576], device).1)
                })
                .collect();
            let step = move |x: Tensor<2>| {
                layers.iter().fold(x, |hidden, (up, down, norm)| {
                    let norm = Some(RowNorm { weight: norm, bias: None, eps: 1e-5 });
                    let up = Projection { norm, weight: up, bias: None };
                    let inner = project(hidden.clone(), up, Then::Gate(Activation::Silu));
                    project(inner, Projection { norm: None, weight: down, bias: None }, Then::AddTo(hidden))
                })
            };
            let ids = crate::int_tensor((0..rows as i32).collect(), [rows], device);
            let (_, table) = pair(&mut seeded, [300, 576], (device, dtype));
            let (recorded_ids, recorded_table, recorded_step) = (ids.clone(), table.clone(), step.clone());
            let recorded = move || recorded_step(gather_rows(&recorded_table, &recorded_ids));
            let graph = CapturedGraph::record(&GraphMemory::default(), device, recorded)
                .expect("every operation can be recorded");
            for replay in 0..20 {
                let chosen: Vec<i32> = (0..rows as i32).map(|row| (row * 7 + replay * 5) % 300).collect();
                drop(crate::overwrite(ids.clone(), chosen.clone()));
                let expected = step(gather_rows(&table, &crate::int_tensor(chosen, [rows], device)));
                assert_close(graph.replay().expect("the device works"), expected, 0.0);
            }
        }
    });
}

#[test]
fn sixteen_bit_rows_equal_the_reference() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(22);
        for (rows, columns) in [(1, 1), (1, 576), (3, 33), (7, 4096), (65, 100), (2, 14336)] {
            let (x, device_x) = pair(&mut seeded, [rows, columns], (device, dtype));
            let (residual, device_residual) = pair(&mut seeded, [rows, columns], (device, dtype));
            let (weight, device_weight) = floats(&mut seeded, [columns], device);
            let (bias, device_bias) = floats(&mut seeded, [columns], device);
            let got = rms_norm(device_x.clone(), &device_weight, 1e-5);
            assert_close(got, reference::rms_norm(x.clone(), &weight, 1e-5), rounding);
            let (normed, sum) = add_rms_norm(device_x.clone(), device_residual, &device_weight, 1e-5);
            let expected_sum = (x.clone() + residual).cast(dtype).cast(DType::F32);
            assert_close(sum, expected_sum.clone(), 0.0);
            assert_close(normed, reference::rms_norm(expected_sum, &weight, 1e-5), rounding);
            let got = layer_norm(device_x, &device_weight, &device_bias, 1e-5);
            assert_close(got, reference::layer_norm(x, &weight, &bias, 1e-5), rounding);
        }
    });
}

#[test]
fn normalised_rows_have_the_same_bits_among_many() {
    for_both_dtypes(|device, dtype, _| {
        let mut seeded = Seeded::new(29);
        for columns in [8, 576, 1000, 1024, 1032] {
            let (_, x) = pair(&mut seeded, [1541, columns], (device, dtype));
            let (_, residual) = pair(&mut seeded, [1541, columns], (device, dtype));
            let (_, weight) = floats(&mut seeded, [columns], device);
            let few = |x: &Tensor<2>| x.clone().narrow(0, 1500, 41);
            let (normed, sum) = add_rms_norm(x.clone(), residual.clone(), &weight, 1e-5);
            let (expected, expected_sum) = add_rms_norm(few(&x), few(&residual), &weight, 1e-5);
            assert_close(few(&normed), expected, 0.0);
            assert_close(few(&sum), expected_sum, 0.0);
            assert_close(few(&rms_norm(x.clone(), &weight, 1e-5)), rms_norm(few(&x), &weight, 1e-5), 0.0);
        }
    });
}

#[test]
fn sixteen_bit_activations_and_lookups_equal_the_reference() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(23);
        for (rows, columns) in [(1, 1536), (3, 37), (65, 40)] {
            let (x, device_x) = pair(&mut seeded, [rows, 2 * columns], (device, dtype));
            for kind in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu] {
                let gate = x.clone().slice([0..rows, 0..columns]);
                let up = x.clone().slice([0..rows, columns..2 * columns]);
                let expected = reference::activation(gate, kind) * up;
                assert_close(gated_activation(device_x.clone(), kind), expected, rounding);
            }
        }
        let (table, device_table) = pair(&mut seeded, [33, 130], (device, dtype));
        let ids = vec![0, 32, 5, 5, 31];
        let host_ids = crate::int_tensor(ids.clone(), [5], &reference_device(device));
        let got = gather_rows(&device_table, &crate::int_tensor(ids, [5], device));
        assert_eq!(got.dtype(), dtype);
        assert_close(got, reference::gather_rows(&table, &host_ids), 0.0);
    });
}

#[test]
fn rotation_in_sixteen_bits_equals_the_reference() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(26);
        let host = reference_device(device);
        let layouts = [(9, 3, 64, 64, false), (32, 8, 128, 128, true), (8, 1, 256, 64, true), (3, 3, 10, 6, true)];
        let batches = [vec![(5, 5), (1, 33), (7, 20)], vec![(1030, 1030), (1, 33)]];
        for ((num_heads, num_kv_heads, head_dim, rotary_dim, norm), batch) in
            layouts.into_iter().flat_map(|layout| batches.iter().map(move |batch| (layout, batch)))
        {
            let heads = HeadLayout { num_heads, num_kv_heads, head_dim };
            let options = QkvOptions { heads, rotary_dim, norm_eps: norm.then_some(1e-6) };
            let case = AttentionCase::new(batch, 16, &mut seeded, device);
            let (qkv, device_qkv) = pair(&mut seeded, [case.num_tokens(), heads.row_len()], (device, dtype));
            let (weights, device_weights): (Vec<_>, Vec<_>) =
                (0..2).map(|_| floats(&mut seeded, [head_dim], device)).unzip();
            let (table, device_table) = floats(&mut seeded, [1030, rotary_dim], device);
            let positions = case.metadata(&host).positions;
            let norms = norm.then_some((&weights[0], &weights[1]));
            let expected = reference::rope_and_store_kv(qkv, norms, Some(&RopeTable(table)), &positions, options);
            let norms = norm.then_some((&device_weights[0], &device_weights[1]));
            let mut layer = KvLayer::with_dtype(case.num_blocks, 16, heads, (device, dtype));
            let (metadata, table) = (case.metadata(device), RopeTable(device_table));
            let got = rope_and_store_kv(device_qkv, norms, Some(&table), &metadata, (&mut layer, options));
            let (width, queries) = (num_kv_heads * head_dim, heads.output_len());
            assert_close(got.narrow(1, 0, queries), expected.clone().narrow(1, 0, queries), rounding);
            for (cache, first) in [(layer.keys(), queries), (layer.values(), queries + width)] {
                let stored = cache.clone().reshape([cache.dims()[0], width]).select(0, metadata.slot_mapping.clone());
                assert_close(stored, expected.clone().narrow(1, first, width), rounding);
            }
        }
    });
}

#[test]
fn carried_tokens_are_what_the_rows_chose_and_the_others_stay() {
    for_both_dtypes(|device, dtype, _| {
        let (_, logits) = pair(&mut Seeded::new(5), [3, 300], (device, dtype));
        let rows: Vec<RowParams> = (0..3).map(RowParams::greedy).collect();
        let plan = SamplePlan::new(&rows, 3, 300);
        let length = plan.words.len();
        let sampled = sample(&logits, &crate::int_tensor(plan.words, [length], device), plan.options);
        let values = |tensor: Tensor<1, Int>| -> Vec<i32> { tensor.into_data().try_to_vec().expect("32-bit integers") };
        let ids = values(sampled.ids());
        let mut words = vec![7; 64];
        words.extend([0, 3, 1, 0, 0, 2]);
        let words = crate::int_tensor(words, [70], device);
        carry_tokens(&section(&words, 0, 6), &section(&words, 64, 6), &sampled);
        let after = values(words);
        assert_eq!(after[..6], [7, ids[2], ids[0], 7, 7, ids[1]]);
        assert_eq!(after[64..], [0, 3, 1, 0, 0, 2]);
    });
}

#[test]
fn a_recorded_graph_gives_the_same_bits_at_every_replay() {
    for_both_dtypes(|device, dtype, _| {
        let mut seeded = Seeded::new(27);
        for rows in [4, 32] {
            let (_, x) = pair(&mut seeded, [rows, 576], (device, dtype));
            let (_, weight) = pair(&mut seeded, [1536, 576], (device, dtype));
            let (_, norm) = floats(&mut seeded, [576], device);
            let weight = Weight::dense(weight);
            let step = move || {
                let hidden = rms_norm(x.clone(), &norm, 1e-5);
                gated_activation(linear(hidden, &weight, None), Activation::Silu)
            };
            let expected = step();
            let graph =
                CapturedGraph::record(&GraphMemory::default(), device, step).expect("every operation can be recorded");
            for _ in 0..3 {
                assert_close(graph.replay().expect("the device works"), expected.clone(), 0.0);
            }
        }
    });
}

#[test]
fn a_launch_that_fails_is_an_error_when_its_result_is_read() {
    for_both_dtypes(|_, dtype, _| {
        let device = cubecl::Device::Cuda(cubecl::cuda::CudaDevice::default());
        let client = device.client();
        let new = || empty_device_contiguous_dtype(client.clone(), device.clone(), Shape::from([2, 8]), dtype);
        let (broken, downstream) = (new(), new());
        let absent = Kernel::new(&RMS_NORM, "absent").word("ELEMENT", super::element(dtype));
        Launch::new(absent, Grid::new([1, 1, 1], 32)).write(&broken).submit(&broken);
        let copy = Kernel::new(&GATHER_ROWS, "gather_rows").number("UNIT", 2);
        Launch::new(copy, Grid::new([0, 1, 1], 32)).read(&broken).write(&downstream).submit(&broken);
        for tensor in [broken, downstream] {
            let reading = super::read_back(&tensor);
            let error = cubecl_environment::future::block_on(reading).expect_err("nothing wrote it");
            assert!(format!("{error:?}").contains("entry absent of rms_norm.cu"), "{error:?}");
            let error = client.read_one(tensor.handle).expect_err("nothing wrote it");
            assert!(format!("{error}").contains("entry absent of rms_norm.cu"), "{error}");
        }
    });
}
