//! Products of hundreds of rows and more with what comes after them in the same kernel, and heads of tens of rows.

use burn::tensor::{DType, Tensor};

use super::attention_tests::{compare_with_single_operations, options as attention_options, projection};
use super::gpu::limited::with_batch_invariance;
use super::gpu::{Gpu, is_batch_invariant};
use super::linear_wgmma::Form;
use super::linear_wgmma_tiles::{outputs_of_tile, takes};
use super::tests::{floats, for_both_dtypes, pair};
use crate::backend::Activated;
use crate::e4m3::E4M3;
use crate::testing::{AttentionCase, Seeded, assert_close};
use crate::{
    Activation, HeadLayout, KvLayer, Projection, QkvOptions, QkvProjection, RopeTable, Then, Weight, linear,
    paged_attention, project, reference, rope_and_store_kv, self_attention,
};

/// Rows, inputs and outputs that leave a tile of rows, of outputs or a chunk of inputs half full, and blocks with several tiles
/// and with none.
const SIZES: [(usize, usize, usize); 5] =
    [(641, 72, 2576), (700, 200, 2320), (1601, 576, 960), (650, 1032, 5392), (1200, 136, 2320)];

#[test]
fn the_sizes_are_those_of_the_kernel_on_hopper() {
    let [mut gpu, _] = Gpu::of_architecture(90);
    gpu.multiprocessors = 132;
    let form = |(rows, inputs, outputs), activated| {
        let dtype = DType::BF16;
        Form { dtype, activated, rows, outputs, inputs, ordered: false, heads: None }
    };
    let gated = Activated::Gated(Activation::Silu);
    assert!(SIZES.iter().all(|&size| form(size, gated).is_taken(&gpu)));
    assert_eq!(SIZES.map(|size| outputs_of_tile(&form(size, gated))), [128, 128, 128, 128, 192]);
    assert!(!form(SIZES[0], Activated::Not).is_taken(&gpu), "the library is as fast");
    assert!(SIZES.iter().all(|&size| takes(&form(size, gated))) && !takes(&form((640, 576, 3072), gated)), "few rows");
    assert!(!form((700, 2048, 2944), gated).is_taken(&gpu), "a second round for two thirds of the multiprocessors");
    assert!(!form((2048, 4096, 28_672), gated).is_taken(&gpu) && form((4096, 4096, 28_672), gated).is_taken(&gpu));
    let heads = |head_dim, cache| Form { heads: Some((head_dim, cache)), ..form((8192, 1024, 4096), Activated::Not) };
    assert!([64, 128].iter().all(|&head_dim| heads(head_dim, DType::BF16).is_taken(&gpu)));
    assert!(heads(128, E4M3).is_taken(&gpu), "a cache of codes");
    assert!(!heads(256, DType::BF16).is_taken(&gpu), "heads longer than a tile");
    let of_tens = |rows, head_dim| Form { rows, ..heads(head_dim, DType::BF16) };
    assert!(
        [17, 64, 128, 256].iter().all(|&rows| of_tens(rows, 64).is_taken(&gpu) && of_tens(rows, 128).is_taken(&gpu))
    );
    assert!(!of_tens(64, 96).is_taken(&gpu), "heads that are no whole tiles");
    for (options, sequences) in layouts_of_tens() {
        let rows = sequences.iter().map(|(tokens, _)| tokens).sum();
        let (outputs, head_dim) = (options.heads.row_len(), options.heads.head_dim);
        let form = form((rows, 576, outputs), Activated::Not);
        let heads = Some((head_dim, DType::BF16));
        assert!(Form { heads, ..form }.is_taken(&gpu), "{rows} rows, {options:?}");
    }
    gpu.capability = 89;
    assert!(!form(SIZES[0], gated).is_taken(&gpu), "no such instructions");
}

#[test]
fn products_of_hundreds_of_rows_equal_the_reference_whatever_comes_after() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(71);
        for (rows, inputs, outputs) in SIZES {
            let (x, device_x) = pair(&mut seeded, [rows, inputs], (device, dtype));
            let (weight, device_weight) = pair(&mut seeded, [outputs, inputs], (device, dtype));
            let (bias, device_bias) = floats(&mut seeded, [outputs], device);
            let (weight, device_weight) = (Weight::dense(weight), Weight::dense(device_weight));
            for with_bias in [true, false] {
                let product = reference::linear(x.clone(), &weight, with_bias.then_some(&bias));
                let bias = with_bias.then_some(&device_bias);
                let projection = Projection { norm: None, weight: &device_weight, bias };
                let got = |then| project(device_x.clone(), projection, then);
                let half = |first: usize| -> Tensor<2> { product.clone().narrow(1, first * outputs / 2, outputs / 2) };
                for kind in [Activation::Silu, Activation::GeluErf, Activation::Relu] {
                    let expected = reference::activation(product.clone(), kind);
                    assert_close(got(Then::Activate(kind)), expected, 2.0 * rounding);
                    let expected = reference::activation(half(0), kind) * half(1);
                    assert_close(got(Then::Gate(kind)), expected, 3.0 * rounding);
                }
            }
        }
    });
}

/// Sequences as tokens of a batch and positions.
type Sequences = Vec<(usize, usize)>;

