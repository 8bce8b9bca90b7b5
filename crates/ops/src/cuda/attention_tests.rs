//! What attention on CUDA promises: the reference's numbers on every path, and how far bits do not depend on the batch.

use burn::tensor::{DType, Device, Tensor};

use super::gpu::limited::{with_batch_invariance, with_capability};
use super::tests::{for_both_dtypes, pair};
use crate::e4m3::E4M3;
use crate::testing::{AttentionCase, Seeded, assert_close, moved, reference_device};
use crate::{
    Activation, AttentionOptions, CapturedGraph, GraphMemory, HeadLayout, KvLayer, Projection, QkvOptions,
    QkvProjection, RopeTable, RowNorm, Weight, gated_activation, int_tensor, linear, paged_attention, reference,
    rope_and_store_kv, self_attention,
};

/// Compute capabilities whose kernels differ.
const CAPABILITIES: [u32; 4] = [75, 80, 86, 90];

/// A cache of dtype `cache` filled with the whole contexts of `case`, and the keys and values rounded as it holds them, on
/// the host.
pub(super) fn filled_with(
    seeded: &mut Seeded,
    case: &AttentionCase,
    heads: HeadLayout,
    on: (&Device, DType),
    cache: DType,
) -> [KvLayer; 2] {
    let everything = case.whole_contexts();
    let options = QkvOptions { heads, rotary_dim: 0, norm_eps: None };
    let (past, device_past) = pair(seeded, [everything.num_tokens(), heads.row_len()], on);
    let host = reference_device(on.0);
    let host_dtype = if cache == E4M3 { E4M3 } else { DType::F32 };
    let mut host_layer = KvLayer::with_dtype(case.num_blocks, case.block_size(), heads, (&host, host_dtype));
    rope_and_store_kv(past, None, None, &everything.metadata(&host), (&mut host_layer, options));
    let mut layer = KvLayer::with_dtype(case.num_blocks, case.block_size(), heads, (on.0, cache));
    rope_and_store_kv(device_past, None, None, &everything.metadata(on.0), (&mut layer, options));
    [host_layer, layer]
}

pub(super) fn options(heads: HeadLayout, block_size: usize) -> AttentionOptions {
    let scale = (heads.head_dim as f32).powf(-0.5);
    AttentionOptions { heads, block_size, scale, sliding_window: None, softcap: None }
}

/// Compares every kernel with the reference on prompts, chunks behind long prefixes and decoding tokens in one batch, with
/// a cache of the rows' dtype and one of 8 bits.
fn check(heads: HeadLayout, block_size: usize, seed: u64) {
    for_both_dtypes(|device, dtype, rounding| {
        for cache in [dtype, E4M3] {
            check_cache(heads, block_size, seed, ((device, dtype), cache, rounding));
        }
    });
}

fn check_cache(heads: HeadLayout, block_size: usize, seed: u64, (on, cache, rounding): ((&Device, DType), DType, f32)) {
    let (device, _) = on;
    let mut seeded = Seeded::new(seed);
    let sequences = [(1, 700), (3, 257), (1, 1), (5, 256), (40, 300), (70, 70), (1, 2300), (2, 2), (1, 257)];
    let case = AttentionCase::new(&sequences, block_size, &mut seeded, device);
    let [host_layer, layer] = filled_with(&mut seeded, &case, heads, on, cache);
    let (qkv, device_qkv) = pair(&mut seeded, [case.num_tokens(), heads.row_len()], on);
    let (host_metadata, metadata) = (case.metadata(&reference_device(device)), case.metadata(device));
    for (sliding_window, softcap) in [(None, None), (Some(300), None), (Some(7), None), (None, Some(2.0))] {
        let options = AttentionOptions { sliding_window, softcap, ..options(heads, block_size) };
        let expected = reference::paged_attention(qkv.clone(), &host_layer, &host_metadata, options);
        for capability in CAPABILITIES {
            with_capability(capability, || {
                let got = paged_attention(device_qkv.clone(), &layer, &metadata, options);
                assert_close(got, expected.clone(), rounding);
            });
        }
    }
}

