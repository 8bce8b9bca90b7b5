//! An executor without a model, for tests: its tokens are a hash of what it finds in a simulated KV cache.
//!
//! Like a real model it knows a sequence's past only through the cache: every step writes its tokens to the slots of
//! `slot_mapping` and reads the whole context back through `block_tables`. A wrong slot, a wrong block table, or a
//! block that another sequence has overwritten gives wrong tokens, as it would on a device. What the right tokens are,
//! [`HistoryHash`] says from the tokens alone.

use std::collections::HashMap;
use std::future::Future;

use crate::engine::StepResult;
use crate::{
    Batch, ExecuteError, Executor, PromptResult, PromptRows, PromptWanted, SampleOutcome, SampleRow, SampledToken,
    SequenceId, StepOutput, TokenId, TokenLogprobs,
};

/// A running hash of a sequence's tokens from the first on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryHash(u64);

impl Default for HistoryHash {
    fn default() -> Self {
        Self(0x51_7c_c1_b7_27_22_0a_95)
    }
}

impl HistoryHash {
    /// The hash after one more token.
    #[must_use]
    pub fn then(self, token: TokenId) -> Self {
        Self((self.0.rotate_left(5) ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The hash of these tokens.
    pub fn of(tokens: impl IntoIterator<Item = TokenId>) -> Self {
        tokens.into_iter().fold(Self::default(), Self::then)
    }

    /// The hash as a number.
    pub fn value(self) -> u64 {
        self.0
    }

    /// A number that depends on the tokens and on everything else that a draw may depend on.
    fn draw(self, row: &SampleRow) -> u64 {
        let mut hash = self.then(row.position).then(row.seed as u32).then((row.seed >> 32) as u32);
        hash = hash.then(row.params.temperature.to_bits());
        if let Some(history) = &row.history {
            hash = history.prompt.iter().chain(&history.output).fold(hash, |hash, token| hash.then(*token));
        }
        hash.0 ^ (hash.0 >> 29)
    }
}

/// What the simulated model says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Script {
    /// A hash of the context and the draw, over this many tokens.
    Hash {
        /// Size of the vocabulary.
        vocab_size: u32,
    },
    /// These tokens in this order, then the last of them for ever.
    Tokens(Vec<TokenId>),
}

impl Script {
    /// The outcome of a draw after these tokens. `generated` counts the sequence's tokens sampled before.
    pub fn outcome(&self, history: HistoryHash, row: &SampleRow, generated: u32) -> TokenId {
        match self {
            Self::Hash { vocab_size } => {
                let draw = history.draw(row);
                let start = (draw % u64::from(*vocab_size)) as TokenId;
                let suppressed = |token: &TokenId| row.suppressed.binary_search(token).is_ok();
                if let Some(mask) = &row.allowed {
                    let allowed = || (0..*vocab_size).filter(|token| mask.allows(*token) && !suppressed(token));
                    let count = allowed().count().max(1) as u64;
                    return allowed().nth((draw % count) as usize).unwrap_or(start);
                }
                // The next token that is not suppressed; if all are, there is nothing better than the first.
                let mut candidates = (0..*vocab_size).map(|offset| (start + offset) % vocab_size);
                candidates.find(|token| !suppressed(token)).unwrap_or(start)
            }
            Self::Tokens(tokens) => {
                let last = tokens.len().saturating_sub(1);
                tokens.get((generated as usize).min(last)).copied().unwrap_or(0)
            }
        }
    }
}

/// Runs batches on a simulated KV cache.
#[derive(Clone, Debug)]
pub struct ScriptedExecutor {
    block_size: u32,
    script: Script,
    /// `[slots]` what was last written to each slot.
    cells: Vec<Option<Cell>>,
    /// The choices of the last batch, for the tokens that the next one carries; 0 for what was not finite.
    last_choices: Vec<TokenId>,
    steps: u64,
    fail_at_step: Option<u64>,
    not_finite_one_in: Option<u64>,
    /// Prompt lengths of the sequences that have been sampled, for scripts that count; only kept for those.
    prompt_lens: HashMap<SequenceId, u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    token: TokenId,
    position: u32,
}

impl ScriptedExecutor {
    /// A cache of this shape and a model with this script.
    pub fn new(kv_blocks: u32, block_size: u32, script: Script) -> Self {
        Self {
            block_size,
            script,
            cells: vec![None; kv_blocks as usize * block_size as usize],
            last_choices: Vec::new(),
            steps: 0,
            fail_at_step: None,
            not_finite_one_in: None,
            prompt_lens: HashMap::new(),
        }
    }

    /// Fails the `step`-th batch, counted from 1, and all after it.
    #[must_use]
    pub fn failing_at(mut self, step: u64) -> Self {
        self.fail_at_step = Some(step);
        self
    }

    /// Makes about one draw in `one_in` not finite; which ones depends on the sequence's tokens and seed alone.
    #[must_use]
    pub fn with_not_finite(mut self, one_in: u64) -> Self {
        self.not_finite_one_in = Some(one_in);
        self
    }

    /// Whether a draw after these tokens would not be finite.
    pub fn is_not_finite(one_in: u64, history: HistoryHash, row: &SampleRow) -> bool {
        (history.draw(row) >> 40).is_multiple_of(one_in)
    }

    /// Runs a batch at once.
    ///
    /// # Panics
    /// When the batch reads a slot that was never written for that position: the batch is wrong.
    pub fn run(&mut self, batch: &Batch) -> StepResult {
        self.steps += 1;
        if self.fail_at_step.is_some_and(|step| self.steps >= step) {
            return Err(ExecuteError(format!("scripted failure of step {}", self.steps)));
        }
        let mut tokens = batch.tokens.clone();
        for carried in &batch.carried {
            tokens[carried.token as usize] = self.last_choices[carried.sample as usize];
        }
        for ((slot, token), position) in batch.slot_mapping.iter().zip(tokens).zip(&batch.positions) {
            self.cells[*slot as usize] = Some(Cell { token, position: *position });
        }
        let samples: Vec<SampleOutcome> = batch.samples.iter().map(|sample| self.sample(batch, sample)).collect();
        let choice = |outcome: &SampleOutcome| match outcome {
            SampleOutcome::Token(sampled) => sampled.token,
            SampleOutcome::NotFinite => 0,
        };
        self.last_choices = samples.iter().map(choice).collect();
        Ok(StepOutput { samples, prompts: batch.prompt_rows.iter().map(|rows| report(batch, rows)).collect() })
    }

    fn sample(&mut self, batch: &Batch, sample: &SampleRow) -> SampleOutcome {
        let history = self.read_context(batch, sample.row as usize);
        if self.not_finite_one_in.is_some_and(|one_in| Self::is_not_finite(one_in, history, sample)) {
            return SampleOutcome::NotFinite;
        }
        let generated = match self.script {
            Script::Hash { .. } => 0,
            Script::Tokens(_) => sample.position - *self.prompt_lens.entry(sample.sequence).or_insert(sample.position),
        };
        let token = self.script.outcome(history, sample, generated);
        SampleOutcome::Token(SampledToken { token, logprobs: sample.params.logprobs.map(|num| logprobs(token, num)) })
    }

    /// Reads a row's context out of the cache, as attention does.
    fn read_context(&self, batch: &Batch, row: usize) -> HistoryHash {
        let table = &batch.block_tables[row * batch.blocks_per_row..(row + 1) * batch.blocks_per_row];
        let mut hash = HistoryHash::default();
        let mut position = 0;
        let context_len = batch.context_lens[row];
        for block in table {
            let start = (block * self.block_size) as usize;
            let used = (context_len - position).min(self.block_size) as usize;
            for cell in &self.cells[start..start + used] {
                let cell =
                    cell.unwrap_or_else(|| panic!("invariant 11: row {row} reads position {position}, never written"));
                assert_eq!(cell.position, position, "invariant 11: row {row} reads the slot of another position");
                hash = hash.then(cell.token);
                position += 1;
            }
        }
        assert_eq!(position, context_len, "invariant 11: the block table of row {row} is too short");
        hash
    }
}

/// Numbers of hidden states of the simulated model.
const HIDDEN_SIZE: usize = 4;

/// Results of a prompt: the hidden state of a token holds its powers.
fn report(batch: &Batch, rows: &PromptRows) -> PromptResult {
    match &rows.wanted {
        PromptWanted::Logprobs { next, count } => {
            PromptResult::Logprobs(next.iter().map(|&token| (token, logprobs(token, *count))).collect())
        }
        PromptWanted::HiddenSum => {
            let tokens = &batch.tokens[rows.tokens.start as usize..rows.tokens.end as usize];
            let power = |power: usize| tokens.iter().map(|&token| (token as f32 / 100.0).powi(power as i32)).sum();
            PromptResult::HiddenSum { sum: (0..HIDDEN_SIZE).map(power).collect(), count: tokens.len() as u32 }
        }
    }
}

/// Plausible log-probabilities, the same for the same token.
fn logprobs(token: TokenId, num: u32) -> TokenLogprobs {
    let top = (0..num).map(|rank| (token.wrapping_add(rank), -0.5 - rank as f32)).collect();
    TokenLogprobs { chosen: -0.5, rank: 1, top }
}

impl Executor for ScriptedExecutor {
    fn kv_blocks(&self) -> u32 {
        self.cells.len() as u32 / self.block_size
    }

    fn execute(&mut self, batch: &Batch) -> impl Future<Output = StepResult> + 'static {
        std::future::ready(self.run(batch))
    }

    fn can_run_ahead(&self) -> bool {
        true
    }
}
