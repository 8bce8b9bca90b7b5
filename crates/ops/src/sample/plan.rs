//! How the next tokens are to be chosen, packed into one array of words that a device reads.

use super::random::key;

/// Words of one row's record. What a kernel keeps between its blocks stands at the end, zero before and after a call.
pub(crate) const ROW_WORDS: usize = 24;
/// Words of one edit, and the bits of its last word, whose rest is the count.
pub(crate) const EDIT_WORDS: usize = 3;
const EDIT_SUPPRESSED: u32 = 1 << 31;
const EDIT_SEEN: u32 = 1 << 30;

/// The bits of a record's flags.
pub(crate) const ACTIVE: u32 = 1;
pub(crate) const GREEDY: u32 = 2;
pub(crate) const FILTERED: u32 = 4;
pub(crate) const LOGPROBS: u32 = 8;

/// Most likely tokens that can be reported beside the chosen one.
pub const SAMPLE_LOGPROBS_MAX: usize = 20;
/// Temperatures below this choose the most likely token.
const TEMPERATURE_MIN: f32 = 1e-5;
/// `top_p` in units of this fraction.
pub(crate) const TOP_P_BITS: u32 = 24;

/// How the token of one row of logits is chosen.
///
/// Order of application: edits, allowed tokens, temperature, `min_p`, `top_k`, `top_p`, then one draw.
#[derive(Clone, Debug)]
pub struct RowParams {
    /// The row of the logits.
    pub logits_row: u32,
    /// 0 chooses the most likely token, the lowest id among equals.
    pub temperature: f32,
    /// Keep this many most likely tokens; `None` keeps all.
    pub top_k: Option<u32>,
    /// Keep the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// The draw is a function of the seed, the position and the token.
    pub seed: u64,
    /// The counter of the generator.
    pub position: u32,
    /// Divides positive and multiplies negative logits of [`TokenEdit::seen`] tokens.
    pub repetition_penalty: f32,
    /// Subtracted once per occurrence in the output.
    pub frequency_penalty: f32,
    /// Subtracted from tokens that occur in the output.
    pub presence_penalty: f32,
    /// Changes of single logits, one per token, in the order of tokens.
    pub edits: Vec<TokenEdit>,
    /// One bit per token, 32 to a word, the lowest first: tokens whose bit is 0 are impossible.
    pub allowed: Option<Vec<u32>>,
    /// Report the chosen token's log-probability and those of this many most likely tokens, before any change.
    pub logprobs: Option<u32>,
}

/// The change of one token's logit: bias, then suppression, then penalties.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenEdit {
    /// Whose logit.
    pub token: u32,
    /// Added.
    pub bias: f32,
    /// Makes the token impossible.
    pub suppressed: bool,
    /// Occurs in the prompt or the output.
    pub seen: bool,
    /// Occurrences in the output.
    pub output_count: u32,
}

/// What the launch of [`sample`](crate::sample) depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleOptions {
    /// Rows of the plan.
    pub rows: usize,
    /// Some row has edits.
    pub has_edits: bool,
    /// Some row has a `top_k`, `top_p` or `min_p`.
    pub has_filters: bool,
    /// Most tokens whose log-probabilities a row reports, if one reports any; [`sample`](crate::sample) has room for
    /// [`SAMPLE_LOGPROBS_MAX`], [`reference::sample`](crate::reference::sample) for all.
    pub logprobs_max: Option<usize>,
}

/// The packed rows: what [`sample`](crate::sample) reads.
#[derive(Clone, Debug)]
pub struct SamplePlan {
    /// Records, then edits and bit masks at the places that the records name.
    pub words: Vec<i32>,
    /// How to launch it.
    pub options: SampleOptions,
}

impl SamplePlan {
    /// Packs `rows`, followed by rows without effect up to `rows_max` of them.
    ///
    /// # Panics
    /// When edits are not in order, or they or a mask do not fit `vocab_size`.
    pub fn new(rows: &[RowParams], rows_max: usize, vocab_size: usize) -> Self {
        assert!(rows.len() <= rows_max, "sample: {} rows, at most {rows_max}", rows.len());
        let mut words = vec![0u32; rows_max * ROW_WORDS];
        for (index, row) in rows.iter().enumerate() {
            row.check(vocab_size);
            let lists = [words.len(), words.len() + row.edits.len() * EDIT_WORDS];
            words[index * ROW_WORDS..][..15].copy_from_slice(&row.record(lists));
            words.extend(row.edits.iter().flat_map(TokenEdit::packed));
            words.extend(row.allowed.iter().flatten());
        }
        let options = SampleOptions {
            rows: rows_max,
            has_edits: rows.iter().any(|row| !row.edits.is_empty()),
            has_filters: (0..rows.len()).any(|index| words[index * ROW_WORDS + 1] & FILTERED != 0),
            logprobs_max: rows.iter().filter_map(|row| row.logprobs).max().map(|count| count as usize),
        };
        Self { words: words.into_iter().map(|word| word as i32).collect(), options }
    }
}

impl SamplePlan {
    /// Whether its words are as many, and launched alike, as those of any other uniform plan of as many rows with or
    /// without filters: there are no edits, masks or log-probabilities.
    pub fn is_uniform(&self) -> bool {
        self.words.len() == self.options.rows * ROW_WORDS && self.options.logprobs_max.is_none()
    }
}

impl RowParams {
    /// The most likely token of a row of the logits.
    pub fn greedy(logits_row: u32) -> Self {
        Self {
            logits_row,
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            position: 0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            edits: Vec::new(),
            allowed: None,
            logprobs: None,
        }
    }

