//! Stored numbers: the first prompt of a `reference.safetensors`, as `tests/fixtures/README.md` describes it.

use std::fs;
use std::path::Path;

use firebrick::TokenId;
use serde_json::{Map, Value};

use super::numbers::Numbers;
use crate::failure::Failure;

/// Far more than any reference takes.
const BYTES_MAX: u64 = 1 << 30;

/// A prompt and what a model should compute for it.
#[derive(Debug)]
pub struct Reference {
    /// The prompt's tokens.
    pub prompt: Vec<TokenId>,
    /// What is stored of the rest.
    pub numbers: Numbers,
}

impl Reference {
    /// Reads a file.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let size = fs::metadata(path).map_err(|error| Failure::Run(format!("cannot read {shown}: {error}")))?.len();
        if size > BYTES_MAX {
            return Err(Failure::Run(format!("{shown} has {size} bytes, more than a reference can have")));
        }
        let bytes = fs::read(path).map_err(|error| Failure::Run(format!("cannot read {shown}: {error}")))?;
        Self::parse(&bytes).map_err(|problem| Failure::Run(format!("{shown} is not a reference: {problem}")))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let file = File::new(bytes).ok_or("it is not a safetensors file")?;
        let prompt: Vec<TokenId> = file.integers("prompt.0")?;
        let logits = file.floats("logits.0")?;
        let layers = (0..).map_while(|layer| file.floats(&format!("hidden.0.{layer}")).ok()).collect();
        let greedy = file.integers("greedy.0")?;
        if prompt.is_empty() || !logits.len().is_multiple_of(prompt.len()) {
            return Err("logits.0 has not one row for each token of prompt.0".to_owned());
        }
        let vocab_size = logits.len() / prompt.len();
        Ok(Self { prompt, numbers: Numbers { layers, logits, vocab_size, greedy } })
    }
}

/// A safetensors file: the length of a JSON header, the header, the data.
struct File<'a> {
    header: Map<String, Value>,
    data: &'a [u8],
}

impl<'a> File<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk::<8>()?;
        let (header, data) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        Some(Self { header: serde_json::from_slice(header).ok()?, data })
    }

    fn words(&self, name: &str, dtype: &str) -> Result<&'a [[u8; 4]], String> {
        let entry = self.header.get(name).ok_or_else(|| format!("it has no {name}"))?;
        let offset = |index: usize| usize::try_from(entry["data_offsets"][index].as_u64()?).ok();
        let range = offset(0).zip(offset(1)).and_then(|(start, end)| self.data.get(start..end));
        match range {
            Some(bytes) if entry["dtype"] == dtype => Ok(bytes.as_chunks::<4>().0),
            _ => Err(format!("{name} is not a tensor of {dtype} in it")),
        }
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>, String> {
        Ok(self.words(name, "F32")?.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn integers(&self, name: &str) -> Result<Vec<TokenId>, String> {
        Ok(self.words(name, "I32")?.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    #[test]
    fn a_reference_is_read_and_damaged_ones_are_refused() {
        let header = r#"{"prompt.0":{"dtype":"I32","shape":[1],"data_offsets":[0,4]},
            "logits.0":{"dtype":"F32","shape":[1,2],"data_offsets":[4,12]},
            "greedy.0":{"dtype":"I32","shape":[1],"data_offsets":[12,16]}}"#;
        let data: Vec<u8> = [7u32.to_le_bytes(), 1f32.to_le_bytes(), 2f32.to_le_bytes(), 9u32.to_le_bytes()].concat();
        let whole = file(header, &data);
        let reference = Reference::parse(&whole).expect("valid");
        assert_eq!((&reference.prompt[..], &reference.numbers.greedy[..]), (&[7][..], &[9][..]));
        assert_eq!((reference.numbers.logits, reference.numbers.vocab_size), (vec![1.0, 2.0], 2));
        for length in 0..whole.len() {
            assert!(Reference::parse(&whole[..length]).is_err(), "cut to {length} bytes");
        }
    }
}
