//! How tokens are to be chosen, from what a client sent and the model's defaults.

use firebrick_engine::{SamplingParams, TokenId};

use crate::error::ApiError;
use crate::limits::Limits;
use crate::openai::SamplingFields;
use crate::parameter::{at_most, real, token, whole};
use crate::state::{Model, SamplingDefaults};
use crate::token_sets::{allowed_token_ids, bad_words};

/// All sampling parameters but the lengths, which depend on the prompt.
pub(crate) fn sampling_params(
    fields: &SamplingFields,
    logprobs: Option<i64>,
    model: &Model,
    limits: &Limits,
) -> Result<SamplingParams, ApiError> {
    let SamplingDefaults { temperature, top_p, top_k, min_p, repetition_penalty, .. } = model.defaults;
    let vocab_size = model.engine.config().vocab_size;
    let logprobs_max = limits.logprobs_max.into();
    Ok(SamplingParams {
        temperature: real("temperature", fields.temperature, temperature.unwrap_or(1.0), 0.0..=100.0)?,
        top_p: real("top_p", fields.top_p, top_p.unwrap_or(1.0), f64::from(f32::MIN_POSITIVE)..=1.0)?,
        top_k: top_k_of(fields.top_k, top_k)?,
        min_p: real("min_p", fields.min_p, min_p.unwrap_or(0.0), 0.0..=1.0)?,
        seed: fields.seed.map(|seed| seed as u64),
        max_tokens: None,
        min_tokens: 0,
        ignore_eos: fields.ignore_eos.unwrap_or(false),
        stop_token_ids: stop_token_ids(fields.stop_token_ids.as_deref(), vocab_size, limits)?,
        frequency_penalty: real("frequency_penalty", fields.frequency_penalty, 0.0, -2.0..=2.0)?,
        presence_penalty: real("presence_penalty", fields.presence_penalty, 0.0, -2.0..=2.0)?,
        repetition_penalty: real(
            "repetition_penalty",
            fields.repetition_penalty,
            repetition_penalty.unwrap_or(1.0),
            0.01..=100.0,
        )?,
        logit_bias: logit_bias(fields, vocab_size, limits)?,
        allowed_token_ids: allowed_token_ids(fields.allowed_token_ids.as_deref(), vocab_size)?,
        bad_words: bad_words(fields.bad_words.as_deref(), model, limits)?,
        logprobs: match logprobs {
            None => None,
            some => Some(whole("logprobs", some, 0, 0..=logprobs_max)? as u32),
        },
    })
}

fn top_k_of(asked: Option<i64>, default: Option<u32>) -> Result<Option<u32>, ApiError> {
    match asked {
        None => Ok(default.filter(|&top_k| top_k > 0)),
        Some(-1 | 0) => Ok(None),
        Some(_) => Ok(Some(whole("top_k", asked, 0, -1..=u32::MAX.into())? as u32)),
    }
}

fn stop_token_ids(ids: Option<&[i64]>, vocab_size: u32, limits: &Limits) -> Result<Vec<TokenId>, ApiError> {
    let ids = ids.unwrap_or_default();
    at_most("stop_token_ids", "stop token ids", ids.len(), limits.stop_token_ids_max)?;
    ids.iter().map(|&id| token("stop_token_ids", id, vocab_size)).collect()
}

fn logit_bias(fields: &SamplingFields, vocab_size: u32, limits: &Limits) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(bias) = &fields.logit_bias else { return Ok(Vec::new()) };
    at_most("logit_bias", "entries of logit_bias", bias.len(), limits.logit_bias_max)?;
    let entry = |(id, &value): (&String, &f64)| {
        let id =
            id.parse().map_err(|_| ApiError::parameter("logit_bias", "the keys of logit_bias must be token ids"))?;
        Ok((token("logit_bias", id, vocab_size)?, real("logit_bias", Some(value), 0.0, -100.0..=100.0)?))
    };
    let mut entries = bias.iter().map(entry).collect::<Result<Vec<_>, ApiError>>()?;
    // A map has no order; the engine's decisions must not depend on one.
    entries.sort_by_key(|&(id, _)| id);
    Ok(entries)
}