    fn check(&self, vocab_size: usize) {
        let ordered = self.edits.windows(2).all(|pair| pair[0].token < pair[1].token);
        assert!(ordered, "sample: edits in the order of tokens, one each");
        assert!(
            self.edits.iter().all(|edit| (edit.token as usize) < vocab_size),
            "sample: edits of {vocab_size} tokens"
        );
        let words = vocab_size.div_ceil(32);
        let fits = self.allowed.as_ref().is_none_or(|mask| mask.len() == words);
        assert!(fits, "sample: a mask of {vocab_size} tokens has {words} words");
    }

    /// The record, with its edits and its mask at these places.
    fn record(&self, [edits_at, mask_at]: [usize; 2]) -> [u32; 15] {
        let greedy = self.temperature < TEMPERATURE_MIN;
        let top_k = self.top_k.filter(|&k| k > 0).unwrap_or(u32::MAX);
        let one = (1 << TOP_P_BITS) as f32;
        let top_p = ((self.top_p * one).round().max(1.0) as u32).min(1 << TOP_P_BITS);
        let is_filtered = top_k < u32::MAX || top_p < 1 << TOP_P_BITS || self.min_p > 0.0;
        let mut flags = ACTIVE;
        flags |= if greedy { GREEDY } else { 0 };
        flags |= if is_filtered && !greedy { FILTERED } else { 0 };
        flags |= if self.logprobs.is_some() { LOGPROBS } else { 0 };
        let [first, second] = key(self.seed, self.position);
        [
            self.logits_row,
            flags,
            if greedy { 1.0 } else { 1.0 / self.temperature }.to_bits(),
            if self.min_p > 0.0 { self.min_p.ln() } else { f32::NEG_INFINITY }.to_bits(),
            top_k,
            top_p,
            first,
            second,
            edits_at as u32,
            self.edits.len() as u32,
            if self.allowed.is_some() { mask_at as u32 } else { 0 },
            self.repetition_penalty.to_bits(),
            self.frequency_penalty.to_bits(),
            self.presence_penalty.to_bits(),
            self.logprobs.unwrap_or(0),
        ]
    }
}

impl TokenEdit {
    fn packed(&self) -> [u32; EDIT_WORDS] {
        let suppressed = if self.suppressed { EDIT_SUPPRESSED } else { 0 };
        let seen = if self.seen { EDIT_SEEN } else { 0 };
        [self.token, self.bias.to_bits(), self.output_count.min(EDIT_SEEN - 1) | suppressed | seen]
    }

    fn unpacked(words: &[u32]) -> Self {
        let bits = words[2];
        Self {
            token: words[0],
            bias: f32::from_bits(words[1]),
            suppressed: bits & EDIT_SUPPRESSED != 0,
            seen: bits & EDIT_SEEN != 0,
            output_count: bits & (EDIT_SEEN - 1),
        }
    }
}

/// One packed row, as the reference reads it.
pub(super) struct Record<'a> {
    words: &'a [i32],
    at: usize,
}

impl<'a> Record<'a> {
    pub(super) fn new(words: &'a [i32], index: usize) -> Self {
        Self { words, at: index * ROW_WORDS }
    }

    fn word(&self, index: usize) -> u32 {
        self.words[self.at + index] as u32
    }

    fn float(&self, index: usize) -> f32 {
        f32::from_bits(self.word(index))
    }

    pub(super) fn logits_row(&self) -> usize {
        self.word(0) as usize
    }

    pub(super) fn has(&self, flag: u32) -> bool {
        self.word(1) & flag != 0
    }

    pub(super) fn inverse_temperature(&self) -> f32 {
        self.float(2)
    }

    /// How far below the largest tempered logit candidates reach.
    pub(super) fn min_p_ln(&self) -> f32 {
        self.float(3)
    }

    pub(super) fn top_k(&self) -> usize {
        self.word(4) as usize
    }

    pub(super) fn top_p(&self) -> u32 {
        self.word(5)
    }

    pub(super) fn key(&self) -> [u32; 2] {
        [self.word(6), self.word(7)]
    }

    pub(super) fn num_logprobs(&self) -> usize {
        self.word(14) as usize
    }

    /// Whether no logit is changed.
    pub(super) fn is_plain(&self) -> bool {
        self.word(9) == 0 && self.word(10) == 0
    }

    /// Changes a row of logits.
    pub(super) fn edit(&self, logits: &mut [f32]) {
        let list = &self.words[self.word(8) as usize..][..self.word(9) as usize * EDIT_WORDS];
        for words in list.chunks_exact(EDIT_WORDS) {
            let edit = TokenEdit::unpacked(&[words[0] as u32, words[1] as u32, words[2] as u32]);
            let logit = &mut logits[edit.token as usize];
            *logit = self.edited(*logit, edit);
        }
        if self.word(10) != 0 {
            let mask = &self.words[self.word(10) as usize..][..logits.len().div_ceil(32)];
            for (logits, mask) in logits.chunks_mut(32).zip(mask) {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if mask >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }

    fn edited(&self, logit: f32, edit: TokenEdit) -> f32 {
        let (repetition, frequency, presence) = (self.float(11), self.float(12), self.float(13));
        let mut logit = if edit.suppressed { f32::NEG_INFINITY } else { logit + edit.bias };
        if edit.seen && repetition != 1.0 {
            logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
        }
        if edit.output_count > 0 {
            logit -= frequency * edit.output_count as f32 + presence;
        }
        logit
    }
}
