//! Reading JSON objects key by key, so that every complaint names its key. `null` counts as absent.

use super::Activation;
use crate::error::{Fault, printable};
use serde_json::{Map, Value};

/// A JSON object from a file, with the path that leads to it.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: &'a str,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(value: &'a Value, path: &'a str) -> Result<Self, Fault> {
        let object = value.as_object().ok_or_else(|| Fault::corrupt(path, "is not an object"))?;
        Ok(Self { object, path })
    }

    /// The key with its path, for messages.
    pub(crate) fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The key is there, be it `null`.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    fn typed<T>(&self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, Fault> {
        self.get(key).map(|value| read(value).ok_or_else(|| self.wrong(key, value, expected))).transpose()
    }

    pub(crate) fn wrong(&self, key: &str, value: &Value, expected: &str) -> Fault {
        Fault::corrupt(self.name(key), format!("is {}, expected {expected}", printable(&value.to_string())))
    }

    pub(crate) fn usize(&self, key: &str) -> Result<Option<usize>, Fault> {
        self.typed(key, "a whole number", |value| usize::try_from(value.as_u64()?).ok())
    }

    pub(crate) fn usize_required(&self, key: &str) -> Result<usize, Fault> {
        self.usize(key)?.ok_or_else(|| Fault::corrupt(self.name(key), "is missing"))
    }

    pub(crate) fn f32(&self, key: &str) -> Result<Option<f32>, Fault> {
        self.typed(key, "a finite number", |value| Some(value.as_f64()? as f32).filter(|value| value.is_finite()))
    }

    pub(crate) fn f32_required(&self, key: &str) -> Result<f32, Fault> {
        self.f32(key)?.ok_or_else(|| Fault::corrupt(self.name(key), "is missing"))
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>, Fault> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, Fault> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(crate) fn array(&self, key: &str) -> Result<Option<&'a Vec<Value>>, Fault> {
        self.typed(key, "a list", Value::as_array)
    }

    pub(crate) fn token_id(&self, key: &str) -> Result<Option<u32>, Fault> {
        self.typed(key, "a token id", as_token_id)
    }

    /// One id or a list of them; empty when absent.
    pub(crate) fn token_ids(&self, key: &str) -> Result<Vec<u32>, Fault> {
        let read = |value: &Value| match value {
            Value::Array(ids) => ids.iter().map(as_token_id).collect(),
            id => Some(vec![as_token_id(id)?]),
        };
        Ok(self.typed(key, "a token id or a list of them", read)?.unwrap_or_default())
    }

    pub(crate) fn activation(&self, key: &str) -> Result<Option<Activation>, Fault> {
        let Some(name) = self.text(key)? else { return Ok(None) };
        match name {
            "silu" | "swish" => Ok(Some(Activation::Silu)),
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Some(Activation::GeluTanh)),
            "gelu" => Ok(Some(Activation::GeluErf)),
            "relu" => Ok(Some(Activation::Relu)),
            other => Err(Fault::unsupported(
                self.name(key),
                format!(
                    "{} is not supported; supported: silu, gelu_pytorch_tanh, gelu_new, gelu, relu",
                    printable(other)
                ),
            )),
        }
    }

    /// Refuses a switch that changes the computation in a way that is not implemented.
    pub(crate) fn refuse_if(&self, key: &str, unsupported: bool) -> Result<(), Fault> {
        match self.bool(key)? {
            Some(value) if value == unsupported => {
                Err(Fault::unsupported(self.name(key), format!("{value} is not supported")))
            }
            _ => Ok(()),
        }
    }
}

fn as_token_id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}
