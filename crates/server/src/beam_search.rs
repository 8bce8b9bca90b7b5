//! Beam search: the likeliest texts as wholes, not token by token.
//!
//! It stands above the engine. In every round each beam asks for one token and the likeliest alternatives to it; beams
//! share the blocks of what they have in common through the prefix cache, so that a round computes little more than one
//! token for each. The order is that of the sum of log-probabilities over the length, prompt included, raised to the
//! length penalty.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Instant;

use firebrick_engine::{EventKind, FinishReason, LOGPROBS_MAX, Request, SamplingParams, TokenId, TokenLogprobs};

use crate::choice::{Choice, Delta};
use crate::error::{ApiError, ErrorKind};
use crate::generation::{Generation, refused};
use crate::openai::SamplingFields;
use crate::parameter::{shown, whole};
use crate::quota::Charge;
use crate::state::Model;
use crate::validate::ValidatedRequest;

/// How a request searches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BeamSearch {
    /// Beams that are followed.
    width: u32,
    length_penalty: f64,
    ignore_eos: bool,
}

impl BeamSearch {
    /// What the fields ask for, with `n` texts to be shown. What beams cannot honour is refused.
    pub fn asked(
        fields: &SamplingFields,
        n: u32,
        logprobs: Option<i64>,
        model: &Model,
    ) -> Result<Option<Self>, ApiError> {
        const NAME: &str = "use_beam_search";
        if fields.use_beam_search != Some(true) {
            return match fields.length_penalty {
                Some(penalty) if penalty != 1.0 => {
                    Err(ApiError::parameter("length_penalty", "length_penalty belongs to use_beam_search"))
                }
                _ => Ok(None),
            };
        }
        if !model.engine.config().enable_prefix_caching {
            let message = "use_beam_search needs the prefix cache, which this server was started without";
            return Err(ApiError::parameter(NAME, message));
        }
        if let Some(name) = refused_beside(fields, logprobs) {
            return Err(ApiError::parameter(name, format!("{name} is not supported together with use_beam_search")));
        }
        // Each beam brings twice as many candidates as there are beams, so that endings cannot use them up.
        let width_max = i64::from(LOGPROBS_MAX / 2);
        let name = if fields.best_of.is_some() { "best_of" } else { "n" };
        let width = whole(name, fields.best_of.or(Some(n.into())), 1, n.into()..=width_max)? as u32;
        let length_penalty = fields.length_penalty.unwrap_or(1.0);
        if !(-10.0..=10.0).contains(&length_penalty) {
            let message = format!("length_penalty is {}, it must be between -10 and 10", shown(length_penalty));
            return Err(ApiError::parameter("length_penalty", message));
        }
        Ok(Some(Self { width, length_penalty, ignore_eos: fields.ignore_eos.unwrap_or(false) }))
    }

    /// The order in which beams are kept, larger first.
    fn score(&self, logprob: f64, length: usize) -> f64 {
        logprob / (length as f64).powf(self.length_penalty)
    }

    /// What no continuation of a beam can exceed: more tokens never make the sum larger.
    fn score_max(&self, logprob: f64, lengths: (usize, usize)) -> f64 {
        self.score(logprob, lengths.0).max(self.score(logprob, lengths.1))
    }
}

/// Fields that would have to change the choice of tokens, or the shape of the answer.
fn refused_beside(fields: &SamplingFields, logprobs: Option<i64>) -> Option<&'static str> {
    let asked = [
        ("stream", fields.stream == Some(true)),
        ("logprobs", logprobs.is_some()),
        ("prompt_logprobs", fields.prompt_logprobs.is_some()),
        ("stop", fields.stop.as_ref().is_some_and(|stop| !stop.0.is_empty())),
        ("stop_token_ids", fields.stop_token_ids.as_ref().is_some_and(|ids| !ids.is_empty())),
        ("min_tokens", fields.min_tokens.is_some_and(|count| count != 0)),
        ("frequency_penalty", fields.frequency_penalty.is_some_and(|penalty| penalty != 0.0)),
        ("presence_penalty", fields.presence_penalty.is_some_and(|penalty| penalty != 0.0)),
        ("repetition_penalty", fields.repetition_penalty.is_some_and(|penalty| penalty != 1.0)),
        ("logit_bias", fields.logit_bias.as_ref().is_some_and(|bias| !bias.is_empty())),
        ("bad_words", fields.bad_words.as_ref().is_some_and(|words| !words.is_empty())),
        ("allowed_token_ids", fields.allowed_token_ids.is_some()),
        ("top_p", fields.top_p.is_some_and(|top_p| top_p != 1.0)),
        ("top_k", fields.top_k.is_some_and(|top_k| top_k > 0)),
        ("min_p", fields.min_p.is_some_and(|min_p| min_p != 0.0)),
    ];
    asked.into_iter().find(|(_, asked)| *asked).map(|(name, _)| name)
}

