//! What a step reports of prompts: log-probabilities of their tokens, sums of their hidden states.
//!
//! Such steps are launched kernel by kernel, never as a recorded graph: they are rare, and their shapes differ.

use std::ops::Range;

use burn::tensor::{DType, Int, Tensor};
use firebrick_engine::{ExecuteError, PromptResult, PromptRows, PromptWanted, TokenId, TokenLogprobs};
use firebrick_model::layers::LmHead;
use firebrick_ops::{
    Backend, RowParams, SamplePlan, Sampled, SampledRow, TokenEdit, backend_of, gather_rows, has_kernel_compiler,
    int_tensor, sample,
};

use crate::failure::failure;

/// Rows of logits that exist at the same time: a prompt's logits are as large as the vocabulary, times its length.
const LOGIT_ROWS_MAX: u32 = 64;
/// Added to the logit of the token that the prompt goes on with, so that it is the one chosen. Log-probabilities are those
/// of the unchanged logits.
const CERTAIN: f32 = 1e30;

/// The results of one [`PromptRows`] under way.
pub(crate) enum PromptReading {
    Logprobs {
        next: Vec<TokenId>,
        count: usize,
        pieces: Vec<Sampled>,
    },
    HiddenSum {
        sum: Box<Tensor<1>>,
        count: u32,
    },
    /// The host sums.
    HiddenStates {
        states: Box<Tensor<2>>,
    },
}

impl PromptReading {
    /// Enqueues what is wanted of the rows of `hidden`, the residual stream of a whole batch.
    pub(crate) fn start(rows: &PromptRows, hidden: &Tensor<2>, head: &LmHead) -> Self {
        let Range { start, end } = rows.tokens;
        match &rows.wanted {
            PromptWanted::Logprobs { next, count } => {
                let pieces = (start..end).step_by(LOGIT_ROWS_MAX as usize).zip(next.chunks(LOGIT_ROWS_MAX as usize));
                let piece = |(start, next): (u32, &[TokenId])| {
                    let rows = index(start..start + next.len() as u32, hidden);
                    score(&head.logits(gather_rows(hidden, &rows)), next, *count)
                };
                Self::Logprobs { next: next.clone(), count: *count as usize, pieces: pieces.map(piece).collect() }
            }
            PromptWanted::HiddenSum => {
                let states = head.states(gather_rows(hidden, &index(start..end, hidden)));
                // Burn's kernels are compiled where they run.
                if backend_of(&states.device()) == Backend::Cuda && !has_kernel_compiler() {
                    return Self::HiddenStates { states: Box::new(states) };
                }
                let states = states.cast(DType::F32);
                let [_, size] = states.dims();
                Self::HiddenSum { sum: Box::new(states.sum_dim(0).reshape([size])), count: end - start }
            }
        }
    }

    /// The results, once the device has them.
    pub(crate) async fn finish(self) -> Result<PromptResult, ExecuteError> {
        match self {
            Self::Logprobs { next, count, pieces } => {
                let mut entries = Vec::with_capacity(next.len());
                for piece in pieces {
                    let rows = piece.read().await.map_err(failure)?;
                    entries.extend(rows.into_iter().map(|row| logprobs(row, count)));
                }
                Ok(PromptResult::Logprobs(next.into_iter().zip(entries).collect()))
            }
            Self::HiddenSum { sum, count } => {
                let data = sum.into_data_async().await.map_err(failure)?;
                let sum = data.try_to_vec::<f32>().map_err(failure)?;
                Ok(PromptResult::HiddenSum { sum, count })
            }
            Self::HiddenStates { states } => {
                let [count, size] = states.dims();
                let data = states.into_data_async().await.map_err(failure)?;
                let values = data.convert::<f32>();
                let values = values.as_slice::<f32>().map_err(failure)?;
                Ok(PromptResult::HiddenSum { sum: sum_of_rows(values, size), count: count as u32 })
            }
        }
    }
}

fn sum_of_rows(values: &[f32], size: usize) -> Vec<f32> {
    let mut sum = vec![0.0; size];
    for row in values.chunks_exact(size.max(1)) {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    sum
}

fn index(rows: Range<u32>, hidden: &Tensor<2>) -> Tensor<1, Int> {
    let length = rows.len();
    int_tensor(rows.map(|row| row as i32).collect(), [length], &hidden.device())
}

/// How likely each row's `next` token is, and which `count` tokens are the likeliest.
fn score(logits: &Tensor<2>, next: &[TokenId], count: u32) -> Sampled {
    let [_, vocab_size] = logits.dims();
    let row = |(row, &token): (u32, &TokenId)| RowParams {
        edits: vec![TokenEdit { token, bias: CERTAIN, ..TokenEdit::default() }],
        logprobs: Some(count),
        ..RowParams::greedy(row)
    };
    let rows: Vec<RowParams> = (0..).zip(next).map(row).collect();
    let plan = SamplePlan::new(&rows, rows.len(), vocab_size);
    let length = plan.words.len();
    sample(logits, &int_tensor(plan.words, [length], &logits.device()), plan.options)
}

fn logprobs(row: SampledRow, count: usize) -> TokenLogprobs {
    let finite = row.logprobs.filter(|_| row.token.is_some());
    let Some(mut logprobs) = finite else { return TokenLogprobs { chosen: f32::NAN, rank: 0, top: Vec::new() } };
    logprobs.top.truncate(count);
    TokenLogprobs { chosen: logprobs.chosen, rank: logprobs.rank, top: logprobs.top }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_summed_by_column() {
        assert_eq!(sum_of_rows(&[1.0, 2.0, 3.0, 10.0, 20.0, 30.0], 3), [11.0, 22.0, 33.0]);
    }
}
