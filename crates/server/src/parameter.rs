//! Checks of single parameters, whose errors name the parameter and what is allowed.

use std::ops::RangeInclusive;

use firebrick_engine::TokenId;

use crate::error::{ApiError, ErrorKind};
use crate::openai::Loose;

/// Refuses a parameter that asks for something.
pub(crate) fn refuse_unless_neutral(name: &str, value: Option<Loose>) -> Result<(), ApiError> {
    match value {
        Some(value) if !value.is_neutral() => Err(ApiError::parameter(name, format!("{name} is not supported"))),
        _ => Ok(()),
    }
}

/// A token of the vocabulary.
pub(crate) fn token(name: &str, id: i64, vocab_size: u32) -> Result<TokenId, ApiError> {
    let known = u32::try_from(id).ok().filter(|&id| id < vocab_size);
    known.ok_or_else(|| {
        ApiError::parameter(name, format!("{name}: token {id} is outside the vocabulary of {vocab_size}"))
    })
}

/// A number in a range; not-a-number is in none.
pub(crate) fn real(name: &str, value: Option<f64>, default: f32, range: RangeInclusive<f64>) -> Result<f32, ApiError> {
    let Some(value) = value else { return Ok(default) };
    if range.contains(&value) {
        return Ok(value as f32);
    }
    let [value, start, end] = [value, *range.start(), *range.end()].map(shown);
    Err(ApiError::parameter(name, format!("{name} is {value}, it must be between {start} and {end}")))
}

/// A number as people write it: with an exponent where there would be many zeros.
pub(crate) fn shown(number: f64) -> String {
    let is_plain = number == 0.0 || (1e-5..1e16).contains(&number.abs());
    if is_plain { number.to_string() } else { format!("{number:e}") }
}

/// A whole number in a range.
pub(crate) fn whole(name: &str, value: Option<i64>, default: i64, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
    let Some(value) = value else { return Ok(default) };
    if range.contains(&value) {
        return Ok(value);
    }
    let (start, end) = (range.start(), range.end());
    Err(ApiError::parameter(name, format!("{name} is {value}, it must be between {start} and {end}")))
}

/// A count within a limit.
pub(crate) fn at_most(name: &str, what: &str, count: usize, max: usize) -> Result<(), ApiError> {
    if count <= max {
        return Ok(());
    }
    let message = format!("{count} {what}, the limit is {max}");
    Err(ApiError { kind: ErrorKind::BadRequest, message, param: Some(name.to_owned()) })
}
