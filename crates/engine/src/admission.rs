//! The door: a request is checked against every limit before anything is allocated for it.
//!
//! What passes becomes [`RequestFacts`], the only form in which the rest of the engine sees a request, so nothing
//! unchecked can get further.

use std::sync::Arc;

use crate::prefix_cache::{ChainHasher, Salt};
use crate::sequence::{RequestFacts, Sharing, StopTokens, mix_seed};
use crate::{Constraint, EngineConfig, PromptOutput, Rejected, Request, RequestId, SamplingParams, TokenMask};

const LOGIT_BIAS_ENTRIES_MAX: usize = 1024;
const STOP_TOKENS_MAX: usize = 1024;
/// A client's salt of 256 bytes, and what a server puts before it to tell its callers apart.
const SALT_BYTES_MAX: usize = 320;
const BAD_WORDS_MAX: usize = 1024;
const BAD_WORD_TOKENS_MAX: usize = 64;
/// Alternatives that a token's log-probabilities may have: devices find no more.
pub const LOGPROBS_MAX: u32 = 20;

/// The limits that requests are measured against.
#[derive(Clone, Copy)]
pub(crate) struct Door<'a> {
    pub(crate) config: &'a EngineConfig,
    pub(crate) num_blocks: u32,
}

impl Door<'_> {
    /// Refuses a request that breaks a limit.
    pub(crate) fn check(&self, request: &Request) -> Result<(), Rejected> {
        if request.prompt.is_empty() {
            return Err(Rejected::EmptyPrompt);
        }
        if request.n == 0 || request.n > self.config.max_choices {
            return Err(Rejected::Choices { n: request.n, max: self.config.max_choices });
        }
        check_params(&request.params)?;
        check_prompt_output(request)?;
        check_token_sets(request)?;
        check_salt(request.cache_salt.as_deref())?;
        self.check_size(request)?;
        self.check_tokens(request)
    }

    /// The facts of a request that passed [`check`](Self::check).
    pub(crate) fn facts(&self, id: RequestId, request: Request, hasher: ChainHasher) -> RequestFacts {
        let max_len = self.max_len(&request);
        let salt = match request.cache_salt {
            _ if !self.config.enable_prefix_caching => (request.n > 1).then_some(Salt::Private(id)),
            Some(name) => Some(Salt::Named(name.into())),
            None => Some(Salt::Public),
        };
        RequestFacts {
            id,
            stops: StopTokens::new(&request.eos_token_ids, &request.params),
            priority: request.priority,
            max_len,
            seed: request.params.seed.unwrap_or_else(|| mix_seed(self.config.seed, id.0)),
            allowed: match &request.params.allowed_token_ids[..] {
                [] => None,
                tokens => Some(TokenMask::of(tokens)),
            },
            constraint: request.constraint,
            sharing: salt.map(|salt| Sharing { root: hasher.root(&salt), salt }),
            prompt: request.prompt.into(),
            prompt_output: request.prompt_output,
            params: Arc::new(request.params),
        }
    }

    /// Tokens, prompt and output, at which the request's sequences end. Without `max_tokens` that is what the model
    /// and the pool allow; the last token needs no slot.
    fn max_len(&self, request: &Request) -> u32 {
        match request.params.max_tokens {
            Some(max_tokens) => (request.prompt.len() as u32).saturating_add(max_tokens),
            None => self.config.max_model_len.min(self.num_blocks.saturating_mul(self.config.block_size) + 1),
        }
    }

    fn check_size(&self, request: &Request) -> Result<(), Rejected> {
        let config = self.config;
        let prompt = u32::try_from(request.prompt.len()).unwrap_or(u32::MAX);
        let max_tokens = request.params.max_tokens.unwrap_or(1);
        if prompt.saturating_add(max_tokens) > config.max_model_len {
            return Err(Rejected::TooLong { prompt, max_tokens, max_model_len: config.max_model_len });
        }
        if !config.enable_chunked_prefill && prompt > config.max_num_batched_tokens {
            let max_num_batched_tokens = config.max_num_batched_tokens;
            return Err(Rejected::LargerThanStep { prompt, max_num_batched_tokens });
        }
        // At its longest a sequence has computed all tokens but the last.
        let longest = self.max_len(request).max(prompt + 1) - 1;
        let needed = longest.div_ceil(config.block_size);
        if needed > self.num_blocks {
            return Err(Rejected::LargerThanPool { needed, total: self.num_blocks });
        }
        let room = self.max_len(request) - prompt;
        if request.params.min_tokens > room {
            return Err(out_of_range(
                "min_tokens",
                request.params.min_tokens,
                "at most max_tokens and the model's length",
            ));
        }
        Ok(())
    }

    fn check_tokens(&self, request: &Request) -> Result<(), Rejected> {
        let vocab_size = self.config.vocab_size;
        let bias = request.params.logit_bias.iter().map(|(token, _)| token);
        let stops = request.params.stop_token_ids.iter().chain(&request.eos_token_ids);
        let sets = request.params.bad_words.iter().flatten().chain(&request.params.allowed_token_ids);
        match request.prompt.iter().chain(bias).chain(stops).chain(sets).find(|token| **token >= vocab_size) {
            Some(&token) => Err(Rejected::TokenOutOfRange { token, vocab_size }),
            None => Ok(()),
        }
    }
}

