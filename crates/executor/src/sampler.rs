//! One token per row of logits: the reference sampler, on the host.
//!
//! A row's token depends on its own logits and [`SampleRow`] alone. Draws use the Gumbel-max trick with a counter-based
//! generator, so that they need no order among the candidates and repeat on every backend.

use firebrick_engine::{SampleOutcome, SampleRow, SampledToken, TokenLogprobs};
use rayon::prelude::*;

use crate::logits_processor::process;
use crate::random::gumbel;

/// Chooses a token for each row; `logits` is `[rows, vocab_size]`.
pub fn sample(mut logits: Vec<f32>, vocab_size: usize, rows: &[SampleRow]) -> Vec<SampleOutcome> {
    assert_eq!(logits.len(), rows.len() * vocab_size, "one row of logits per sampled sequence");
    logits.par_chunks_mut(vocab_size).zip(rows).map(|(logits, row)| sample_row(logits, row)).collect()
}

fn sample_row(logits: &mut [f32], row: &SampleRow) -> SampleOutcome {
    if !logits.iter().all(|logit| logit.is_finite()) {
        return SampleOutcome::NotFinite;
    }
    let before = row.params.logprobs.map(|_| logits.to_vec());
    process(logits, row);
    let token = if row.params.temperature == 0.0 { argmax(logits) } else { draw(logits, row) };
    let logprobs = before.map(|logits| logprobs(&logits, token, row.params.logprobs.unwrap_or(0) as usize));
    SampleOutcome::Token(SampledToken { token, logprobs })
}

/// The most likely token, the lowest id among equals.
fn argmax(logits: &[f32]) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == largest).unwrap_or(0) as u32
}

/// A draw from the tempered distribution, cut by `min_p`, `top_k` and `top_p` in that order.
fn draw(logits: &mut [f32], row: &SampleRow) -> u32 {
    let params = &row.params;
    for logit in logits.iter_mut() {
        *logit /= params.temperature;
    }
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let floor = if params.min_p > 0.0 { largest + params.min_p.ln() } else { f32::NEG_INFINITY };
    let mut candidates: Vec<(u32, f32)> =
        (0..).zip(logits.iter().copied()).filter(|(_, logit)| *logit >= floor).collect();
    candidates.retain(|(_, logit)| *logit > f32::NEG_INFINITY);
    let by_rank = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if let Some(k) = params.top_k.map(|k| k as usize).filter(|&k| k > 0 && k < candidates.len()) {
        candidates.select_nth_unstable_by(k - 1, by_rank);
        candidates.truncate(k);
    }
    if params.top_p < 1.0 {
        candidates.sort_unstable_by(by_rank);
        candidates.truncate(nucleus(&candidates, params.top_p));
    }
    let perturbed = |&(token, logit): &(u32, f32)| (logit + gumbel(row.seed, row.position, token), token);
    let best =
        candidates.iter().map(perturbed).reduce(|a, b| if b.0 > a.0 || (b.0 == a.0 && b.1 < a.1) { b } else { a });
    // Every token is suppressed or biased to nothing: the request asked for the impossible; its first token is as good.
    best.map_or(0, |(_, token)| token)
}

/// How many of the sorted candidates are needed to reach probability `top_p`; at least one.
fn nucleus(sorted: &[(u32, f32)], top_p: f32) -> usize {
    let Some(&(_, largest)) = sorted.first() else { return 0 };
    let weights: Vec<f64> = sorted.iter().map(|(_, logit)| f64::from(logit - largest).exp()).collect();
    let wanted = f64::from(top_p) * weights.iter().sum::<f64>();
    let mut reached = 0.0;
    for (index, weight) in weights.iter().enumerate() {
        reached += weight;
        if reached >= wanted {
            return index + 1;
        }
    }
    sorted.len()
}

