//! Fields that may have several shapes, read without building a generic tree.

use std::fmt;

use schemars::JsonSchema;
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A value or a list of values.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "TextOrTexts")]
pub struct OneOrMany(pub Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrManyVisitor;
        impl<'de> Visitor<'de> for OneOrManyVisitor {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = seq.next_element()? {
                    values.push(value);
                }
                Ok(OneOrMany(values))
            }
        }
        deserializer.deserialize_any(OneOrManyVisitor)
    }
}

/// The prompt of a completion request.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "PromptShapes")]
pub enum Prompt {
    /// One or several texts.
    Texts(Vec<String>),
    /// One or several lists of token ids.
    Tokens(Vec<Vec<u32>>),
}

/// One element of a list of prompts; a bare number belongs to a single list of tokens.
enum PromptElement {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

const PROMPT_SHAPES: &str = "a string, a list of strings, a list of token ids or a list of lists of token ids";

impl<'de> Deserialize<'de> for PromptElement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ElementVisitor;
        impl<'de> Visitor<'de> for ElementVisitor {
            type Value = PromptElement;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string, a token id or a list of token ids")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<PromptElement, E> {
                Ok(PromptElement::Text(text.to_owned()))
            }

            fn visit_u64<E: Error>(self, token: u64) -> Result<PromptElement, E> {
                let token = u32::try_from(token).map_err(|_| E::custom(format!("{token} is not a token id")))?;
                Ok(PromptElement::Token(token))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<PromptElement, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = seq.next_element()? {
                    tokens.push(token);
                }
                Ok(PromptElement::Tokens(tokens))
            }
        }
        deserializer.deserialize_any(ElementVisitor)
    }
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PromptVisitor;
        impl<'de> Visitor<'de> for PromptVisitor {
            type Value = Prompt;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str(PROMPT_SHAPES)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Prompt, E> {
                Ok(Prompt::Texts(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompt, A::Error> {
                let Some(first) = seq.next_element()? else { return Ok(Prompt::Texts(Vec::new())) };
                match first {
                    PromptElement::Text(text) => Ok(Prompt::Texts(rest_of(text, seq)?)),
                    PromptElement::Token(token) => Ok(Prompt::Tokens(vec![rest_of(token, seq)?])),
                    PromptElement::Tokens(tokens) => Ok(Prompt::Tokens(rest_of(tokens, seq)?)),
                }
            }
        }
        deserializer.deserialize_any(PromptVisitor)
    }
}

/// The first element and all others, which must have its type.
fn rest_of<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(first: T, mut seq: A) -> Result<Vec<T>, A::Error> {
    let mut values = vec![first];
    while let Some(value) = seq.next_element()? {
        values.push(value);
    }
    Ok(values)
}

/// The shapes of [`OneOrMany`], for the description of the API.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum TextOrTexts {
    Text(String),
    Texts(Vec<String>),
}

/// The shapes of [`Prompt`], for the description of the API.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum PromptShapes {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// The shape of a field that is refused unless it says nothing: its content is skipped, never kept.
#[derive(Clone, Copy, Debug, PartialEq, JsonSchema)]
#[schemars(with = "serde_json::Value")]
pub enum Loose {
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(f64),
    /// The word `none` or an empty text.
    NoneText,
    /// Any other text.
    Text,
    /// `[]` or `{}`.
    Empty,
    /// A list or an object with something in it.
    Filled,
}

impl Loose {
    /// Whether the value asks for nothing: `false`, `"none"`, `[]`, `{}`.
    pub fn is_neutral(self) -> bool {
        matches!(self, Self::Bool(false) | Self::NoneText | Self::Empty)
    }
}

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LooseVisitor)
    }
}

struct LooseVisitor;

impl<'de> Visitor<'de> for LooseVisitor {
    type Value = Loose;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Loose, E> {
        Ok(Loose::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Loose, E> {
        Ok(Loose::Number(value as f64))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Loose, E> {
        Ok(Loose::Number(value as f64))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Loose, E> {
        Ok(Loose::Number(value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Loose, E> {
        Ok(if text.is_empty() || text == "none" { Loose::NoneText } else { Loose::Text })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Loose, A::Error> {
        let mut shape = Loose::Empty;
        while seq.next_element::<IgnoredAny>()?.is_some() {
            shape = Loose::Filled;
        }
        Ok(shape)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
        let mut shape = Loose::Empty;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            shape = Loose::Filled;
        }
        Ok(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(text: &str) -> Result<Prompt, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn a_prompt_has_four_shapes() {
        assert_eq!(prompt(r#""a""#).expect("text"), Prompt::Texts(vec!["a".to_owned()]));
        assert_eq!(prompt(r#"["a","b"]"#).expect("texts"), Prompt::Texts(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(prompt("[1,2]").expect("tokens"), Prompt::Tokens(vec![vec![1, 2]]));
        assert_eq!(prompt("[[1],[2,3]]").expect("token lists"), Prompt::Tokens(vec![vec![1], vec![2, 3]]));
        assert_eq!(prompt("[]").expect("empty"), Prompt::Texts(Vec::new()));
    }

    #[test]
    fn shapes_do_not_mix() {
        for text in
            [r#"["a",1]"#, r#"[1,"a"]"#, "[[1],2]", "[1,[2]]", "[-1]", "[1.5]", "[4294967296]", "{}", "1", "[[[1]]]"]
        {
            assert!(prompt(text).is_err(), "{text}");
        }
    }

    #[test]
    fn empty_values_are_neutral() {
        let loose = |text| serde_json::from_str::<Loose>(text).expect("any value").is_neutral();
        assert!(loose("false") && loose("[]") && loose("{}") && loose("\"none\""));
        assert!(!loose("true") && !loose("[0]") && !loose("{\"a\":1}") && !loose("\"auto\"") && !loose("0"));
    }
}
