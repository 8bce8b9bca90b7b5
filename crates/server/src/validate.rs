//! From what a client sent to what the engine may be given: the one place where requests are checked.
//!
//! Every front door makes a [`Draft`] and gets a [`ValidatedRequest`]; there is no other way to make one. Counts and
//! ranges are checked before anything of their size is allocated.

use firebrick_engine::{Constraint, Request, SamplingParams, SchedulingPolicy, TokenId};

use crate::auth::Caller;
use crate::beam_search::BeamSearch;
use crate::choice::TokenTexts;
use crate::error::ApiError;
use crate::limits::Limits;
use crate::message::{MessageDraft, MessageOptions};
use crate::openai::{OneOrMany, SamplingFields};
use crate::parameter::{at_most, whole};
use crate::pooling::AskedPooling;
use crate::prompt::{Source, ValidPrompt};
use crate::prompt_report::PromptReport;
use crate::sampling_params::sampling_params;
use crate::state::Model;
use crate::structured_output::{AskedGrammar, asked_grammar};

/// A request of any front door, unchecked.
pub struct Draft {
    /// Who asks.
    pub caller: Caller,
    /// What to continue.
    pub source: Source,
    /// How to continue it.
    pub sampling: SamplingFields,
    /// Alternatives to report per token; `None` reports no log-probabilities.
    pub logprobs: Option<i64>,
    /// Begin the text with the prompt.
    pub echo: bool,
    /// Present when the answer is a vector for each prompt.
    pub pooling: Option<AskedPooling>,
    /// Present when the answer is a message; otherwise it is plain text.
    pub message: Option<MessageDraft>,
    /// Used when neither the request nor the model's defaults say; `None` fills the model's length.
    pub default_max_tokens: Option<u32>,
}

/// What a stream reports about usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// A last chunk with the usage.
    pub include_usage: bool,
    /// The usage so far in every chunk.
    pub continuous_usage: bool,
    /// Tokens that a chunk holds at least, the first and the last of a choice aside; 0 is 1.
    pub interval: u32,
}

/// How tokens become text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextOptions {
    /// Strings that end the text.
    pub stops: Vec<String>,
    /// Keep them in the text.
    pub include_stop: bool,
    /// So many tokens are generated before a stop string ends the text.
    pub min_tokens: u32,
    /// Leave special tokens out.
    pub skip_special_tokens: bool,
    /// The text continues the prompt as one text, or is a message of its own.
    pub continues_prompt: bool,
    /// Log-probabilities show tokens by their numbers.
    pub tokens_as_ids: bool,
    /// Answers hold the tokens of prompt and text.
    pub report_tokens: bool,
}

/// A request within all limits, as tokens.
pub struct ValidatedRequest {
    prompts: Vec<ValidPrompt>,
    params: Vec<SamplingParams>,
    n: u32,
    priority: i32,
    cache_salt: Option<String>,
    text: TextOptions,
    report: PromptReport,
    message: Option<MessageOptions>,
    stream: Option<StreamOptions>,
    best: Option<Best>,
    beams: Option<BeamSearch>,
    grammar: Option<AskedGrammar>,
    constraint: Option<Constraint>,
}