fn check_params(params: &SamplingParams) -> Result<(), Rejected> {
    let temperature = params.temperature;
    require((0.0..=100.0).contains(&temperature), "temperature", temperature, "0 to 100")?;
    require(params.top_p > 0.0 && params.top_p <= 1.0, "top_p", params.top_p, "above 0, at most 1")?;
    if let Some(top_k) = params.top_k {
        require(top_k > 0, "top_k", top_k, "at least 1, or nothing")?;
    }
    require((0.0..=1.0).contains(&params.min_p), "min_p", params.min_p, "0 to 1")?;
    for (name, value) in
        [("frequency_penalty", params.frequency_penalty), ("presence_penalty", params.presence_penalty)]
    {
        require((-2.0..=2.0).contains(&value), name, value, "-2 to 2")?;
    }
    let repetition = params.repetition_penalty;
    require(repetition > 0.0 && repetition.is_finite(), "repetition_penalty", repetition, "above 0, finite")?;
    if let Some(max_tokens) = params.max_tokens {
        require(params.min_tokens <= max_tokens, "min_tokens", params.min_tokens, "at most max_tokens")?;
    }
    if let Some(logprobs) = params.logprobs {
        require(logprobs <= LOGPROBS_MAX, "logprobs", logprobs, "at most 20")?;
    }
    let entries = params.logit_bias.len();
    require(entries <= LOGIT_BIAS_ENTRIES_MAX, "logit_bias entries", entries, "at most 1024")?;
    for (_, bias) in &params.logit_bias {
        require((-100.0..=100.0).contains(bias), "logit_bias", bias, "-100 to 100")?;
    }
    let stops = params.stop_token_ids.len();
    require(stops <= STOP_TOKENS_MAX, "stop_token_ids entries", stops, "at most 1024")
}

/// A request that generates nothing must report something, and has nothing that several choices could differ in.
fn check_prompt_output(request: &Request) -> Result<(), Rejected> {
    if let Some(PromptOutput::Logprobs(count)) = request.prompt_output {
        require(count <= LOGPROBS_MAX, "prompt_logprobs", count, "at most 20")?;
    }
    if request.params.max_tokens == Some(0) {
        require(request.prompt_output.is_some(), "max_tokens", 0, "at least 1")?;
        require(request.n == 1, "n", request.n, "1 where no tokens are generated")?;
        require(request.constraint.is_none(), "constraint", "set", "nothing where no tokens are generated")?;
    }
    Ok(())
}

fn check_token_sets(request: &Request) -> Result<(), Rejected> {
    let bad_words = &request.params.bad_words;
    require(bad_words.len() <= BAD_WORDS_MAX, "bad_words entries", bad_words.len(), "at most 1024")?;
    for word in bad_words {
        let fits = !word.is_empty() && word.len() <= BAD_WORD_TOKENS_MAX;
        require(fits, "bad_words tokens", word.len(), "1 to 64 in each")?;
    }
    let both = request.constraint.is_some() && !request.params.allowed_token_ids.is_empty();
    require(!both, "allowed_token_ids", "set", "nothing together with a constraint")?;
    let lost = request.constraint.as_ref().is_some_and(Constraint::is_lost);
    require(!lost, "constraint", "lost", "what was not read from a stored trace")
}

fn check_salt(salt: Option<&str>) -> Result<(), Rejected> {
    match salt {
        // The salt is as good as a secret; only its length is repeated.
        Some(salt) => {
            require(!salt.is_empty() && salt.len() <= SALT_BYTES_MAX, "cache_salt length", salt.len(), "1 to 320 bytes")
        }
        None => Ok(()),
    }
}

fn require(holds: bool, name: &'static str, value: impl ToString, allowed: &'static str) -> Result<(), Rejected> {
    if holds { Ok(()) } else { Err(out_of_range(name, value, allowed)) }
}

