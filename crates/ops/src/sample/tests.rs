//! The reference against what can be worked out, and every device against the reference.

use burn::tensor::{DType, Device, Tensor};

use super::*;
use crate::testing::{Seeded, for_each_device};
use crate::{Backend, backend_of, float_tensor, int_tensor};

fn row(temperature: f32) -> RowParams {
    RowParams { temperature, seed: 7, position: 3, ..RowParams::greedy(0) }
}

/// The tokens that the reference chooses for these rows of `vocab_size` logits.
fn tokens(logits: &[f32], vocab_size: usize, rows: &[RowParams]) -> Vec<Option<u32>> {
    let plan = SamplePlan::new(rows, rows.len(), vocab_size);
    reference(logits, vocab_size, &plan).into_iter().map(|row| row.token).collect()
}

/// How often each token is drawn in 4,000 draws.
fn frequencies(logits: &[f32], row: &RowParams) -> Vec<f64> {
    let at = |draw: u64| RowParams { seed: draw / 50, position: draw as u32 % 50, ..row.clone() };
    let rows: Vec<RowParams> = (0..4000).map(at).collect();
    let mut counts = vec![0.0; logits.len()];
    for token in tokens(logits, logits.len(), &rows) {
        counts[token.expect("finite logits") as usize] += 1.0 / 4000.0;
    }
    counts
}

#[test]
fn greedy_takes_the_lowest_of_equally_likely_tokens() {
    assert_eq!(tokens(&[1.0, 3.0, 3.0, 2.0], 4, &[row(0.0)]), [Some(1)]);
}

#[test]
fn draws_follow_the_tempered_distribution() {
    let logits = [0.0, 1.0, 2.0, -1.0];
    for temperature in [0.7, 1.0, 1.5] {
        let counts = frequencies(&logits, &row(temperature));
        let total: f64 = logits.iter().map(|logit| f64::from(logit / temperature).exp()).sum();
        for (logit, count) in logits.iter().zip(counts) {
            let expected = f64::from(logit / temperature).exp() / total;
            assert!((count - expected).abs() < 0.03, "temperature {temperature}: {count} for {expected}");
        }
    }
}

#[test]
fn equally_likely_tokens_of_a_large_vocabulary_are_drawn_equally_often() {
    let logits = vec![0.0; 4096];
    let counts = frequencies(&logits, &row(1.0));
    for (eighth, counts) in counts.chunks(512).enumerate() {
        // 500 of 4,000 expected, standard deviation 21.
        let drawn = counts.iter().sum::<f64>() * 4000.0;
        assert!((drawn - 500.0).abs() < 105.0, "eighth {eighth}: {drawn}");
    }
}

#[test]
fn filters_remove_tokens_and_keep_the_rest_in_proportion() {
    let logits = [3.0, 2.0, 1.0, 0.0]; // probabilities 0.644, 0.237, 0.087, 0.032
    for row in [
        RowParams { top_k: Some(2), ..row(1.0) },
        RowParams { top_p: 0.8, ..row(1.0) },
        RowParams { min_p: 0.2, ..row(1.0) },
    ] {
        let counts = frequencies(&logits, &row);
        assert_eq!(counts[2] + counts[3], 0.0, "{row:?}");
        assert!((counts[0] - 0.731).abs() < 0.03, "{row:?}: {counts:?}");
    }
}

#[test]
fn edits_are_applied_in_their_order() {
    let edit = |token, bias, suppressed, seen, output_count| TokenEdit { token, bias, suppressed, seen, output_count };
    let penalised = RowParams {
        repetition_penalty: 2.0,
        frequency_penalty: 0.5,
        presence_penalty: 0.25,
        edits: vec![
            edit(0, 0.0, false, true, 0),
            edit(1, 0.0, false, true, 2),
            edit(2, 1.0, false, true, 1),
            edit(3, 50.0, true, false, 0),
        ],
        ..row(0.0)
    };
    // The logits become 2, -9.25, (2 + 1) / 2 - 0.75 = 0.75 and -inf; the fifth stays.
    for (fifth, expected) in [(1.9, 0), (2.1, 4)] {
        let logits = [4.0, -4.0, 2.0, 9.0, fifth];
        assert_eq!(tokens(&logits, 5, std::slice::from_ref(&penalised)), [Some(expected)]);
    }
    let masked = RowParams { allowed: Some(vec![0b00110]), ..penalised };
    assert_eq!(tokens(&[4.0, -4.0, 2.0, 9.0, 9.0], 5, &[masked]), [Some(2)]);
}