#[test]
fn equals_the_reference_with_three_query_heads_per_kv_head() {
    check(HeadLayout { num_heads: 9, num_kv_heads: 3, head_dim: 64 }, 16, 40);
}

#[test]
fn equals_the_reference_with_a_head_of_128() {
    check(HeadLayout { num_heads: 8, num_kv_heads: 2, head_dim: 128 }, 32, 41);
}

#[test]
fn equals_the_reference_with_a_head_of_256_and_odd_blocks() {
    check(HeadLayout { num_heads: 8, num_kv_heads: 1, head_dim: 256 }, 48, 42);
}

#[test]
fn equals_the_reference_with_more_query_heads_than_a_block_takes() {
    check(HeadLayout { num_heads: 20, num_kv_heads: 1, head_dim: 80 }, 16, 43);
}

#[test]
fn equals_the_reference_without_groups() {
    check(HeadLayout { num_heads: 4, num_kv_heads: 4, head_dim: 96 }, 16, 44);
    check(HeadLayout { num_heads: 2, num_kv_heads: 2, head_dim: 64 }, 20, 45);
}

#[test]
fn equals_the_reference_with_heads_that_tensor_cores_do_not_take() {
    check(HeadLayout { num_heads: 4, num_kv_heads: 2, head_dim: 10 }, 16, 46);
}

#[test]
fn equals_the_reference_with_more_contexts_than_the_gpu_runs_at_a_time() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(47);
        let heads = HeadLayout { num_heads: 4, num_kv_heads: 4, head_dim: 128 };
        let tokens: Vec<(usize, usize)> = (0..70).map(|index| (1, 1 + index * 37 % 900)).collect();
        let equal = vec![(1, 100); 70];
        let beside_prompts = [&[(40, 60), (1, 1300)], &tokens[..], &[(17, 17)]].concat();
        for (sequences, sliding_window, cache) in [
            (&tokens, None, E4M3),
            (&equal, None, dtype),
            (&beside_prompts, None, dtype),
            (&beside_prompts, Some(600), dtype),
        ] {
            let case = AttentionCase::new(sequences, 16, &mut seeded, device);
            let options = AttentionOptions { sliding_window, ..options(heads, 16) };
            let [host_layer, layer] = filled_with(&mut seeded, &case, heads, (device, dtype), cache);
            let (qkv, device_qkv) = pair(&mut seeded, [case.num_tokens(), heads.row_len()], (device, dtype));
            let metadata = case.metadata(&reference_device(device));
            let expected = reference::paged_attention(qkv, &host_layer, &metadata, options);
            let got = paged_attention(device_qkv, &layer, &case.metadata(device), options);
            assert_close(got, expected, rounding);
        }
    });
}

/// Sequences that prefill and decode, their cache, and the result of all of them together.
fn together(
    (device, dtype): (&Device, DType),
    cache: DType,
    options: AttentionOptions,
    others: usize,
) -> (AttentionCase, KvLayer, Tensor<2>, Tensor<2>) {
    let mut seeded = Seeded::new(48);
    let mut sequences = vec![(600, 900), (1, 900), (1, 30)];
    sequences.extend(vec![(1, 500); others]);
    let case = AttentionCase::new(&sequences, 16, &mut seeded, device);
    let [_, layer] = filled_with(&mut seeded, &case, options.heads, (device, dtype), cache);
    let (_, qkv) = pair(&mut seeded, [case.num_tokens(), options.heads.row_len()], (device, dtype));
    let result = paged_attention(qkv.clone(), &layer, &case.metadata(device), options);
    (case, layer, qkv, result)
}

