//! The choice of tokens in plain Rust: the truth that kernels are compared with, and what the processor runs.

use std::borrow::Cow;

use super::plan::{ACTIVE, FILTERED, GREEDY, LOGPROBS, Record, TOP_P_BITS};
use super::random::{GUMBEL_MAX, bits, gumbel, ln, weight};
use super::{Logprobs, SampledRow};

/// The token of row `index` of a plan.
pub(super) fn sample_row(logits: &[f32], vocab_size: usize, (words, index): (&[i32], usize)) -> SampledRow {
    let record = Record::new(words, index);
    if !record.has(ACTIVE) {
        return SampledRow { token: Some(0), logprobs: None };
    }
    let logits = &logits[record.logits_row() * vocab_size..][..vocab_size];
    if !logits.iter().all(|logit| logit.is_finite()) {
        return SampledRow { token: None, logprobs: None };
    }
    let mut edited = Cow::Borrowed(logits);
    if !record.is_plain() {
        record.edit(edited.to_mut());
    }
    let token = if record.has(GREEDY) {
        argmax(&edited)
    } else if record.has(FILTERED) {
        best(&record, candidates(&record, &edited))
    } else {
        best(&record, tempered(&record, &edited))
    };
    let logprobs = record.has(LOGPROBS).then(|| logprobs(logits, token, record.num_logprobs()));
    SampledRow { token: Some(token), logprobs }
}

/// The most likely token, the lowest id among equals.
fn argmax(logits: &[f32]) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == largest).unwrap_or(0) as u32
}

/// Possible tokens with their tempered logits.
fn tempered<'a>(record: &Record, logits: &'a [f32]) -> impl Iterator<Item = (u32, f32)> + use<'a> {
    let scale = record.inverse_temperature();
    // The sum makes one zero of two, so that all comparisons agree about equals.
    let scaled = (0..).zip(logits).map(move |(token, logit)| (token, logit * scale + 0.0));
    scaled.filter(|(_, logit)| *logit > f32::NEG_INFINITY)
}

/// The tokens that `min_p`, `top_k` and `top_p` leave, in that order.
fn candidates(record: &Record, logits: &[f32]) -> impl Iterator<Item = (u32, f32)> + use<> {
    let largest = tempered(record, logits).fold(f32::NEG_INFINITY, |largest, (_, logit)| largest.max(logit));
    let floor = largest + record.min_p_ln();
    let mut kept: Vec<(u32, f32)> = tempered(record, logits).filter(|(_, logit)| *logit >= floor).collect();
    let by_rank = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let top_k = record.top_k();
    if top_k < kept.len() {
        kept.select_nth_unstable_by(top_k - 1, by_rank);
        kept.truncate(top_k);
    }
    if record.top_p() < 1 << TOP_P_BITS {
        kept.sort_unstable_by(by_rank);
        kept.truncate(nucleus(&kept, record.top_p()));
    }
    kept.into_iter()
}

/// How many of the sorted candidates are needed to reach probability `top_p`; at least one, if there is one.
fn nucleus(sorted: &[(u32, f32)], top_p: u32) -> usize {
    let Some(&(_, largest)) = sorted.first() else { return 0 };
    let weights = || sorted.iter().map(|(_, logit)| u64::from(weight(logit - largest)));
    let total: u128 = weights().map(u128::from).sum();
    let wanted = (total * u128::from(top_p)).div_ceil(1 << TOP_P_BITS) as u64;
    let reached = weights().scan(0, |before, weight| {
        let reached = *before;
        *before += weight;
        Some(reached)
    });
    reached.take_while(|&before| before < wanted).count()
}

/// The candidate with the largest sum of its logit and its draw, the lowest id among equals.
///
/// Every token impossible: the request asked for what cannot be; its first token is as good as any.
fn best(record: &Record, candidates: impl Iterator<Item = (u32, f32)>) -> u32 {
    let key = record.key();
    let (mut best, mut token) = (f32::NEG_INFINITY, None);
    for (candidate, logit) in candidates {
        // Most candidates could not win whatever they drew.
        if logit + GUMBEL_MAX < best {
            continue;
        }
        let value = logit + gumbel(bits(key, candidate));
        let wins = token.is_none_or(|token| value > best || (value == best && candidate < token));
        if wins {
            (best, token) = (value, Some(candidate));
        }
    }
    token.unwrap_or(0)
}

/// Log-probabilities of the chosen and of the `count` most likely tokens.
fn logprobs(logits: &[f32], token: u32, count: usize) -> Logprobs {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: u64 = logits.iter().map(|logit| u64::from(weight(logit - largest))).sum();
    let normaliser = largest + ln(total as f32 * (1.0 / 2_147_483_648.0));
    let chosen = logits[token as usize];
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let value = |token: &u32| logits[*token as usize] + 0.0;
    let by_rank = |a: &u32, b: &u32| value(b).total_cmp(&value(a)).then(a.cmp(b));
    if count < order.len() {
        order.select_nth_unstable_by(count, by_rank);
        order.truncate(count);
    }
    order.sort_unstable_by(by_rank);
    Logprobs {
        chosen: chosen - normaliser,
        rank: 1 + logits.iter().filter(|&&logit| logit > chosen).count() as u32,
        top: order.into_iter().map(|id| (id, logits[id as usize] - normaliser)).collect(),
    }
}
