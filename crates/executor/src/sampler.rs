//! One token per sampled row, chosen where the logits are; ids and log-probabilities alone come back.

use std::future::Future;

use burn::tensor::Tensor;
use firebrick_engine::{ExecuteError, SampleOutcome, SampleRow, SampledToken, TokenLogprobs};
use firebrick_ops::{RowParams, SAMPLE_LOGPROBS_MAX, SamplePlan, Sampled, SampledRow, int_tensor, reference, sample};

use crate::failure::failure;
use crate::logits_processor::{allowed, edits};

/// A choice of tokens under way.
pub(crate) struct Sampling {
    chosen: Chosen,
    /// Of how many tokens each row reports log-probabilities, if of any.
    wanted: Vec<Option<usize>>,
}

enum Chosen {
    OnDevice(Sampled),
    /// For rows that report more than the device has room for.
    OnHost(Tensor<2>, SamplePlan),
}

/// How the tokens of `samples` are chosen, from the first rows of logits, with rows without effect up to `rows_max`.
pub(crate) fn plan(samples: &[SampleRow], rows_max: usize, vocab_size: usize) -> SamplePlan {
    let rows: Vec<RowParams> = (0..).zip(samples).map(|(row, sample)| row_params(sample, row, vocab_size)).collect();
    SamplePlan::new(&rows, rows_max, vocab_size)
}

/// Enqueues the choice. The first rows of `logits` are those of `samples`, of which there is at least one.
pub(crate) fn start(logits: Tensor<2>, samples: &[SampleRow]) -> Sampling {
    let [_, vocab_size] = logits.dims();
    let plan = plan(samples, samples.len(), vocab_size);
    if plan.options.logprobs_max.is_some_and(|count| count > SAMPLE_LOGPROBS_MAX) {
        return Sampling { chosen: Chosen::OnHost(logits, plan), wanted: wanted(samples) };
    }
    let length = plan.words.len();
    let words = int_tensor(plan.words, [length], &logits.device());
    Sampling { chosen: Chosen::OnDevice(sample(&logits, &words, plan.options)), wanted: wanted(samples) }
}

fn wanted(samples: &[SampleRow]) -> Vec<Option<usize>> {
    samples.iter().map(|sample| sample.params.logprobs.map(|count| count as usize)).collect()
}

impl Sampling {
    /// A choice that is part of the step itself.
    pub(crate) fn of(sampled: Sampled, samples: &[SampleRow]) -> Self {
        Self { chosen: Chosen::OnDevice(sampled), wanted: wanted(samples) }
    }

    /// The choice, if it is made on the device.
    pub(crate) fn on_device(&self) -> Option<&Sampled> {
        match &self.chosen {
            Chosen::OnDevice(sampled) => Some(sampled),
            Chosen::OnHost(..) => None,
        }
    }

    /// The tokens, once the device has chosen them; their way to the host begins now.
    pub(crate) fn finish(self) -> impl Future<Output = Result<Vec<SampleOutcome>, ExecuteError>> {
        let wanted = self.wanted;
        let (on_device, on_host) = match self.chosen {
            Chosen::OnDevice(sampled) => (Some(sampled.read()), None),
            Chosen::OnHost(logits, plan) => (None, Some((logits, plan))),
        };
        async move {
            let mut rows = Vec::new();
            if let Some(reading) = on_device {
                rows = reading.await.map_err(failure)?;
            }
            if let Some((logits, plan)) = on_host {
                let [_, vocab_size] = logits.dims();
                let values = logits.into_data_async().await.map_err(failure)?.convert::<f32>();
                let values = values.as_slice::<f32>().map_err(failure)?;
                rows = reference::sample(values, vocab_size, &plan);
            }
            Ok(rows.into_iter().zip(wanted).map(|(row, wanted)| outcome(row, wanted)).collect())
        }
    }
}

fn row_params(sample: &SampleRow, logits_row: u32, vocab_size: usize) -> RowParams {
    let params = &sample.params;
    RowParams {
        logits_row,
        temperature: params.temperature,
        top_k: params.top_k,
        top_p: params.top_p,
        min_p: params.min_p,
        seed: sample.seed,
        position: sample.position,
        repetition_penalty: params.repetition_penalty,
        frequency_penalty: params.frequency_penalty,
        presence_penalty: params.presence_penalty,
        edits: edits(sample, vocab_size),
        allowed: allowed(sample, vocab_size),
        logprobs: params.logprobs,
    }
}

/// The engine's view of a row that reports `wanted` of the most likely tokens.
fn outcome(row: SampledRow, wanted: Option<usize>) -> SampleOutcome {
    let Some(token) = row.token else { return SampleOutcome::NotFinite };
    let logprobs = row.logprobs.zip(wanted).map(|(logprobs, wanted)| {
        let mut top = logprobs.top;
        top.truncate(wanted);
        TokenLogprobs { chosen: logprobs.chosen, rank: logprobs.rank, top }
    });
    SampleOutcome::Token(SampledToken { token, logprobs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use firebrick_engine::{RequestId, SamplingParams, SequenceId};
    use firebrick_ops::float_tensor;
    use firebrick_ops::testing::for_each_device;
    use std::sync::Arc;

    fn row(logprobs: Option<u32>) -> SampleRow {
        SampleRow {
            sequence: SequenceId { request: RequestId(1), index: 0 },
            row: 0,
            params: Arc::new(SamplingParams { logprobs, ..SamplingParams::default() }),
            seed: 1,
            position: 5,
            suppressed: Vec::new(),
            allowed: None,
            history: None,
        }
    }

    #[test]
    fn rows_that_report_too_much_for_the_device_are_chosen_alike_on_the_host() {
        for_each_device(|device| {
            let values: Vec<f32> = (0..2 * 50).map(|index| ((index * 7919) % 101) as f32 / 20.0).collect();
            let logits = float_tensor(values, [2, 50], device);
            let chosen = |rows: [SampleRow; 2]| {
                let outcomes = pollster::block_on(start(logits.clone(), &rows).finish());
                outcomes.expect("the device works")
            };
            let [few, many] = [chosen([row(None), row(Some(20))]), chosen([row(None), row(Some(30))])];
            assert_eq!(few[0], many[0]);
            let [SampleOutcome::Token(few), SampleOutcome::Token(many)] = [&few[1], &many[1]] else {
                panic!("finite logits")
            };
            let top = |token: &SampledToken| token.logprobs.as_ref().expect("asked for").top.clone();
            assert_eq!((few.token, top(few).len(), top(many).len()), (many.token, 20, 30));
            for (few, many) in top(few).iter().zip(top(many)) {
                assert!(few.0 == many.0 && (few.1 - many.1).abs() < 1e-5);
            }
        });
    }
}