fn out_of_range(name: &'static str, value: impl ToString, allowed: &'static str) -> Rejected {
    Rejected::Parameter { name, value: value.to_string(), allowed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SchedulingPolicy;

    fn config() -> EngineConfig {
        EngineConfig {
            block_size: 16,
            max_model_len: 1000,
            max_num_seqs: 8,
            max_num_batched_tokens: 100,
            max_waiting: 10,
            max_choices: 4,
            vocab_size: 1000,
            enable_prefix_caching: true,
            enable_chunked_prefill: true,
            policy: SchedulingPolicy::Fcfs,
            seed: 0,
            hash_key: [0, 0],
        }
    }

    fn check_with(config: &EngineConfig, num_blocks: u32, request: &Request) -> Result<(), Rejected> {
        Door { config, num_blocks }.check(request)
    }

    fn check(request: &Request) -> Result<(), Rejected> {
        check_with(&config(), 10, request)
    }

    fn with(change: impl FnOnce(&mut SamplingParams)) -> Request {
        let mut params = SamplingParams { max_tokens: Some(4), ..SamplingParams::default() };
        change(&mut params);
        Request::new(vec![1, 2, 3], params)
    }

    fn refused_parameter(change: impl FnOnce(&mut SamplingParams)) -> &'static str {
        match check(&with(change)) {
            Err(Rejected::Parameter { name, .. }) => name,
            other => panic!("expected a refused parameter, got {other:?}"),
        }
    }

    #[test]
    fn an_ordinary_request_passes() {
        assert_eq!(check(&with(|_| ())), Ok(()));
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(refused_parameter(|params| params.temperature = bad), "temperature");
            assert_eq!(refused_parameter(|params| params.top_p = bad), "top_p");
            assert_eq!(refused_parameter(|params| params.min_p = bad), "min_p");
            assert_eq!(refused_parameter(|params| params.frequency_penalty = bad), "frequency_penalty");
            assert_eq!(refused_parameter(|params| params.presence_penalty = bad), "presence_penalty");
            assert_eq!(refused_parameter(|params| params.repetition_penalty = bad), "repetition_penalty");
            assert_eq!(refused_parameter(|params| params.logit_bias = vec![(1, bad)]), "logit_bias");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!(refused_parameter(|params| params.temperature = -0.1), "temperature");
        assert_eq!(refused_parameter(|params| params.top_p = 0.0), "top_p");
        assert_eq!(refused_parameter(|params| params.top_k = Some(0)), "top_k");
        assert_eq!(refused_parameter(|params| params.min_p = 1.1), "min_p");
        assert_eq!(refused_parameter(|params| params.presence_penalty = 2.1), "presence_penalty");
        assert_eq!(refused_parameter(|params| params.repetition_penalty = 0.0), "repetition_penalty");
        assert_eq!(refused_parameter(|params| params.max_tokens = Some(0)), "max_tokens");
        assert_eq!(refused_parameter(|params| params.min_tokens = 5), "min_tokens");
        assert_eq!(refused_parameter(|params| params.logprobs = Some(21)), "logprobs");
        assert_eq!(refused_parameter(|params| params.logit_bias = vec![(1, 0.0); 1025]), "logit_bias entries");
        assert_eq!(refused_parameter(|params| params.stop_token_ids = vec![1; 1025]), "stop_token_ids entries");
    }

    #[test]
    fn tokens_outside_the_vocabulary_are_refused() {
        let refused = |token| Err(Rejected::TokenOutOfRange { token, vocab_size: 1000 });
        let mut request = with(|_| ());
        request.prompt[1] = 1000;
        assert_eq!(check(&request), refused(1000));
        assert_eq!(check(&with(|params| params.stop_token_ids = vec![u32::MAX])), refused(u32::MAX));
        assert_eq!(check(&with(|params| params.logit_bias = vec![(1000, 1.0)])), refused(1000));
    }

    #[test]
    fn lengths_are_checked_with_the_numbers_in_the_message() {
        let mut request = with(|params| params.max_tokens = Some(998));
        assert_eq!(check(&request), Err(Rejected::TooLong { prompt: 3, max_tokens: 998, max_model_len: 1000 }));
        request.params.max_tokens = Some(u32::MAX);
        assert!(matches!(check(&request), Err(Rejected::TooLong { .. })));
        request.params.max_tokens = Some(159);
        assert_eq!(check(&request), Err(Rejected::LargerThanPool { needed: 11, total: 10 }));
        request.params.max_tokens = Some(158);
        assert_eq!(check(&request), Ok(()), "the last token needs no slot");
    }

    #[test]
    fn without_max_tokens_the_pool_is_the_limit() {
        let mut request = with(|params| params.max_tokens = None);
        let config = config();
        assert_eq!(check(&request), Ok(()));
        assert_eq!(Door { config: &config, num_blocks: 10 }.max_len(&request), 161);
        request.prompt = vec![1; 160];
        assert_eq!(check(&request), Ok(()));
        request.prompt = vec![1; 161];
        assert_eq!(check(&request), Err(Rejected::LargerThanPool { needed: 11, total: 10 }));
    }

    #[test]
    fn without_chunked_prefill_a_prompt_must_fit_a_step() {
        let config = EngineConfig { enable_chunked_prefill: false, ..config() };
        let mut request = with(|_| ());
        request.prompt = vec![1; 101];
        let refused = Rejected::LargerThanStep { prompt: 101, max_num_batched_tokens: 100 };
        assert_eq!(check_with(&config, 10, &request), Err(refused));
        request.prompt.pop();
        assert_eq!(check_with(&config, 10, &request), Ok(()));
    }

    #[test]
    fn prompt_choices_and_salt_are_checked() {
        let mut request = with(|_| ());
        request.n = 5;
        assert_eq!(check(&request), Err(Rejected::Choices { n: 5, max: 4 }));
        request.n = 1;
        request.cache_salt = Some("s".repeat(SALT_BYTES_MAX + 1));
        assert!(matches!(check(&request), Err(Rejected::Parameter { name: "cache_salt length", .. })));
        request.prompt.clear();
        assert_eq!(check(&request), Err(Rejected::EmptyPrompt));
    }
}
