//! The next token of each row of logits, chosen on the device, so that ids alone come back.
//!
//! Rows are described by a [`SamplePlan`], one array that is copied to the device once per step. A row's token depends on
//! its own logits and description alone; draws use the Gumbel-max trick with a counter-based generator, so that they
//! need no order among the candidates and have the same bits on every backend.

mod plan;
mod random;
mod reference;
#[cfg(test)]
mod tests;

pub(crate) use plan::ROW_WORDS;
pub use plan::{RowParams, SAMPLE_LOGPROBS_MAX, SampleOptions, SamplePlan, TokenEdit};

use std::future::Future;

use burn::backend::Dispatch;
use burn::tensor::{ExecutionError, Int, Tensor};

use crate::read_back::read_back;
use crate::{FusedOps, section};

/// Words of a row's log-probabilities: the chosen one's, its rank, then ids and log-probabilities of the most likely.
const DETAIL_WORDS: usize = 2 + 2 * SAMPLE_LOGPROBS_MAX;

/// The choice of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledRow {
    /// The token; `None` when a logit is not finite.
    pub token: Option<u32>,
    /// Present if asked for.
    pub logprobs: Option<Logprobs>,
}

/// Log-probabilities of tokens under a row's unchanged logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// That of the chosen token.
    pub chosen: f32,
    /// 1 plus the number of tokens more likely than the chosen one.
    pub rank: u32,
    /// The most likely tokens, at most [`SAMPLE_LOGPROBS_MAX`] of them, the most likely first.
    pub top: Vec<(u32, f32)>,
}

/// Results on the device.
#[derive(Clone, Debug)]
pub struct Sampled {
    words: Tensor<1, Int>,
    options: SampleOptions,
}

/// `logits` is `[N, V]` in the activation dtype; `words` are a plan's ([`SamplePlan::words`], and perhaps more after
/// them), `options` its options. Each row of the plan names a row of `logits`.
///
/// The kernels keep intermediate results in `words` and clear them again. A row without effect gets token 0, and so does
/// one with a logit that is not finite, which is marked in the result.
pub fn sample(logits: &Tensor<2>, words: &Tensor<1, Int>, options: SampleOptions) -> Sampled {
    assert!(words.dims()[0] >= options.rows * ROW_WORDS, "sample: a plan of {} rows is longer", options.rows);
    assert!(
        options.logprobs_max.is_none_or(|count| count <= SAMPLE_LOGPROBS_MAX),
        "sample: log-probabilities of {SAMPLE_LOGPROBS_MAX} tokens at most"
    );
    let (logits, plan) = (logits.clone().into_dispatch(), words.clone().into_dispatch());
    Sampled { words: Tensor::from_dispatch(Dispatch::sample(logits, plan, options)), options }
}

/// The same on the host, `logits` having rows of `vocab_size`.
pub fn reference(logits: &[f32], vocab_size: usize, plan: &SamplePlan) -> Vec<SampledRow> {
    let row = |index| reference::sample_row(logits, vocab_size, (&plan.words, index));
    (0..plan.options.rows).map(row).collect()
}

impl Sampled {
    /// `[rows]` token ids, still on the device.
    pub fn ids(&self) -> Tensor<1, Int> {
        section(&self.words, 0, self.options.rows)
    }

    /// The results on the host, once the device has them. Where any row asked for log-probabilities, every row has as many
    /// as there is room for; only those asked for mean something.
    ///
    /// They are those at the time of this call, whatever is enqueued after it.
    pub fn read(self) -> impl Future<Output = Result<Vec<SampledRow>, ExecutionError>> {
        let (words, options) = (read_back(self.words), self.options);
        async move { Ok(unpack(&words.await?, options)) }
    }
}

impl SampleOptions {
    /// Words of the result: ids, whether a logit was not finite, and where asked for the log-probabilities of each row.
    pub(crate) fn result_words(self) -> usize {
        self.rows * (2 + if self.logprobs_max.is_some() { DETAIL_WORDS } else { 0 })
    }
}

/// Writes a row into a result.
#[cfg(feature = "cpu")]
pub(crate) fn pack(row: &SampledRow, (words, index): (&mut [i32], usize), options: SampleOptions) {
    words[index] = row.token.unwrap_or(0) as i32;
    words[options.rows + index] = i32::from(row.token.is_none());
    let Some(logprobs) = &row.logprobs else { return };
    let detail = &mut words[2 * options.rows + index * DETAIL_WORDS..][..DETAIL_WORDS];
    let bits = |value: f32| value.to_bits() as i32;
    (detail[0], detail[1]) = (bits(logprobs.chosen), logprobs.rank as i32);
    for (place, &(token, logprob)) in logprobs.top.iter().enumerate() {
        (detail[2 + place], detail[2 + SAMPLE_LOGPROBS_MAX + place]) = (token as i32, bits(logprob));
    }
}

/// Reads a result.
fn unpack(words: &[i32], options: SampleOptions) -> Vec<SampledRow> {
    (0..options.rows).map(|index| unpacked(words, index, options)).collect()
}

/// Reads a row of a result. Log-probabilities are there, if any row has them; those not asked for mean nothing.
fn unpacked(words: &[i32], index: usize, options: SampleOptions) -> SampledRow {
    let token = (words[options.rows + index] == 0).then_some(words[index] as u32);
    let float = |word: i32| f32::from_bits(word as u32);
    let logprobs = options.logprobs_max.map(|_| {
        let detail = &words[2 * options.rows + index * DETAIL_WORDS..][..DETAIL_WORDS];
        let (ids, values) = detail[2..].split_at(SAMPLE_LOGPROBS_MAX);
        let top = ids.iter().zip(values).map(|(&id, &value)| (id as u32, float(value))).collect();
        Logprobs { chosen: float(detail[0]), rank: detail[1] as u32, top }
    });
    SampledRow { token, logprobs }
}

/// One row of a plan on the host: what the processor runs.
#[cfg(feature = "cpu")]
pub(crate) fn sample_row(logits: &[f32], vocab_size: usize, (words, index): (&[i32], usize)) -> SampledRow {
    reference::sample_row(logits, vocab_size, (words, index))
}
