//! What an answer tells about its prompts: log-probabilities of their tokens, or their pooled hidden states.

use firebrick_engine::{NOT_FINITE, Pooling, PromptOutput, PromptResult, TokenId, TokenLogprobs};

use crate::choice::{TokenLogprob, TokenTexts};
use crate::error::{ApiError, ErrorKind};
use crate::limits::Limits;
use crate::openai::{CompletionLogprobs, PromptLogprob, PromptPosition, SamplingFields, TopLogprobs};
use crate::parameter::{at_most, whole};
use crate::prompt::ValidPrompt;

/// What is told, and in which shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptReport {
    /// `prompt_logprobs`: that many most likely tokens in each place.
    shown: Option<u32>,
    /// `logprobs` together with `echo`: the prompt has log-probabilities like the text after it.
    echoed: Option<u32>,
    /// A vector instead of a text.
    pooling: Option<Pooling>,
    /// How each prompt begins, where it is echoed with log-probabilities: nothing is predicted there.
    first_tokens: Vec<String>,
}

impl PromptReport {
    /// A vector for each prompt and no text.
    pub fn pooled(pooling: Pooling) -> Self {
        Self { pooling: Some(pooling), ..Self::default() }
    }

    /// What the fields of a request ask for.
    pub fn asked(
        fields: &SamplingFields,
        echo: bool,
        logprobs: Option<i64>,
        limits: &Limits,
    ) -> Result<Self, ApiError> {
        const NAME: &str = "prompt_logprobs";
        let count = |name, asked: Option<i64>| match asked {
            None => Ok::<_, ApiError>(None),
            some => Ok(Some(whole(name, some, 0, 0..=limits.logprobs_max.into())? as u32)),
        };
        let shown = count(NAME, fields.prompt_logprobs)?;
        if shown.is_some() && fields.stream == Some(true) {
            return Err(ApiError::parameter(NAME, "prompt_logprobs are not available when stream is true"));
        }
        let echoed = count("logprobs", logprobs.filter(|_| echo))?;
        Ok(Self { shown, echoed, ..Self::default() })
    }

    /// Looks at the prompts: their number of entries is limited, and their first tokens are kept.
    pub fn meet(&mut self, prompts: &[ValidPrompt], texts: &TokenTexts, limits: &Limits) -> Result<(), ApiError> {
        let Some(count) = self.count() else { return Ok(()) };
        let positions: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        let entries = positions.saturating_mul(count as usize + 1);
        let name = if self.shown.is_some() { "prompt_logprobs" } else { "logprobs" };
        at_most(name, "log-probabilities of prompts", entries, limits.prompt_logprobs_max)?;
        if self.echoed.is_some() {
            let first = |prompt: &ValidPrompt| prompt.tokens.first().map(|&token| texts.show(None, token, 0.0).text);
            self.first_tokens = prompts.iter().filter_map(first).collect();
        }
        Ok(())
    }

    fn count(&self) -> Option<u32> {
        self.shown.max(self.echoed)
    }

    /// What the engine is asked for.
    pub fn engine_output(&self) -> Option<PromptOutput> {
        self.pooling.map(PromptOutput::Pooled).or(self.count().map(PromptOutput::Logprobs))
    }

    /// Whether echoed prompts have log-probabilities.
    pub fn is_echoed(&self) -> bool {
        self.echoed.is_some()
    }

    /// `prompt_logprobs` of a prompt with these results, if asked for.
    pub fn prompt_logprobs(&self, prompt: &CollectedPrompt) -> Option<Vec<Option<PromptPosition>>> {
        let count = self.shown? as usize;
        let position = |token: &PromptToken| {
            let top = token.top.iter().take(count).filter(|top| top.id != token.actual.id);
            Some(PromptPosition([&token.actual].into_iter().chain(top).map(entry).collect()))
        };
        Some([None].into_iter().chain(prompt.tokens.iter().map(position)).collect())
    }