#[test]
fn log_probabilities_are_those_of_the_unchanged_logits() {
    let bias = TokenEdit { token: 3, bias: 100.0, ..TokenEdit::default() };
    let row = RowParams { logprobs: Some(2), edits: vec![bias], ..row(0.0) };
    let sampled = reference(&[1.0, 3.0, 2.0, 0.0], 4, &SamplePlan::new(&[row], 1, 4)).remove(0);
    let logprobs = sampled.logprobs.expect("asked for");
    assert_eq!((sampled.token, logprobs.rank), (Some(3), 4));
    assert!((logprobs.chosen + 3.440_19).abs() < 1e-4);
    assert_eq!(logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), vec![1, 2]);
}

#[test]
fn a_row_with_a_nan_is_reported_and_its_neighbour_is_not() {
    let rows = [row(0.0), RowParams { logits_row: 1, ..row(0.0) }];
    assert_eq!(tokens(&[0.0, f32::NAN, 1.0, 2.0], 2, &rows), [None, Some(1)]);
}

/// A row of any kind; edits of many tokens, and masks of few.
fn any_row(seeded: &mut Seeded, vocab_size: usize) -> RowParams {
    let mut draw = |choices: u64| seeded.next_u64() % choices;
    let temperature = [0.0, 0.3, 1.0, 1.0, 2.5][draw(5) as usize];
    let top_k = [None, None, Some(1), Some(20), Some(300)][draw(5) as usize];
    let top_p = [1.0, 1.0, 0.95, 0.5, 0.001][draw(5) as usize];
    let min_p = [0.0, 0.0, 0.05, 0.9][draw(4) as usize];
    let edited = [0, 0, 3, 40][draw(4) as usize];
    let mut ids: Vec<u32> = (0..edited).map(|_| draw(vocab_size as u64) as u32).collect();
    ids.sort_unstable();
    ids.dedup();
    let edit = |token| TokenEdit {
        token,
        bias: draw(5) as f32 - 2.0,
        suppressed: draw(6) == 0,
        seen: draw(2) == 0,
        output_count: draw(3) as u32,
    };
    let edits = ids.into_iter().map(edit).collect();
    let words = vocab_size.div_ceil(32);
    let masked = draw(4) == 0;
    let allowed = masked.then(|| (0..words).map(|_| (draw(1 << 32) & draw(1 << 32)) as u32).collect());
    RowParams {
        logits_row: 0,
        temperature,
        top_k,
        top_p,
        min_p,
        seed: draw(u64::MAX),
        position: draw(100_000) as u32,
        repetition_penalty: if draw(2) == 0 { 1.0 } else { 1.3 },
        frequency_penalty: draw(3) as f32 * 0.5,
        presence_penalty: draw(3) as f32 * 0.5,
        edits,
        allowed,
        logprobs: [None, None, Some(0), Some(5), Some(20)][draw(5) as usize],
    }
}

/// Equal tokens and ranks; log-probabilities up to the roundings of one sum.
fn assert_equal_choice(got: &SampledRow, expected: &SampledRow, row: &RowParams) {
    assert_eq!(got.token, expected.token, "{row:?}");
    let Some(expected) = &expected.logprobs else { return };
    let got = got.logprobs.as_ref().expect("asked for");
    assert_eq!(got.rank, expected.rank, "{row:?}");
    assert!((got.chosen - expected.chosen).abs() < 1e-4, "{} for {}", got.chosen, expected.chosen);
    for (got, expected) in got.top.iter().zip(&expected.top) {
        assert_eq!(got.0, expected.0, "{row:?}");
        assert!((got.1 - expected.1).abs() < 1e-4, "{got:?} for {expected:?}");
    }
}

