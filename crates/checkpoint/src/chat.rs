//! What the small files beside the weights say about prompting and sampling.

use crate::config::Fields;
use crate::error::Fault;
use serde_json::Value;

/// Text of the marker tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a sequence.
    pub bos: Option<String>,
    /// Ends a sequence.
    pub eos: Option<String>,
    /// Fills a sequence up.
    pub pad: Option<String>,
    /// Stands for text that no token covers.
    pub unk: Option<String>,
}

/// The model's own sampling defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Softmax temperature.
    pub temperature: Option<f32>,
    /// Nucleus mass.
    pub top_p: Option<f32>,
    /// Most likely tokens kept.
    pub top_k: Option<u32>,
    /// Least probability relative to the most likely token.
    pub min_p: Option<f32>,
    /// Penalty on tokens that occurred.
    pub repetition_penalty: Option<f32>,
    /// Tokens to generate.
    pub max_new_tokens: Option<u32>,
    /// Sample, rather than take the most likely token.
    pub do_sample: Option<bool>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationConfig {
    /// Reads generation_config.json.
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let root = parse_json(text)?;
        let fields = Fields::new(&root, "")?;
        let count = |key: &str| -> Result<Option<u32>, Fault> {
            Ok(fields.usize(key)?.map(|count| u32::try_from(count).unwrap_or(u32::MAX)))
        };
        Ok(Self {
            temperature: fields.f32("temperature")?,
            top_p: fields.f32("top_p")?,
            top_k: count("top_k")?,
            min_p: fields.f32("min_p")?,
            repetition_penalty: fields.f32("repetition_penalty")?,
            max_new_tokens: count("max_new_tokens")?,
            do_sample: fields.bool("do_sample")?,
            eos_token_ids: fields.token_ids("eos_token_id")?,
        })
    }
}

/// tokenizer_config.json's part that concerns us.
#[derive(Default)]
pub(crate) struct TokenizerConfig {
    pub(crate) chat_template: Option<String>,
    pub(crate) special_tokens: SpecialTokens,
    pub(crate) add_bos: Option<bool>,
}

impl TokenizerConfig {
    /// Reads tokenizer_config.json, or special_tokens_map.json, which says the tokens in the same words.
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let root = parse_json(text)?;
        let fields = Fields::new(&root, "")?;
        Ok(Self {
            chat_template: fields.get("chat_template").map(|value| template(fields, value)).transpose()?.flatten(),
            special_tokens: SpecialTokens {
                bos: token_text(fields, "bos_token")?,
                eos: token_text(fields, "eos_token")?,
                pad: token_text(fields, "pad_token")?,
                unk: token_text(fields, "unk_token")?,
            },
            add_bos: fields.bool("add_bos_token")?,
        })
    }
}

impl SpecialTokens {
    /// Takes from `other` what is missing here.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            bos: self.bos.or(other.bos),
            eos: self.eos.or(other.eos),
            pad: self.pad.or(other.pad),
            unk: self.unk.or(other.unk),
        }
    }
}

/// Reads chat_template.json.
pub(crate) fn parse_template_file(text: &str) -> Result<Option<String>, Fault> {
    let root = parse_json(text)?;
    let fields = Fields::new(&root, "")?;
    Ok(fields.get("chat_template").map(|value| template(fields, value)).transpose()?.flatten())
}

pub(crate) fn parse_json(text: &str) -> Result<Value, Fault> {
    serde_json::from_str(text).map_err(|error| Fault::corrupt("JSON", error.to_string()))
}

/// A template, or a list of named ones of which "default" counts.
fn template(fields: Fields, value: &Value) -> Result<Option<String>, Fault> {
    match value {
        Value::String(template) => Ok(Some(template.clone())),
        Value::Array(named) => {
            let default = named.iter().find(|one| one.get("name").and_then(Value::as_str) == Some("default"));
            Ok(default.and_then(|one| one.get("template")).and_then(Value::as_str).map(str::to_owned))
        }
        other => Err(fields.wrong("chat_template", other, "a string or a list of named templates")),
    }
}

/// A token's text, or an object that holds it as `content`.
fn token_text(fields: Fields, key: &str) -> Result<Option<String>, Fault> {
    let Some(value) = fields.get(key) else { return Ok(None) };
    let text = value.as_str().or_else(|| value.get("content")?.as_str());
    match text {
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(fields.wrong(key, value, "a string or an object with content")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_of_several_templates_counts() {
        let text =
            r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        assert_eq!(TokenizerConfig::parse(text).unwrap().chat_template.as_deref(), Some("d"));
    }

    #[test]
    fn special_tokens_are_text_or_objects() {
        let text = r#"{"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "pad_token": null}"#;
        let tokens = TokenizerConfig::parse(text).unwrap().special_tokens;
        assert_eq!((tokens.bos.as_deref(), tokens.eos.as_deref(), tokens.pad), (Some("<s>"), Some("</s>"), None));
    }

    #[test]
    fn generation_settings_are_optional_and_typed() {
        let config = GenerationConfig::parse(r#"{"temperature": 0.6, "top_k": 20, "eos_token_id": [1, 2]}"#).unwrap();
        assert_eq!((config.temperature, config.top_k, config.min_p), (Some(0.6), Some(20), None));
        assert_eq!(config.eos_token_ids, [1, 2]);
        let error = GenerationConfig::parse(r#"{"top_p": "hot"}"#).unwrap_err();
        assert_eq!(error.in_file("g.json").to_string(), "g.json: top_p: is \\\"hot\\\", expected a finite number");
    }
}
