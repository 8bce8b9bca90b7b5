//! Vectors of texts: how requests for them are made, and what is made of the hidden states.

use firebrick_engine::Pooling;

use crate::answer::CollectedChoice;
use crate::auth::Caller;
use crate::error::{ApiError, ErrorKind};
use crate::openai::{Prompt, SamplingFields, Usage};
use crate::prompt::Source;
use crate::serve_request::Answered;
use crate::state::Model;
use crate::validate::Draft;

/// The fields that all requests for vectors share.
#[derive(Default)]
pub struct PoolingFields {
    /// The model's served name.
    pub model: Option<String>,
    /// `mean`, `last` or `cls`.
    pub pooling: Option<String>,
    /// Put the model's special tokens around texts.
    pub add_special_tokens: Option<bool>,
    /// Keep this many of a text's last tokens; -1 keeps what fits.
    pub truncate_prompt_tokens: Option<i64>,
    /// Lower runs first.
    pub priority: Option<i64>,
}

/// How a request wants its vectors made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedPooling {
    /// As the model is meant to be used.
    Default,
    /// As the request says.
    Named(Pooling),
}

impl AskedPooling {
    /// What is done with this model.
    pub fn of(self, model: &Model) -> Pooling {
        match self {
            Self::Default => model.pooling,
            Self::Named(pooling) => pooling,
        }
    }
}

/// A request that computes its prompts and generates nothing.
pub fn draft(caller: Caller, prompt: Prompt, fields: PoolingFields) -> Result<Draft, ApiError> {
    let pooling = pooling(fields.pooling.as_deref())?;
    let sampling = SamplingFields {
        model: fields.model,
        max_tokens: Some(0),
        truncate_prompt_tokens: fields.truncate_prompt_tokens,
        priority: fields.priority,
        ..SamplingFields::default()
    };
    let add_special_tokens = fields.add_special_tokens.unwrap_or(true);
    Ok(Draft {
        caller,
        source: Source::Prompt { prompt, add_special_tokens },
        sampling,
        logprobs: None,
        echo: false,
        pooling: Some(pooling),
        message: None,
        default_max_tokens: None,
    })
}

fn pooling(asked: Option<&str>) -> Result<AskedPooling, ApiError> {
    match asked.map(str::to_ascii_lowercase).as_deref() {
        None => Ok(AskedPooling::Default),
        Some("last") => Ok(AskedPooling::Named(Pooling::Last)),
        Some("mean") => Ok(AskedPooling::Named(Pooling::Mean)),
        Some("cls") => Ok(AskedPooling::Named(Pooling::Cls)),
        Some(_) => Err(ApiError::parameter("pooling", "pooling must be one of mean, last, cls")),
    }
}

/// The vectors of all prompts, and what they cost.
pub struct Vectors {
    /// One per prompt.
    pub vectors: Vec<Vec<f32>>,
    /// The head of the answer.
    pub id: String,
    /// The served name that was asked for.
    pub model: String,
    /// Token counts.
    pub usage: Usage,
}

impl Vectors {
    /// What a pooling request was answered with.
    pub fn new(answered: Answered) -> Result<Self, ApiError> {
        let Answered { id, model, usage, choices } = answered;
        let mean = |choice: CollectedChoice| {
            let mean = choice.prompt.hidden_mean();
            mean.ok_or_else(|| ApiError::new(ErrorKind::Internal, "a prompt came back without a vector"))
        };
        Ok(Self { vectors: choices.into_iter().map(mean).collect::<Result<_, _>>()?, id, model, usage })
    }
}

/// A vector of the same direction and of length 1. The zero vector has no direction and stays.
pub fn normalized(mut vector: Vec<f32>) -> Vec<f32> {
    let norm = dot(&vector, &vector).sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
    }
    vector
}

/// The cosine of the angle between two vectors; 0 where one has no direction.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { (dot(a, b) / norms).clamp(-1.0, 1.0) } else { 0.0 }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The base64 of a vector's little-endian 32-bit floats.
pub fn base64(vector: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place > group.len() { '=' } else { char::from(digit) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_floats_bytes() {
        assert_eq!(base64(&[]), "");
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(base64(&[0.5, 1.0, 2.0]), "AAAAPwAAgD8AAABA");
    }

    #[test]
    fn a_normalized_vector_has_length_one_and_zero_stays() {
        assert_eq!(normalized(vec![3.0, 4.0]), [0.6, 0.8]);
        assert_eq!(normalized(vec![0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(normalized(vec![1e30, 0.0]), [1.0, 0.0], "squares beyond 32 bits");
    }

    #[test]
    fn the_cosine_ignores_lengths() {
        assert!((cosine(&[1.0, 0.0], &[5.0, 5.0]) - 0.5_f64.sqrt()).abs() < 1e-12);
        assert_eq!(cosine(&[2.0, 0.0], &[-3.0, 0.0]), -1.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
    }
}