/// Random plans on a device against the reference; `spread` is that of the logits.
fn compare(device: &Device, dtype: DType, vocab_size: usize, (count, spread): (usize, f32)) {
    let mut seeded = Seeded::new(vocab_size as u64 + count as u64);
    // Cubes have few large values and many small ones, as the logits of models.
    let value = |seeded: &mut Seeded| seeded.value().powi(3) * spread;
    let mut values: Vec<f32> = (0..(count + 1) * vocab_size).map(|_| value(&mut seeded)).collect();
    values[2 * vocab_size + vocab_size / 2] = f32::INFINITY;
    let logits: Tensor<2> = float_tensor(values, [count + 1, vocab_size], device).cast(dtype);
    let rounded = logits.clone().cast(DType::F32).into_data().try_to_vec::<f32>().expect("32-bit floats");
    // Rows of the logits in another order, one left out, one more than once.
    let at = |index: usize| if index == 0 { 1 } else { (index * 7 % count) as u32 };
    let rows: Vec<RowParams> =
        (0..count).map(|index| RowParams { logits_row: at(index), ..any_row(&mut seeded, vocab_size) }).collect();
    let plan = SamplePlan::new(&rows, count + 2, vocab_size);
    let expected = reference(&rounded, vocab_size, &plan);
    let words = int_tensor(plan.words.clone(), [plan.words.len()], device);
    // Twice: the kernels leave the plan as they found it.
    for _ in 0..2 {
        let sampled = sample(&logits, &words, plan.options);
        let ids = sampled.ids().into_data().try_to_vec::<i32>().expect("32-bit integers");
        let data = sampled.words.into_data();
        let got = unpack(data.as_slice().expect("32-bit integers"), plan.options);
        for (index, expected) in expected.iter().enumerate() {
            let row = rows.get(index).cloned().unwrap_or_else(|| row(0.0));
            assert_equal_choice(&got[index], expected, &row);
            assert_eq!(ids[index] as u32, expected.token.unwrap_or(0));
        }
    }
}

#[test]
fn every_device_chooses_as_the_reference_does() {
    for_each_device(|device| {
        let dtypes = match backend_of(device) {
            Backend::Cuda => vec![DType::F32, DType::F16, DType::BF16],
            _ => vec![DType::F32],
        };
        for dtype in dtypes {
            for (vocab_size, count) in [(1, 4), (33, 40), (1000, 60), (5003, 40), (8192, 40)] {
                compare(device, dtype, vocab_size, (count, 12.0));
            }
            compare(device, dtype, 4096, (30, 1.0));
            if backend_of(device) == Backend::Cuda {
                compare(device, dtype, 128_256, (40, 25.0));
                compare(device, dtype, 262_144, (10, 1.0));
            }
        }
    });
}

#[test]
fn the_best_tokens_may_lie_at_equal_distances() {
    for_each_device(|device| {
        let vocab_size = 8192;
        let value = |token: usize| if token % 256 == 3 { 5.0 + (token * 7 % 31) as f32 * 0.01 } else { 0.0 };
        let values: Vec<f32> = (0..vocab_size).map(value).collect();
        let filtered = RowParams { top_k: Some(20), top_p: 0.99, logprobs: Some(20), ..row(1.0) };
        let rows: Vec<RowParams> = (0..8).map(|position| RowParams { position, ..filtered.clone() }).collect();
        let plan = SamplePlan::new(&rows, rows.len(), vocab_size);
        let expected = reference(&values, vocab_size, &plan);
        let words = int_tensor(plan.words.clone(), [plan.words.len()], device);
        let data = sample(&float_tensor(values, [1, vocab_size], device), &words, plan.options).words.into_data();
        let got = unpack(data.as_slice().expect("32-bit integers"), plan.options);
        for ((got, expected), row) in got.iter().zip(&expected).zip(&rows) {
            assert_equal_choice(got, expected, row);
        }
    });
}

#[test]
fn a_row_is_chosen_as_if_it_were_alone() {
    for_each_device(|device| {
        let mut seeded = Seeded::new(5);
        let logits: Tensor<2> = seeded.tensor([20, 500], device) * 4.0;
        let rows: Vec<RowParams> =
            (0..20).map(|index| RowParams { logits_row: index, logprobs: None, ..any_row(&mut seeded, 500) }).collect();
        let ids = |logits: &Tensor<2>, rows: &[RowParams]| -> Vec<i32> {
            let plan = SamplePlan::new(rows, rows.len(), 500);
            let words = int_tensor(plan.words.clone(), [plan.words.len()], device);
            sample(logits, &words, plan.options).ids().into_data().try_to_vec().expect("32-bit integers")
        };
        let together = ids(&logits, &rows);
        for (index, row) in rows.into_iter().enumerate() {
            let alone = ids(&logits.clone().narrow(0, index, 1), &[RowParams { logits_row: 0, ..row }]);
            assert_eq!(alone[0], together[index]);
        }
    });
}