/// Heads, which elements of them are rotated and whether they are normalised.
fn layout(num_heads: usize, num_kv_heads: usize, head_dim: usize, rotary_dim: usize, has_norms: bool) -> QkvOptions {
    QkvOptions {
        heads: HeadLayout { num_heads, num_kv_heads, head_dim },
        rotary_dim,
        norm_eps: has_norms.then_some(1e-6),
    }
}

/// Sequences with hundreds of rows.
fn layouts_of_hundreds() -> Vec<(QkvOptions, Sequences)> {
    let prompts = || vec![(600, 700), (1, 33), (40, 90), (59, 59)];
    vec![
        (layout(16, 1, 128, 128, true), prompts()),
        (layout(16, 1, 128, 128, false), prompts()),
        (layout(40, 2, 64, 64, true), prompts()),
        (layout(12, 12, 64, 0, false), prompts()),
        (layout(9, 3, 64, 64, false), vec![(1601, 1700), (1, 300)]),
    ]
}

/// Sequences with tens of rows, some of which fill no block.
fn layouts_of_tens() -> Vec<(QkvOptions, Sequences)> {
    let single = |count: usize| -> Sequences { (0..count).map(|i| (1, 1 + 7 * i % 90)).collect() };
    vec![
        (layout(2, 1, 128, 128, true), single(17)),
        (layout(16, 8, 128, 128, true), single(64)),
        (layout(16, 8, 128, 128, true), single(128)),
        (layout(16, 8, 128, 128, true), single(250)),
        (layout(4, 2, 128, 128, true), single(129)),
        (layout(16, 1, 128, 128, false), vec![(30, 45), (1, 20), (69, 69)]),
        (layout(4, 2, 128, 0, false), single(50)),
        (layout(40, 2, 64, 64, true), single(200)),
        (layout(9, 3, 64, 64, false), single(33)),
        (layout(12, 12, 64, 0, false), vec![(150, 170), (1, 300), (100, 100)]),
        (layout(9, 3, 64, 64, false), vec![(500, 510), (1, 40), (99, 120)]),
    ]
}

#[test]
fn attention_behind_products_of_hundreds_of_rows_is_close_to_that_of_the_single_operations() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(72);
        for (options, sequences) in layouts_of_hundreds() {
            let weight = projection(&mut seeded, options.heads, (device, dtype));
            let close = (None, 4.0 * rounding);
            compare_with_single_operations(&mut seeded, (device, dtype), (&weight, options), &sequences, close);
        }
    });
}

#[test]
fn heads_of_hundreds_of_rows_have_the_bits_of_the_single_operations() {
    compare_heads(layouts_of_hundreds());
}

#[test]
fn heads_of_tens_of_rows_have_the_bits_of_the_single_operations() {
    compare_heads(layouts_of_tens());
}

#[test]
fn heads_have_the_bits_of_the_single_operations_where_the_batch_must_not_matter() {
    with_batch_invariance(|| compare_heads([layouts_of_tens(), layouts_of_hundreds()].concat()));
}

/// Sums of small whole numbers are the same in any order, and below 256 no dtype rounds them, before a bias or behind it: so
/// only what is done with heads is compared, unless sums are to have one order.
fn compare_heads(layouts: Vec<(QkvOptions, Sequences)>) {
    for_both_dtypes(|device, dtype, _| {
        let mut seeded = Seeded::new(73);
        for ((options, sequences), cache) in
            layouts.iter().flat_map(|layout| [(layout.clone(), dtype), (layout.clone(), E4M3)])
        {
            let QkvOptions { heads, rotary_dim, norm_eps } = options;
            let case = AttentionCase::new(&sequences, 16, &mut seeded, device);
            let metadata = case.metadata(device);
            let mut random = |shape| {
                let (_, tensor) = pair(&mut seeded, shape, (device, dtype));
                if is_batch_invariant() { tensor } else { (tensor * 1.5).round() }
            };
            let (x, weight) = (random([case.num_tokens(), 576]), Weight::dense(random([heads.row_len(), 576])));
            let [query_norm, key_norm] = [0, 1].map(|_| floats(&mut seeded, [heads.head_dim], device).1);
            let bias = (floats(&mut seeded, [heads.row_len()], device).1 * 8.0).round();
            let (_, angles) = floats(&mut seeded, [2000 * rotary_dim.max(1)], device);
            let table = RopeTable(angles.reshape([2000, rotary_dim.max(1)]));
            let qkv = QkvProjection {
                projection: Projection { norm: None, weight: &weight, bias: Some(&bias) },
                head_norms: norm_eps.map(|_| (&query_norm, &key_norm)),
                rope: (rotary_dim != 0).then_some(&table),
                options,
            };
            let attention = attention_options(heads, 16);
            let [mut layer, mut expected] =
                [0, 1].map(|_| KvLayer::with_dtype(case.num_blocks, 16, heads, (device, cache)));
            let got = self_attention(x.clone(), qkv, &metadata, (&mut layer, attention));
            let rows = linear(x, &weight, Some(&bias));
            let rows = rope_and_store_kv(rows, qkv.head_norms, qkv.rope, &metadata, (&mut expected, options));
            assert_close(got, paged_attention(rows, &expected, &metadata, attention), 0.0);
            assert_close(layer.keys(), expected.keys(), 0.0);
            assert_close(layer.values(), expected.values(), 0.0);
        }
    });
}