    /// `logprobs` of an echoed prompt, if asked for.
    pub fn echoed_logprobs(&self, number: usize, prompt: &CollectedPrompt) -> Option<CompletionLogprobs> {
        let count = self.echoed? as usize;
        let first = self.first_tokens.get(number).cloned().unwrap_or_default();
        let mut offset = first.chars().count();
        let mut logprobs = CompletionLogprobs {
            text_offset: vec![0],
            token_logprobs: vec![None],
            tokens: vec![first],
            top_logprobs: vec![None],
        };
        for PromptToken { actual, top } in &prompt.tokens {
            let top = top.iter().take(count).map(|top| &top.shown);
            logprobs.text_offset.push(offset);
            logprobs.token_logprobs.push(Some(actual.shown.logprob));
            logprobs.tokens.push(actual.shown.text.clone());
            logprobs.top_logprobs.push(Some(TopLogprobs::new(top, &actual.shown)));
            offset += actual.shown.text.chars().count();
        }
        Some(logprobs)
    }
}

fn entry(token: &RankedToken) -> (TokenId, PromptLogprob) {
    let RankedToken { id, rank, shown } = token;
    (*id, PromptLogprob { logprob: shown.logprob, rank: *rank, decoded_token: shown.text.clone() })
}

/// A token and its place among all, 1 being the likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct RankedToken {
    id: TokenId,
    rank: u32,
    shown: TokenLogprob,
}

/// One place of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptToken {
    /// The token that stands there.
    actual: RankedToken,
    /// The likeliest ones, best first.
    top: Vec<RankedToken>,
}

/// Results of a part of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum PromptPart {
    /// The next tokens.
    Tokens(Vec<PromptToken>),
    /// The sum of so many hidden states.
    HiddenSum(Vec<f32>, u32),
}

impl PromptPart {
    /// The engine's results as they are shown; `before` is the token before the first of them, and then the last.
    pub fn new(result: PromptResult, texts: &TokenTexts, before: &mut TokenId) -> Result<Self, ApiError> {
        let not_finite = || ApiError::new(ErrorKind::Internal, NOT_FINITE);
        match result {
            PromptResult::HiddenSum { sum, count } if sum.iter().all(|value| value.is_finite()) => {
                Ok(Self::HiddenSum(sum, count))
            }
            PromptResult::HiddenSum { .. } => Err(not_finite()),
            PromptResult::Logprobs(entries) => {
                let token = |(id, logprobs): (TokenId, TokenLogprobs)| {
                    let last = std::mem::replace(before, id);
                    if logprobs.chosen.is_nan() {
                        return Err(not_finite());
                    }
                    let ranked =
                        |id, rank, logprob| RankedToken { id, rank, shown: texts.show(Some(last), id, logprob) };
                    let top = (1..).zip(logprobs.top).map(|(rank, (id, logprob))| ranked(id, rank, logprob)).collect();
                    Ok(PromptToken { actual: ranked(id, logprobs.rank, logprobs.chosen), top })
                };
                Ok(Self::Tokens(entries.into_iter().map(token).collect::<Result<_, _>>()?))
            }
        }
    }
}

/// All results of one prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CollectedPrompt {
    tokens: Vec<PromptToken>,
    hidden_sum: Vec<f64>,
    num_hidden: u32,
}

impl CollectedPrompt {
    /// Adds the next part.
    pub fn add(&mut self, part: PromptPart) {
        match part {
            PromptPart::Tokens(tokens) => self.tokens.extend(tokens),
            PromptPart::HiddenSum(sum, count) => {
                self.num_hidden += count;
                self.hidden_sum.resize(sum.len(), 0.0);
                self.hidden_sum.iter_mut().zip(sum).for_each(|(total, value)| *total += f64::from(value));
            }
        }
    }

    /// The mean of the hidden states, if there are any.
    pub fn hidden_mean(&self) -> Option<Vec<f32>> {
        let mean = |sum: &f64| (sum / f64::from(self.num_hidden)) as f32;
        (self.num_hidden > 0).then(|| self.hidden_sum.iter().map(mean).collect())
    }
}