impl ValidatedRequest {
    /// Checks a request and turns its prompt into tokens. This computes; callers run it off the I/O threads.
    pub fn new(draft: Draft, model: &Model, limits: &Limits) -> Result<Self, ApiError> {
        let Draft { caller, source, mut sampling, logprobs, echo, pooling, message, default_max_tokens } = draft;
        refuse_unsupported(&sampling)?;
        let mut report = match pooling {
            Some(pooling) => PromptReport::pooled(pooling.of(model)),
            None => PromptReport::asked(&sampling, echo, logprobs, limits)?,
        };
        let n = whole("n", sampling.n, 1, 1..=i64::from(limits.choices_max))? as u32;
        let stream = stream_options(&sampling)?;
        let beams = BeamSearch::asked(&sampling, n, logprobs, model)?;
        let best = if beams.is_some() { None } else { best_of(&sampling, n, logprobs.is_some(), limits)? };
        // As many are generated as compete.
        let (n, logprobs) = match &best {
            None => (n, logprobs),
            Some(best) => (best.candidates, logprobs.or(Some(0))),
        };
        source.check(n, limits)?;
        let min_tokens = whole("min_tokens", sampling.min_tokens, 0, 0..=u32::MAX.into())? as u32;
        let text = TextOptions { min_tokens, ..text_options(&sampling, &source, limits)? };
        let priority = priority(sampling.priority, model)?;
        let cache_salt = caller.cache_salt(cache_salt(sampling.cache_salt.as_deref(), limits)?);
        let common = sampling_params(&sampling, logprobs, model, limits)?;
        let forced = message.as_ref().and_then(|message| message.tools.grammar());
        let grammar = match (either(asked_grammar(&mut sampling)?, forced)?, &message) {
            (Some(grammar), Some(message)) => Some(message.tools.beside(grammar, model.dialect.tools)?),
            (grammar, _) => grammar,
        };
        if grammar.is_some() && !common.allowed_token_ids.is_empty() {
            let message = "allowed_token_ids together with structured output is not supported";
            return Err(ApiError::parameter("allowed_token_ids", message));
        }
        let mut prompts = source.into_prompts(model, echo)?;
        if let Some(kept) = kept_prompt_tokens(&sampling, model)? {
            prompts.iter_mut().for_each(|prompt| prompt.keep_last(kept, echo, &model.tokenizer));
        }
        report.meet(&prompts, &TokenTexts::new(&model.tokenizer, text.tokens_as_ids), limits)?;
        let options = |message: &MessageDraft| MessageOptions::new(message, model, prompts.first(), grammar.is_some());
        let message = message.as_ref().map(options).transpose()?;
        let params = prompts
            .iter()
            .map(|prompt| {
                let may_be_none = report.engine_output().is_some();
                let asked = sampling.max_tokens;
                let length = LengthRequest { asked, default: default_max_tokens, min_tokens, may_be_none };
                let max_tokens = length.resolve(prompt.tokens.len(), model)?;
                Ok(SamplingParams { max_tokens: Some(max_tokens), min_tokens, ..common.clone() })
            })
            .collect::<Result<Vec<_>, ApiError>>()?;
        refuse_choices_of_nothing(&params, n, grammar.is_some())?;
        refuse_grammar_of_beams(beams, grammar.as_ref())?;
        let constraint = None;
        Ok(Self {
            prompts,
            params,
            n,
            priority,
            cache_salt,
            text,
            report,
            message,
            stream,
            best,
            beams,
            grammar,
            constraint,
        })
    }

    /// The grammar that was asked for, to be compiled.
    pub fn take_grammar(&mut self) -> Option<AskedGrammar> {
        self.grammar.take()
    }

    /// The compiled grammar, which every choice follows.
    pub fn set_constraint(&mut self, constraint: Constraint) {
        self.constraint = Some(constraint);
    }

    /// Choices per prompt.
    pub fn n(&self) -> u32 {
        self.n
    }

    /// Present when only the likeliest choices are shown.
    pub fn best(&self) -> Option<Best> {
        self.best
    }

    /// Present when beams are followed.
    pub fn beams(&self) -> Option<BeamSearch> {
        self.beams
    }

    /// The prompts.
    pub fn prompts(&self) -> &[ValidPrompt] {
        &self.prompts
    }

    /// How tokens become text.
    pub fn text(&self) -> &TextOptions {
        &self.text
    }

    /// What is told about the prompts.
    pub fn report(&self) -> &PromptReport {
        &self.report
    }

    /// How choices become messages; `None` where they are plain text.
    pub fn message(&self) -> Option<&MessageOptions> {
        self.message.as_ref()
    }

    /// Present when the answer is streamed.
    pub fn stream(&self) -> Option<StreamOptions> {
        self.stream
    }

    /// Tokens of all prompts.
    pub fn prompt_tokens(&self) -> u64 {
        self.prompts.iter().map(|prompt| prompt.tokens.len() as u64).sum()
    }

    /// The longest text that was asked for, in tokens.
    pub fn max_tokens(&self) -> u32 {
        self.params.iter().filter_map(|params| params.max_tokens).max().unwrap_or(0)
    }

    /// How the first prompt is continued; the others differ in their lengths alone.
    pub fn sampling(&self) -> Option<&SamplingParams> {
        self.params.first()
    }

    /// One engine request per prompt.
    pub fn engine_requests(&self, eos_token_ids: &[TokenId]) -> Vec<Request> {
        let with_params = self.prompts.iter().zip(&self.params);
        let request = |(prompt, params): (&ValidPrompt, &SamplingParams)| Request {
            prompt: prompt.tokens.clone(),
            params: params.clone(),
            n: self.n,
            priority: self.priority,
            eos_token_ids: eos_token_ids.to_vec(),
            cache_salt: self.cache_salt.clone(),
            constraint: self.constraint.clone(),
            prompt_output: self.report.engine_output(),
        };
        with_params.map(request).collect()
    }
}