/// Log-probabilities of the chosen and of the `count` most likely tokens under the unprocessed logits.
fn logprobs(logits: &[f32], token: u32, count: usize) -> TokenLogprobs {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    let normaliser = largest + total.ln() as f32;
    let chosen = logits[token as usize];
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_rank = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if count < order.len() {
        order.select_nth_unstable_by(count, by_rank);
        order.truncate(count);
    }
    order.sort_unstable_by(by_rank);
    TokenLogprobs {
        chosen: chosen - normaliser,
        rank: 1 + logits.iter().filter(|&&logit| logit > chosen).count() as u32,
        top: order.into_iter().map(|id| (id, logits[id as usize] - normaliser)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firebrick_engine::{RequestId, SamplingParams, SequenceId};
    use std::sync::Arc;

    fn row(params: SamplingParams, seed: u64, position: u32) -> SampleRow {
        SampleRow {
            sequence: SequenceId { request: RequestId(1), index: 0 },
            row: 0,
            params: Arc::new(params),
            seed,
            position,
            suppressed: Vec::new(),
            allowed: None,
            history: None,
        }
    }

    fn chosen(outcome: &SampleOutcome) -> u32 {
        match outcome {
            SampleOutcome::Token(sampled) => sampled.token,
            SampleOutcome::NotFinite => panic!("finite logits"),
        }
    }

    /// How often each of the logits' tokens is drawn in 4,000 draws.
    fn frequencies(logits: &[f32], params: SamplingParams) -> Vec<f64> {
        let rows: Vec<SampleRow> = (0..4000).map(|draw| row(params.clone(), draw / 50, draw as u32 % 50)).collect();
        let all = logits.repeat(rows.len());
        let mut counts = vec![0.0; logits.len()];
        for outcome in sample(all, logits.len(), &rows) {
            counts[chosen(&outcome) as usize] += 1.0 / 4000.0;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_of_equally_likely_tokens() {
        let outcomes = sample(vec![1.0, 3.0, 3.0, 2.0], 4, &[row(SamplingParams::greedy(), 0, 0)]);
        assert_eq!(chosen(&outcomes[0]), 1);
    }

    #[test]
    fn draws_follow_the_tempered_distribution() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        for temperature in [0.7, 1.0, 1.5] {
            let counts = frequencies(&logits, SamplingParams { temperature, ..SamplingParams::default() });
            let total: f64 = logits.iter().map(|logit| f64::from(logit / temperature).exp()).sum();
            for (logit, count) in logits.iter().zip(counts) {
                let expected = f64::from(logit / temperature).exp() / total;
                assert!((count - expected).abs() < 0.03, "temperature {temperature}: {count} for {expected}");
            }
        }
    }

    #[test]
    fn filters_remove_tokens_and_keep_the_rest_in_proportion() {
        let logits = [3.0, 2.0, 1.0, 0.0]; // probabilities 0.644, 0.237, 0.087, 0.032
        let base = SamplingParams::default();
        for params in [
            SamplingParams { top_k: Some(2), ..base.clone() },
            SamplingParams { top_p: 0.8, ..base.clone() },
            SamplingParams { min_p: 0.2, ..base.clone() },
        ] {
            let counts = frequencies(&logits, params.clone());
            assert_eq!(counts[2] + counts[3], 0.0, "{params:?}");
            assert!((counts[0] - 0.731).abs() < 0.03, "{params:?}: {counts:?}");
        }
    }

    #[test]
    fn a_row_is_chosen_as_if_it_were_alone() {
        let params = SamplingParams { temperature: 1.3, top_p: 0.9, ..SamplingParams::default() };
        let rows: Vec<SampleRow> = (0..20).map(|seed| row(params.clone(), seed, 7)).collect();
        let logits: Vec<f32> = (0..20 * 50).map(|index| ((index * 7919) % 101) as f32 / 20.0).collect();
        let together = sample(logits.clone(), 50, &rows);
        for (index, row) in rows.iter().enumerate() {
            let alone = sample(logits[index * 50..(index + 1) * 50].to_vec(), 50, std::slice::from_ref(row));
            assert_eq!(alone[0], together[index]);
        }
    }

    #[test]
    fn log_probabilities_are_those_of_the_model() {
        let params = SamplingParams { logprobs: Some(2), logit_bias: vec![(3, 100.0)], ..SamplingParams::greedy() };
        let SampleOutcome::Token(sampled) = &sample(vec![1.0, 3.0, 2.0, 0.0], 4, &[row(params, 0, 0)])[0] else {
            panic!("finite logits")
        };
        let logprobs = sampled.logprobs.as_ref().expect("asked for");
        assert_eq!((sampled.token, logprobs.rank), (3, 4));
        assert!((logprobs.chosen + 3.440_19).abs() < 1e-4);
        assert_eq!(logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), vec![1, 2]);
    }

    #[test]
    fn a_row_with_a_nan_is_reported_and_its_neighbour_is_not() {
        let rows = [row(SamplingParams::greedy(), 0, 0), row(SamplingParams::greedy(), 0, 0)];
        let outcomes = sample(vec![0.0, f32::NAN, 1.0, 2.0], 2, &rows);
        assert_eq!((&outcomes[0], chosen(&outcomes[1])), (&SampleOutcome::NotFinite, 1));
    }
}
