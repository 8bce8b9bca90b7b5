//! What a request does to its own logits before a token is chosen.

use firebrick_engine::{SampleRow, TokenHistory};

/// Applies, in this order: logit bias, allowed tokens, suppression, repetition, frequency and presence penalties.
pub(crate) fn process(logits: &mut [f32], row: &SampleRow) {
    for &(token, bias) in &row.params.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    if let Some(allowed) = &row.allowed {
        // Whole words that allow nothing are common: a grammar often leaves a handful of tokens.
        let words = allowed.iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(32).zip(words) {
            let forbidden = logits.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0);
            forbidden.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
        }
    }
    for &token in &row.suppressed {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    if let Some(history) = &row.history {
        penalise(logits, row, history);
    }
}

fn penalise(logits: &mut [f32], row: &SampleRow, history: &TokenHistory) {
    let params = &row.params;
    let distinct = |tokens: Vec<u32>| -> Vec<(u32, u32)> {
        let mut tokens = tokens;
        tokens.sort_unstable();
        let counts = tokens.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32));
        counts.filter(|&(token, _)| (token as usize) < logits.len()).collect()
    };
    let everything = history.prompt.iter().chain(&history.output).copied().collect();
    let (seen, generated) = (distinct(everything), distinct(history.output.clone()));
    if params.repetition_penalty != 1.0 {
        for (token, _) in seen {
            let logit = &mut logits[token as usize];
            *logit = if *logit > 0.0 { *logit / params.repetition_penalty } else { *logit * params.repetition_penalty };
        }
    }
    for (token, count) in generated {
        logits[token as usize] -= params.frequency_penalty * count as f32 + params.presence_penalty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firebrick_engine::{RequestId, SamplingParams, SequenceId};
    use std::sync::Arc;

    fn row(params: SamplingParams, prompt: &[u32], output: &[u32]) -> SampleRow {
        SampleRow {
            sequence: SequenceId { request: RequestId(1), index: 0 },
            row: 0,
            params: Arc::new(params),
            seed: 1,
            position: 0,
            suppressed: vec![3],
            allowed: None,
            history: Some(TokenHistory { prompt: prompt.into(), output: output.to_vec() }),
        }
    }

    #[test]
    fn penalties_count_the_output_and_repetition_counts_the_prompt_too() {
        let params = SamplingParams {
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            repetition_penalty: 2.0,
            logit_bias: vec![(4, 7.0)],
            ..SamplingParams::default()
        };
        let mut logits = vec![4.0, -4.0, 2.0, 1.0, 0.0];
        process(&mut logits, &row(params, &[0], &[1, 1, 2]));
        assert_eq!(logits, vec![2.0, -8.0 - 1.25, 1.0 - 0.75, f32::NEG_INFINITY, 7.0]);
    }

    #[test]
    fn only_allowed_tokens_keep_their_logits() {
        let mut row = row(SamplingParams::default(), &[], &[]);
        row.allowed = Some(firebrick_engine::TokenMask::of(&[1, 33]));
        let mut logits = vec![1.0; 70];
        process(&mut logits, &row);
        let left: Vec<usize> = (0..70).filter(|token| logits[*token] == 1.0).collect();
        assert_eq!(left, [1, 33]);
    }
}