/// The one grammar of a request. A forced call leaves no text that a `response_format` could apply to.
fn either(asked: Option<AskedGrammar>, forced: Option<AskedGrammar>) -> Result<Option<AskedGrammar>, ApiError> {
    match (asked, forced) {
        (Some(asked), Some(_)) if asked.field != "response_format" => {
            let message = format!("{} and a forced tool call exclude each other", asked.field);
            Err(ApiError::parameter(asked.field, message))
        }
        (asked, forced) => Ok(forced.or(asked)),
    }
}

/// What the request says about the length of its text.
struct LengthRequest {
    asked: Option<i64>,
    default: Option<u32>,
    min_tokens: u32,
    /// The prompt alone is worth computing.
    may_be_none: bool,
}

impl LengthRequest {
    /// The number of tokens to generate at most, such that prompt and text fit the model.
    fn resolve(&self, prompt: usize, model: &Model) -> Result<u32, ApiError> {
        let max_len = model.max_model_len;
        let room = i64::from(max_len) - prompt as i64;
        let asks_for_none = self.asked == Some(0) && self.may_be_none;
        if room < i64::from(!asks_for_none) {
            return Err(too_long(max_len, prompt, self.asked.unwrap_or(1)));
        }
        let max_tokens = match self.asked {
            Some(asked) if asked < 1 && !asks_for_none => {
                return Err(ApiError::parameter("max_tokens", format!("max_tokens is {asked}, it must be at least 1")));
            }
            Some(asked) if asked > room => return Err(too_long(max_len, prompt, asked)),
            Some(asked) => asked,
            None => self.default.or(model.defaults.max_tokens).map_or(room, |default| room.min(default.max(1).into())),
        } as u32;
        if self.min_tokens > max_tokens {
            let message = format!("min_tokens is {}, more than max_tokens, which is {max_tokens}", self.min_tokens);
            return Err(ApiError::parameter("min_tokens", message));
        }
        Ok(max_tokens)
    }
}

/// Worded so that clients which look for "maximum context length" recognise it.
fn too_long(max_len: u32, prompt: usize, max_tokens: i64) -> ApiError {
    let message = format!(
        "This model's maximum context length is {max_len} tokens. However, the prompt contains {prompt} tokens and \
         {max_tokens} output tokens were requested. Please reduce the length of the input or the number of requested \
         output tokens."
    );
    ApiError::parameter("max_tokens", message)
}

/// Without tokens to generate there is nothing in which choices could differ, and nothing that could follow a grammar.
fn refuse_choices_of_nothing(params: &[SamplingParams], n: u32, has_grammar: bool) -> Result<(), ApiError> {
    if params.iter().all(|params| params.max_tokens != Some(0)) || n == 1 && !has_grammar {
        return Ok(());
    }
    let message = "max_tokens is 0, so that there is no text for several choices or a grammar";
    Err(ApiError::parameter("max_tokens", message))
}

/// Beams are compared by likelihood alone.
fn refuse_grammar_of_beams(beams: Option<BeamSearch>, grammar: Option<&AskedGrammar>) -> Result<(), ApiError> {
    match grammar {
        Some(grammar) if beams.is_some() => {
            let message = format!("{} is not supported together with use_beam_search", grammar.field);
            Err(ApiError::parameter(grammar.field, message))
        }
        _ => Ok(()),
    }
}

/// Parameters of the API that say nothing when neutral and are refused otherwise.
fn refuse_unsupported(fields: &SamplingFields) -> Result<(), ApiError> {
    if fields.spaces_between_special_tokens == Some(false) {
        let message = "spaces_between_special_tokens must be true: the tokenizer decides where spaces stand";
        return Err(ApiError::parameter("spaces_between_special_tokens", message));
    }
    if fields.truncation_side.as_deref().is_some_and(|side| side != "left") {
        let message = "truncation_side must be left: a prompt that is too long keeps its end";
        return Err(ApiError::parameter("truncation_side", message));
    }
    Ok(())
}

/// Which of several choices are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Best {
    /// Choices that are generated for each prompt.
    pub candidates: u32,
    /// The likeliest of them, which are shown.
    pub kept: u32,
    /// Log-probabilities decide; they are shown only when asked for.
    pub shows_logprobs: bool,
}