/// One text on its way.
#[derive(Clone, Debug, PartialEq)]
struct Beam {
    tokens: Vec<TokenId>,
    logprob: f64,
    ended: bool,
}

/// The beams of one prompt.
struct Beams {
    search: BeamSearch,
    prompt_len: usize,
    max_tokens: usize,
    wanted: usize,
    active: Vec<Beam>,
    ended: Vec<Beam>,
}

impl Beams {
    fn new(search: BeamSearch, prompt_len: usize, max_tokens: usize, wanted: usize) -> Self {
        let start = Beam { tokens: Vec::new(), logprob: 0.0, ended: false };
        Self { search, prompt_len, max_tokens, wanted, active: vec![start], ended: Vec::new() }
    }

    /// An end token adds to the sum and not to the length.
    fn score(&self, beam: &Beam) -> f64 {
        let length = self.prompt_len + beam.tokens.len() - usize::from(beam.ended);
        self.search.score(beam.logprob, length)
    }

    fn by_score(&self, a: &Beam, b: &Beam) -> Ordering {
        self.score(b).total_cmp(&self.score(a))
    }

    /// Goes on by one token, with the likeliest candidates of each active beam.
    fn grow(&mut self, candidates: &[Vec<(TokenId, f32)>], ends: &[TokenId]) {
        let mut grown = Vec::new();
        for (beam, candidates) in std::mem::take(&mut self.active).iter().zip(candidates) {
            for &(token, logprob) in candidates {
                let ended = !self.search.ignore_eos && ends.contains(&token);
                let tokens = beam.tokens.iter().copied().chain([token]).collect();
                let beam = Beam { tokens, logprob: beam.logprob + f64::from(logprob), ended };
                if ended { self.ended.push(beam) } else { grown.push(beam) }
            }
        }
        // Stable: equals stay in the order of the beams they come from.
        grown.sort_by(|a, b| self.by_score(a, b));
        grown.truncate(self.search.width as usize);
        self.active = grown;
        self.sort_ended();
    }

    fn sort_ended(&mut self) {
        let mut ended = std::mem::take(&mut self.ended);
        ended.sort_by(|a, b| self.by_score(a, b));
        ended.truncate(self.wanted);
        self.ended = ended;
    }

    /// Whether more rounds cannot change the result.
    fn is_decided(&self) -> bool {
        let Some(best) = self.active.first() else { return true };
        let length = self.prompt_len + best.tokens.len();
        if best.tokens.len() >= self.max_tokens {
            return true;
        }
        let longest = self.prompt_len + self.max_tokens;
        let attainable = |beam: &Beam| self.search.score_max(beam.logprob, (length, longest));
        let bar = self.ended.get(self.wanted - 1).map(|beam| self.score(beam));
        bar.is_some_and(|bar| self.active.iter().all(|beam| attainable(beam) <= bar))
    }

    /// The best texts, best first.
    fn finish(mut self) -> Vec<Beam> {
        let unended = std::mem::take(&mut self.active);
        self.ended.extend(unended);
        self.sort_ended();
        self.ended
    }
}

/// Searches all prompts, one after the other, and gives what was found as if it had just been generated. Charged are the
/// prompts and every token that was tried, as they are tried, so that a search whose client leaves is paid for too.
pub(crate) async fn search(
    model: &Arc<Model>,
    request: &ValidatedRequest,
    search: BeamSearch,
    arrived: Instant,
    charge: &Charge,
) -> Result<Generation, ApiError> {
    charge.tokens(request.prompt_tokens());
    let mut deltas: Vec<Delta> = Vec::new();
    for (number, engine_request) in (0..).zip(request.engine_requests(&[])) {
        let prompt = engine_request.prompt.clone();
        let found = search_prompt(model, &engine_request, search, arrived, charge).await?;
        for (index, beam) in (number * request.n()..).zip(found) {
            let choice = Choice::new(index, &model.tokenizer, request.text(), &prompt);
            let mut choice = choice.with_message(request.message());
            let last = beam.tokens.len().saturating_sub(1);
            for (place, &token) in beam.tokens.iter().enumerate() {
                let is_stop = beam.ended && place == last;
                deltas.extend(choice.apply(EventKind::Token { token, logprobs: None, is_stop })?);
            }
            let reason = if beam.ended { FinishReason::Stop(None) } else { FinishReason::Length };
            deltas.extend(choice.apply(EventKind::Finished { reason })?);
        }
    }
    Ok(Generation::finished(request, deltas, arrived))
}

async fn search_prompt(
    model: &Arc<Model>,
    request: &Request,
    search: BeamSearch,
    arrived: Instant,
    charge: &Charge,
) -> Result<Vec<Beam>, ApiError> {
    let max_tokens = request.params.max_tokens.unwrap_or(1) as usize;
    let mut beams = Beams::new(search, request.prompt.len(), max_tokens, request.n as usize);
    while !beams.is_decided() {
        charge.tokens(beams.active.len() as u64);
        let asked = beams.active.iter().map(|beam| candidates(model, request, &beam.tokens, search.width, arrived));
        // All at once, so that they share the engine's steps.
        let candidates = futures::future::try_join_all(asked).await?;
        beams.grow(&candidates, &model.eos_token_ids);
    }
    Ok(beams.finish())
}

