//! What a request does to its own logits before a token is chosen.

use std::iter::repeat;

use firebrick_engine::{SampleRow, TokenHistory, TokenMask};
use firebrick_ops::TokenEdit;

/// Logit bias, suppression and penalties as changes of single logits, one per token, in the order of tokens.
pub(crate) fn edits(row: &SampleRow, vocab_size: usize) -> Vec<TokenEdit> {
    let plain = |token| TokenEdit { token, ..TokenEdit::default() };
    let biases = row.params.logit_bias.iter().map(|&(token, bias)| TokenEdit { bias, ..plain(token) });
    let suppressed = row.suppressed.iter().map(|&token| TokenEdit { suppressed: true, ..plain(token) });
    let mut edits: Vec<TokenEdit> = biases.chain(suppressed).collect();
    if let Some(TokenHistory { prompt, output }) = &row.history {
        // Only the repetition penalty looks at the prompt.
        let prompt: &[u32] = if row.params.repetition_penalty == 1.0 { &[] } else { prompt };
        edits.extend(prompt.iter().map(|&token| TokenEdit { seen: true, ..plain(token) }));
        edits.extend(output.iter().map(|&token| TokenEdit { seen: true, output_count: 1, ..plain(token) }));
    }
    edits.retain(|edit| (edit.token as usize) < vocab_size);
    // Stable: biases of one token are added in the request's order.
    edits.sort_by_key(|edit| edit.token);
    edits.dedup_by(|next, merged| {
        let same = next.token == merged.token;
        if same {
            merged.bias += next.bias;
            merged.suppressed |= next.suppressed;
            merged.seen |= next.seen;
            merged.output_count += next.output_count;
        }
        same
    });
    edits
}

/// The row's mask with a bit for every token of the model.
pub(crate) fn allowed(row: &SampleRow, vocab_size: usize) -> Option<Vec<u32>> {
    let words = |mask: &TokenMask| mask.iter().copied().chain(repeat(0)).take(vocab_size.div_ceil(32)).collect();
    row.allowed.as_ref().map(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use firebrick_engine::{RequestId, SamplingParams, SequenceId};
    use std::sync::Arc;

    fn row(params: SamplingParams, history: Option<(&[u32], &[u32])>) -> SampleRow {
        SampleRow {
            sequence: SequenceId { request: RequestId(1), index: 0 },
            row: 0,
            params: Arc::new(params),
            seed: 1,
            position: 0,
            suppressed: vec![3],
            allowed: Some(TokenMask::of(&[0, 2])),
            history: history.map(|(prompt, output)| TokenHistory { prompt: prompt.into(), output: output.to_vec() }),
        }
    }

    #[test]
    fn every_change_of_a_token_is_one_edit() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            logit_bias: vec![(4, 7.0), (1, -1.0), (4, 1.0), (99, 5.0)],
            ..SamplingParams::default()
        };
        let edit =
            |token, bias, suppressed, seen, output_count| TokenEdit { token, bias, suppressed, seen, output_count };
        let expected = [
            edit(0, 0.0, false, true, 0),
            edit(1, -1.0, false, true, 2),
            edit(2, 0.0, false, true, 1),
            edit(3, 0.0, true, false, 0),
            edit(4, 8.0, false, false, 0),
        ];
        assert_eq!(edits(&row(params, Some((&[0], &[1, 2, 1]))), 50), expected);
    }

    #[test]
    fn the_prompt_counts_for_the_repetition_penalty_alone() {
        let params = SamplingParams { frequency_penalty: 1.0, ..SamplingParams::default() };
        let tokens = edits(&row(params, Some((&[0], &[1]))), 50).iter().map(|edit| edit.token).collect::<Vec<_>>();
        assert_eq!(tokens, [1, 3]);
    }

    #[test]
    fn tokens_beyond_a_mask_are_impossible() {
        let mask = allowed(&row(SamplingParams::default(), None), 70).expect("the row has a mask");
        assert_eq!(mask, [0b101, 0, 0]);
    }
}