#[test]
fn a_prompt_has_the_same_bits_whole_and_in_chunks_of_any_length() {
    for_both_dtypes(|device, dtype, _| {
        for head_dim in [64, 128] {
            let heads = HeadLayout { num_heads: 8, num_kv_heads: 2, head_dim };
            for sliding_window in [None, Some(333)] {
                let options = AttentionOptions { sliding_window, ..options(heads, 16) };
                for (capability, cache) in CAPABILITIES.into_iter().flat_map(|card| [(card, dtype), (card, E4M3)]) {
                    with_capability(capability, || {
                        let (case, layer, qkv, whole) = together((device, dtype), cache, options, 90);
                        for (first, end) in [(0, 2), (2, 133), (133, 389), (389, 600)] {
                            let chunk = case.only(0, 300 + first..300 + end).metadata(device);
                            let query = qkv.clone().narrow(0, first, end - first);
                            let got = paged_attention(query, &layer, &chunk, options);
                            assert_close(got, whole.clone().narrow(0, first, end - first), 0.0);
                        }
                    });
                }
            }
        }
    });
}

#[test]
fn a_decoding_token_has_the_same_bits_alone_and_in_a_batch_that_leaves_contexts_whole() {
    for_both_dtypes(|device, dtype, _| {
        for head_dim in [64, 128] {
            let heads = HeadLayout { num_heads: 8, num_kv_heads: 2, head_dim };
            for (capability, cache) in CAPABILITIES.into_iter().flat_map(|card| [(card, dtype), (card, E4M3)]) {
                with_capability(capability, || {
                    let options = options(heads, 16);
                    // Where contexts of few sequences have clusters: as many as leave each as large a cluster as one has.
                    let others = if capability < 90 { 90 } else { 1 };
                    let (case, layer, qkv, batch) = together((device, dtype), cache, options, others);
                    for (sequence, position) in [(1, 899), (2, 29), (3, 499)] {
                        let alone = case.only(sequence, position..position + 1).metadata(device);
                        let token = 599 + sequence;
                        let got = paged_attention(qkv.clone().narrow(0, token, 1), &layer, &alone, options);
                        assert_close(got, batch.clone().narrow(0, token, 1), 0.0);
                    }
                });
            }
        }
    });
}

#[test]
fn a_token_has_the_same_bits_alone_and_at_the_end_of_a_prompt_where_the_batch_must_not_matter() {
    for_both_dtypes(|device, dtype, _| {
        let layouts = [64, 96, 128, 256].map(|head_dim| HeadLayout { num_heads: 8, num_kv_heads: 2, head_dim });
        let variants = layouts.into_iter().flat_map(|heads| [(heads, dtype), (heads, E4M3)]);
        for ((heads, cache), capability) in variants.flat_map(|variant| CAPABILITIES.map(|of| (variant, of))) {
            with_capability(capability, || {
                with_batch_invariance(|| {
                    let options = options(heads, 16);
                    let (case, layer, qkv, batch) = together((device, dtype), cache, options, 90);
                    for (sequence, position, token) in [(0, 300, 0), (0, 777, 477), (0, 899, 599), (2, 29, 601)] {
                        let alone = case.only(sequence, position..position + 1).metadata(device);
                        let got = paged_attention(qkv.clone().narrow(0, token, 1), &layer, &alone, options);
                        assert_close(got, batch.clone().narrow(0, token, 1), 0.0);
                    }
                });
            });
        }
    });
}