/// The likeliest tokens after a beam.
async fn candidates(
    model: &Arc<Model>,
    request: &Request,
    tokens: &[TokenId],
    width: u32,
    arrived: Instant,
) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let params =
        SamplingParams { max_tokens: Some(1), logprobs: Some(2 * width), ignore_eos: true, ..SamplingParams::greedy() };
    let prompt = [&request.prompt, tokens].concat();
    let asked = Request { prompt, params, n: 1, ..request.clone() };
    let mut stream = model.engine.submit(asked, arrived).await.map_err(|error| refused(error, model))?;
    let mut events = Vec::new();
    loop {
        let count = std::future::poll_fn(|context| stream.poll_events(context, &mut events)).await;
        for event in events.drain(..) {
            match event.kind {
                EventKind::Token { logprobs: Some(TokenLogprobs { top, .. }), .. } => return Ok(top),
                EventKind::Finished { reason: FinishReason::Error(message) } => {
                    return Err(ApiError::new(ErrorKind::Internal, message));
                }
                _ => {}
            }
        }
        if count == 0 {
            return Err(ApiError::new(ErrorKind::Internal, "the request was ended by the server: its engine stopped"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: TokenId = 0;
    const VOCAB: TokenId = 4;

    fn search_of(width: u32, length_penalty: f64) -> BeamSearch {
        BeamSearch { width, length_penalty, ignore_eos: false }
    }

    /// A language: how likely each token is after others, from a hash.
    fn logprobs(tokens: &[TokenId]) -> Vec<(TokenId, f32)> {
        let weight = |token: TokenId| {
            let hash = tokens
                .iter()
                .chain([&token])
                .fold(17_u32, |hash, token| (hash.rotate_left(7) ^ token).wrapping_mul(0x9e37_79b1));
            1.0 + f64::from(hash >> 20)
        };
        let total: f64 = (0..VOCAB).map(weight).sum();
        let mut all: Vec<_> = (0..VOCAB).map(|token| (token, (weight(token) / total).ln() as f32)).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all
    }

    fn run(search: BeamSearch, max_tokens: usize, wanted: usize) -> (Vec<Beam>, usize) {
        let mut beams = Beams::new(search, 3, max_tokens, wanted);
        let mut rounds = 0;
        while !beams.is_decided() {
            let candidates: Vec<_> = beams
                .active
                .iter()
                .map(|beam| logprobs(&beam.tokens).into_iter().take(2 * search.width as usize).collect())
                .collect();
            beams.grow(&candidates, &[END]);
            rounds += 1;
        }
        (beams.finish(), rounds)
    }

    /// Every text there is, best first.
    fn exhaustive(search: BeamSearch, max_tokens: usize) -> Vec<Beam> {
        let mut open = vec![Beam { tokens: Vec::new(), logprob: 0.0, ended: false }];
        let mut all = Vec::new();
        for _ in 0..max_tokens {
            for beam in std::mem::take(&mut open) {
                for (token, logprob) in logprobs(&beam.tokens) {
                    let tokens = [&beam.tokens[..], &[token]].concat();
                    let grown = Beam { tokens, logprob: beam.logprob + f64::from(logprob), ended: token == END };
                    if grown.ended { all.push(grown) } else { open.push(grown) }
                }
            }
        }
        all.extend(open);
        let beams = Beams::new(search, 3, max_tokens, 1);
        all.sort_by(|a, b| beams.by_score(a, b));
        all
    }

    #[test]
    fn with_enough_beams_the_best_texts_are_found() {
        for length_penalty in [0.0, 0.5, 1.0, 2.0, -1.0] {
            // 81 open texts at most in the last round but one.
            let search = search_of(100, length_penalty);
            let (found, _) = run(search, 5, 4);
            assert_eq!(found, exhaustive(search, 5)[..4], "length penalty {length_penalty}");
        }
    }

    #[test]
    fn a_wider_search_never_finds_a_worse_text() {
        let score = |width| {
            let (found, _) = run(search_of(width, 1.0), 8, 1);
            found[0].logprob / (3 + found[0].tokens.len() - usize::from(found[0].ended)) as f64
        };
        assert!(score(1) <= score(50));
    }

    #[test]
    fn it_stops_when_nothing_better_can_come() {
        // Without a penalty every token makes a text worse, so that short texts win early.
        let (found, rounds) = run(search_of(3, 0.0), 1000, 1);
        assert!(found[0].ended && rounds < 1000, "{rounds} rounds");
        let (found, rounds) = run(BeamSearch { ignore_eos: true, ..search_of(3, 1.0) }, 20, 2);
        assert!(found.len() == 2 && found.iter().all(|beam| beam.tokens.len() == 20 && !beam.ended) && rounds == 20);
    }
}