fn best_of(fields: &SamplingFields, n: u32, shows_logprobs: bool, limits: &Limits) -> Result<Option<Best>, ApiError> {
    const NAME: &str = "best_of";
    let candidates = whole(NAME, fields.best_of, n.into(), 1..=i64::from(limits.choices_max))? as u32;
    // Clients send 1 along with any n.
    if candidates == n || fields.best_of == Some(1) {
        return Ok(None);
    }
    if candidates < n {
        return Err(ApiError::parameter(NAME, format!("best_of is {candidates}, it must be at least n, which is {n}")));
    }
    if fields.stream == Some(true) {
        return Err(ApiError::parameter(
            NAME,
            "best_of cannot be streamed: which choices are shown is known at the end",
        ));
    }
    Ok(Some(Best { candidates, kept: n, shows_logprobs }))
}

/// A priority changes the order only where the server was started so; elsewhere it would be ignored.
fn priority(asked: Option<i64>, model: &Model) -> Result<i32, ApiError> {
    let priority = whole("priority", asked, 0, i32::MIN.into()..=i32::MAX.into())? as i32;
    if priority != 0 && model.engine.config().policy != SchedulingPolicy::Priority {
        let message = "priority needs a server that was started with --scheduling-policy priority";
        return Err(ApiError::parameter("priority", message));
    }
    Ok(priority)
}

/// How many of a prompt's last tokens are kept; `None` keeps all.
fn kept_prompt_tokens(fields: &SamplingFields, model: &Model) -> Result<Option<usize>, ApiError> {
    let Some(asked) = fields.truncate_prompt_tokens else { return Ok(None) };
    let max_len = i64::from(model.max_model_len);
    let kept = match asked {
        -1 => (max_len - fields.max_tokens.unwrap_or(1)).max(1),
        0 => {
            return Err(ApiError::parameter(
                "truncate_prompt_tokens",
                "truncate_prompt_tokens is 0, it must be at least 1, or -1",
            ));
        }
        _ => whole("truncate_prompt_tokens", Some(asked), -1, -1..=max_len)?,
    };
    Ok(Some(kept as usize))
}

fn stream_options(fields: &SamplingFields) -> Result<Option<StreamOptions>, ApiError> {
    let stream = fields.stream.unwrap_or(false);
    let interval = whole("stream_interval", fields.stream_interval, 1, 1..=i64::from(u32::MAX))? as u32;
    let Some(options) = fields.stream_options else {
        return Ok(stream.then_some(StreamOptions { interval, ..StreamOptions::default() }));
    };
    if !stream {
        return Err(ApiError::parameter("stream_options", "stream_options is only allowed when stream is true"));
    }
    if options.include_obfuscation == Some(true) {
        return Err(ApiError::parameter("stream_options", "stream_options.include_obfuscation is not supported"));
    }
    let continuous_usage = options.continuous_usage_stats.unwrap_or(false);
    Ok(Some(StreamOptions { include_usage: options.include_usage.unwrap_or(false), continuous_usage, interval }))
}

fn text_options(fields: &SamplingFields, source: &Source, limits: &Limits) -> Result<TextOptions, ApiError> {
    let stops = fields.stop.as_ref().map_or(&[][..], |OneOrMany(stops)| stops);
    at_most("stop", "stop strings", stops.len(), limits.stops_max)?;
    for stop in stops {
        if stop.is_empty() {
            return Err(ApiError::parameter("stop", "a stop string must not be empty"));
        }
        at_most("stop", "bytes in one stop string", stop.len(), limits.stop_bytes_max)?;
    }
    Ok(TextOptions {
        stops: stops.to_vec(),
        include_stop: fields.include_stop_str_in_output.unwrap_or(false),
        min_tokens: 0,
        skip_special_tokens: fields.skip_special_tokens.unwrap_or(true),
        continues_prompt: source.continues_prompt(),
        tokens_as_ids: fields.return_tokens_as_token_ids.unwrap_or(false),
        report_tokens: fields.return_token_ids.unwrap_or(false),
    })
}

fn cache_salt(salt: Option<&str>, limits: &Limits) -> Result<Option<String>, ApiError> {
    let Some(salt) = salt else { return Ok(None) };
    if salt.is_empty() {
        return Err(ApiError::parameter("cache_salt", "cache_salt must not be empty"));
    }
    at_most("cache_salt", "bytes in cache_salt", salt.len(), limits.cache_salt_bytes_max)?;
    Ok(Some(salt.to_owned()))
}