#[test]
fn single_tokens_have_the_bits_that_they_have_in_prompts_where_the_batch_must_not_matter() {
    const CONTEXTS: [usize; 7] = [1, 2, 127, 128, 129, 300, 577];
    /// How many of each context's last tokens are in the batch.
    const BATCHES: [[usize; 7]; 3] = [[1; 7], [1, 2, 1, 128, 1, 1, 577], [1, 1, 127, 1, 40, 1, 2]];
    for_both_dtypes(|device, dtype, _| {
        for (num_heads, num_kv_heads, head_dim) in [(16, 8, 128), (9, 3, 64), (12, 1, 64), (4, 1, 256)] {
            let heads = HeadLayout { num_heads, num_kv_heads, head_dim };
            // Block tables follow from the contexts and the seed.
            let case = |lens: [usize; 7]| {
                let sequences: Vec<_> = lens.into_iter().zip(CONTEXTS).collect();
                AttentionCase::new(&sequences, 16, &mut Seeded::new(51), device)
            };
            let prompts = case(CONTEXTS);
            let mut seeded = Seeded::new(52);
            let [_, layer] = filled_with(&mut seeded, &prompts, heads, (device, dtype), dtype);
            let (_, qkv) = pair(&mut seeded, [prompts.num_tokens(), heads.row_len()], (device, dtype));
            let last = |rows: &Tensor<2>, lens: [usize; 7]| {
                let ends = CONTEXTS.iter().scan(0, |end, context| {
                    *end += context;
                    Some(*end)
                });
                Tensor::cat(ends.zip(lens).map(|(end, len)| rows.clone().narrow(0, end - len, len)).collect(), 0)
            };
            for sliding_window in [None, Some(100)] {
                let options = AttentionOptions { sliding_window, ..options(heads, 16) };
                with_batch_invariance(|| {
                    let expected = paged_attention(qkv.clone(), &layer, &prompts.metadata(device), options);
                    for lens in BATCHES {
                        let got = paged_attention(last(&qkv, lens), &layer, &case(lens).metadata(device), options);
                        assert_close(got, last(&expected, lens), 0.0);
                    }
                });
            }
        }
    });
}

#[test]
fn many_short_contexts_agree_with_the_reference_and_have_the_same_bits_in_any_order() {
    /// With two KV heads more contexts than an H200 takes at a time.
    const SEQUENCES: usize = 150;
    for_both_dtypes(|device, dtype, rounding| {
        for (num_heads, num_kv_heads, head_dim) in [(4, 2, 128), (6, 2, 64)] {
            let heads = HeadLayout { num_heads, num_kv_heads, head_dim };
            let (options, host) = (options(heads, 16), reference_device(device));
            let mut seeded = Seeded::new(57);
            // Some long among many short, the longest last; one fills whole tiles.
            let context = |s: usize| if s % 16 == 5 { 640 + 2 * s } else { 1 + s * 37 % 129 };
            let sequences: Vec<_> = (0..SEQUENCES).map(|s| (1, context(s))).collect();
            let case = AttentionCase::new(&sequences, 16, &mut seeded, device);
            let [host_layer, layer] = filled_with(&mut seeded, &case, heads, (device, dtype), dtype);
            let (qkv, device_qkv) = pair(&mut seeded, [SEQUENCES, heads.row_len()], (device, dtype));
            let expected = reference::paged_attention(qkv, &host_layer, &case.metadata(&host), options);
            let got = paged_attention(device_qkv.clone(), &layer, &case.metadata(device), options);
            assert_close(got.clone(), expected, rounding);

            let backwards: Vec<i32> = (0..SEQUENCES as i32).rev().collect();
            let rows = int_tensor(backwards, [SEQUENCES], device);
            let reversed = case.reversed().metadata(device);
            let again = paged_attention(device_qkv.select(0, rows.clone()), &layer, &reversed, options);
            assert_close(again, got.select(0, rows), 0.0);
        }
    });
}

#[test]
fn a_recorded_graph_attends_with_the_same_bits_at_every_replay() {
    for_both_dtypes(|device, dtype, _| {
        let mut seeded = Seeded::new(49);
        let heads = HeadLayout { num_heads: 9, num_kv_heads: 3, head_dim: 64 };
        let mixed: Vec<(usize, usize)> = vec![(130, 400), (1, 700), (1, 20)];
        let batches = [vec![(1, 700), (1, 20), (1, 300)], vec![(1, 700); 90], mixed];
        for (sequences, cache) in batches.iter().flat_map(|batch| [(batch, dtype), (batch, E4M3)]) {
            let case = AttentionCase::new(sequences, 16, &mut seeded, device);
            let [_, layer] = filled_with(&mut seeded, &case, heads, (device, dtype), cache);
            let (_, x) = pair(&mut seeded, [case.num_tokens(), 2 * heads.row_len()], (device, dtype));
            let (options, metadata) = (options(heads, 16), case.metadata(device));
            // What comes before writes the queries, what comes after reads the result.
            let step = move || {
                let qkv = gated_activation(x.clone(), Activation::Silu);
                let attended = paged_attention(qkv, &layer, &metadata, options);
                let doubled = Tensor::cat(vec![attended.clone(), attended], 1);
                gated_activation(doubled, Activation::Silu)
            };
            let expected = step();
            let graph =
                CapturedGraph::record(&GraphMemory::default(), device, step).expect("attention can be recorded");
            for _ in 0..3 {
                assert_close(graph.replay().expect("the device works"), expected.clone(), 0.0);
            }
        }
    });
}

#[test]
fn a_cache_of_codes_is_written_alike_on_cards_with_and_without_instructions_for_it() {
    for_both_dtypes(|device, dtype, _| {
        let heads = HeadLayout { num_heads: 2, num_kv_heads: 2, head_dim: 64 };
        let store = QkvOptions { heads, rotary_dim: 0, norm_eps: None };
        let host = reference_device(device);
        // Numbers of every size, those beyond the largest and below the smallest code among them.
        let mut seeded = Seeded::new(50);
        let values = (0..700 * heads.row_len()).map(|_| seeded.value() * 2f32.powf(26.0 * seeded.value()));
        let rows = crate::float_tensor(values.collect(), [700, heads.row_len()], &host).cast(dtype);
        let case = AttentionCase::new(&[(700, 700)], 16, &mut seeded, device);
        let mut expected = KvLayer::with_dtype(case.num_blocks, 16, heads, (&host, E4M3));
        let rounded = rows.clone().cast(DType::F32);
        rope_and_store_kv(rounded, None, None, &case.metadata(&host), (&mut expected, store));
        for capability in CAPABILITIES {
            with_capability(capability, || {
                let mut layer = KvLayer::with_dtype(case.num_blocks, 16, heads, (device, E4M3));
                rope_and_store_kv(moved(&rows, device), None, None, &case.metadata(device), (&mut layer, store));
                assert_close(moved(&layer.keys(), &host), expected.keys(), 0.0);
                assert_close(moved(&layer.values(), &host), expected.values(), 0.0);
            });
        }
    });
}

#[test]
fn what_the_cache_holds_beyond_a_context_does_not_show() {
    for_both_dtypes(|device, dtype, _| {
        let heads = HeadLayout { num_heads: 8, num_kv_heads: 2, head_dim: 128 };
        let options = options(heads, 16);
        let (case, layer, qkv, _) = together((device, dtype), dtype, options, 90);
        // The first tokens of a sequence in a cache that holds something else after them, or no numbers at all.
        let broken = {
            let mut other = KvLayer::with_dtype(case.num_blocks, 16, heads, (device, dtype));
            let everything = case.whole_contexts();
            let store = QkvOptions { heads, rotary_dim: 0, norm_eps: None };
            let nan = qkv.clone().narrow(0, 0, 1).mul_scalar(f32::NAN);
            let nan = nan.repeat_dim(0, everything.num_tokens());
            rope_and_store_kv(nan, None, None, &everything.metadata(device), (&mut other, store));
            other
        };
        let first = case.only(0, 0..45).metadata(device);
        let rows = qkv.narrow(0, 0, 45);
        let store = QkvOptions { heads, rotary_dim: 0, norm_eps: None };
        let attend = |mut layer: KvLayer| {
            let rows = rope_and_store_kv(rows.clone(), None, None, &first, (&mut layer, store));
            paged_attention(rows, &layer, &first, options)
        };
        assert_close(attend(broken), attend(layer), 0.0);
    });
}

#[test]
fn sequences_without_context_leave_the_others_as_they_are() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(48);
        let heads = HeadLayout { num_heads: 8, num_kv_heads: 4, head_dim: 128 };
        let options = options(heads, 16);
        for count in [5, 30, 90] {
            let contexts: Vec<(usize, usize)> = (0..count).map(|index| (1, 1 + index * 53 % 1100)).collect();
            let case = AttentionCase::new(&contexts, 16, &mut seeded, device);
            let [host_layer, layer] = filled_with(&mut seeded, &case, heads, (device, dtype), dtype);
            let (qkv, device_qkv) = pair(&mut seeded, [count, heads.row_len()], (device, dtype));
            let host = reference_device(device);
            let expected = reference::paged_attention(qkv, &host_layer, &case.metadata(&host), options);
            let padded = |index: usize| index.is_multiple_of(3) || index + 4 > count;
            let lengths =
                contexts.iter().enumerate().map(|(index, &(_, length))| if padded(index) { 0 } else { length });
            let lengths: Vec<i32> = lengths.map(|length| length as i32).collect();
            let mut metadata = case.metadata(device);
            metadata.context_lens = int_tensor(lengths, [count], device);
            let rows: Vec<i32> = (0..count).filter(|&index| !padded(index)).map(|index| index as i32).collect();
            let of = |all: Tensor<2>, on: &Device| all.select(0, int_tensor(rows.clone(), [rows.len()], on));
            let check = || {
                let got = paged_attention(device_qkv.clone(), &layer, &metadata, options);
                assert_close(of(got, device), of(expected.clone(), &host), rounding);
            };
            check();
            with_batch_invariance(check);
        }
    });
}

/// No window, and no difference.
pub(super) const SAME_BITS: (Option<usize>, f32) = (None, 0.0);

/// Inputs of the projections to queries, keys and values.
pub(super) const HIDDEN: usize = 576;

pub(super) fn projection(seeded: &mut Seeded, heads: HeadLayout, on: (&Device, DType)) -> Weight {
    Weight::dense(pair(seeded, [heads.row_len(), HIDDEN], on).1 * 0.05)
}

/// A layer's attention from its input, and the operations one after the other: results and caches have the same bits, or are as
/// `close`. The caches hold the same past.
pub(super) fn compare_with_single_operations(
    seeded: &mut Seeded,
    (device, dtype): (&Device, DType),
    (weight, options): (&Weight, QkvOptions),
    sequences: &[(usize, usize)],
    (sliding_window, close): (Option<usize>, f32),
) {
    let QkvOptions { heads, rotary_dim, norm_eps } = options;
    let case = AttentionCase::new(sequences, 16, seeded, device);
    let (metadata, everything) = (case.metadata(device), case.whole_contexts());
    let (_, x) = pair(seeded, [case.num_tokens(), HIDDEN], (device, dtype));
    let (_, past) = pair(seeded, [everything.num_tokens(), heads.row_len()], (device, dtype));
    let mut floats = |shape| moved(&seeded.tensor(shape, &reference_device(device)), device);
    let [query_norm, key_norm] = [0, 1].map(|_| floats([heads.head_dim]));
    let (norm_weight, bias) = (floats([HIDDEN]), floats([heads.row_len()]));
    let table = RopeTable(moved(&seeded.tensor([3000, rotary_dim.max(1)], &reference_device(device)), device));
    let norm = RowNorm { weight: &norm_weight, bias: None, eps: 1e-5 };
    let qkv = QkvProjection {
        projection: Projection { norm: Some(norm), weight, bias: Some(&bias) },
        head_norms: norm_eps.map(|_| (&query_norm, &key_norm)),
        rope: (rotary_dim != 0).then_some(&table),
        options,
    };
    let attention = AttentionOptions { sliding_window, ..self::options(heads, 16) };
    let store = QkvOptions { heads, rotary_dim: 0, norm_eps: None };
    // Codes of what is only close may be neighbours.
    let caches = [dtype, E4M3].into_iter().filter(|&cache| close == 0.0 || cache == dtype);
    for cache in caches {
        let [mut layer, mut expected_layer] = [0, 1].map(|_| {
            let mut layer = KvLayer::with_dtype(case.num_blocks, 16, heads, (device, cache));
            rope_and_store_kv(past.clone(), None, None, &everything.metadata(device), (&mut layer, store));
            layer
        });
        let got = self_attention(x.clone(), qkv, &metadata, (&mut layer, attention));
        let rows = linear(norm.of(x.clone()), weight, Some(&bias));
        let rows = rope_and_store_kv(rows, qkv.head_norms, qkv.rope, &metadata, (&mut expected_layer, options));
        assert_close(got, paged_attention(rows, &expected_layer, &metadata, attention), close);
        assert_close(layer.keys(), expected_layer.keys(), close);
        assert_close(layer.values(), expected_layer.values(), close);
    }
}

#[test]
fn attention_with_its_projection_has_the_bits_of_the_single_operations() {
    for_both_dtypes(|device, dtype, _| {
        let mut seeded = Seeded::new(30);
        for (num_heads, num_kv_heads, head_dim, rotary_dim, head_norm) in [
            (9, 3, 64, 64, false),
            (32, 8, 128, 128, false),
            (3, 3, 10, 10, false),
            (12, 12, 64, 0, false),
            (4, 2, 16, 8, false),
            (20, 1, 80, 32, true),
            (16, 8, 128, 128, true),
        ] {
            let heads = HeadLayout { num_heads, num_kv_heads, head_dim };
            let options = QkvOptions { heads, rotary_dim, norm_eps: head_norm.then_some(1e-6) };
            let weight = projection(&mut seeded, heads, (device, dtype));
            for sequences in
                [vec![(1, 33)], vec![(5, 5), (1, 33), (3, 20)], vec![(7, 8), (9, 50)], vec![(1, 1), (1, 2500)]]
            {
                compare_with_single_operations(&mut seeded, (device, dtype), (&weight, options), &sequences, SAME_BITS);
            }
            compare_with_single_operations(
                &mut seeded,
                (device, dtype),
                (&weight, options),
                &[(1, 900), (1, 40)],
                (Some(300), 0.0),
            );
        }
    });
}

#[test]
fn attention_with_its_projection_is_that_of_the_single_operations_with_more_contexts_than_the_gpu_runs_at_a_time() {
    for_both_dtypes(|device, dtype, rounding| {
        let mut seeded = Seeded::new(31);
        let sequences: Vec<(usize, usize)> = (0..70).map(|index| (1, 1 + index * 37 % 2000)).collect();
        for (num_heads, num_kv_heads, head_dim, head_norm) in [(16, 8, 128, true), (9, 3, 64, false), (40, 2, 64, true)]
        {
            let heads = HeadLayout { num_heads, num_kv_heads, head_dim };
            let options = QkvOptions { heads, rotary_dim: head_dim, norm_eps: head_norm.then_some(1e-6) };
            let weight = projection(&mut seeded, heads, (device, dtype));
            // With heads of 128 behind them, products of so many rows are divided as others are not: sums have another order.
            let tolerance = if head_dim == 128 { 4.0 * rounding } else { 0.0 };
            for window in [None, Some(100)] {
                let close = (window, tolerance);
                compare_with_single_operations(&mut seeded, (device, dtype), (&weight, options), &sequences, close);
            }
        }
    });
}
