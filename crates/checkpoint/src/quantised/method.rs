//! `quantization_config` of config.json: what is supported, and what is refused by name.

use super::packed::{Order, PackedFormat};
use crate::config::Fields;
use crate::error::{Fault, printable};
use serde_json::Value;
use std::fmt;

/// How the weights of linear layers are stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantisation {
    /// As the configuration and vLLM's `--quantization` call it.
    method: &'static str,
    bits: usize,
    pub(super) format: Format,
}

/// Which tensors there are and what they mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Format {
    Packed(PackedFormat),
    Scaled {
        /// Rows and columns that share a scale, where the configuration says so; else the scales' shape tells.
        block: Option<[usize; 2]>,
    },
}

/// What is said where something else is asked for.
const SUPPORTED: &str = "supported: GPTQ (4, 8 bits), AWQ (4 bits, gemm), compressed-tensors (pack-quantized, int-quantized, \
                         float-quantized), FP8 (E4M3), and GGUF files";

impl Quantisation {
    /// The method that a configuration names; `None` where the weights are plain.
    pub(crate) fn read(fields: Fields) -> Result<Option<Self>, Fault> {
        for key in ["quantization_config", "compression_config"] {
            if let Some(value) = fields.get(key) {
                return Self::of(Fields::new(value, &fields.name(key))?).map(Some);
            }
        }
        Ok(None)
    }

    fn of(fields: Fields) -> Result<Self, Fault> {
        match fields.text("quant_method")?.unwrap_or("unnamed") {
            "gptq" => Self::gptq(fields),
            "awq" => Self::awq(fields),
            "compressed-tensors" => Self::compressed_tensors(fields),
            "fp8" => Ok(Self::scaled("fp8", block(fields, "weight_block_size")?)),
            other => Err(unsupported(fields, "quant_method", other)),
        }
    }

    fn gptq(fields: Fields) -> Result<Self, Fault> {
        let zero_offset = match fields.text("checkpoint_format")?.unwrap_or("gptq") {
            "gptq" => 1,
            "gptq_v2" => 0,
            other => return Err(unsupported(fields, "checkpoint_format", other)),
        };
        if fields.get("dynamic").and_then(Value::as_object).is_some_and(|rules| !rules.is_empty()) {
            return Err(unsupported(fields, "dynamic", "other bits for some layers"));
        }
        Ok(Self::packed("gptq", PackedFormat { order: Order::Gptq, bits: bits(fields, &["bits"])?, zero_offset }))
    }

    fn awq(fields: Fields) -> Result<Self, Fault> {
        match fields.text("version")?.unwrap_or("gemm").to_ascii_lowercase().as_str() {
            "gemm" => {}
            other => return Err(unsupported(fields, "version", other)),
        }
        match bits(fields, &["bits", "w_bit"])? {
            4 => Ok(Self::packed("awq", PackedFormat { order: Order::Awq, bits: 4, zero_offset: 0 })),
            other => Err(unsupported(fields, "bits", &other.to_string())),
        }
    }

    fn compressed_tensors(fields: Fields) -> Result<Self, Fault> {
        let groups = fields.get("config_groups").and_then(Value::as_object);
        let weights = match groups.map(|groups| groups.values().collect::<Vec<_>>()).as_deref() {
            Some([group]) => group.get("weights").filter(|weights| weights.is_object()),
            Some([_, _, ..]) => return Err(unsupported(fields, "config_groups", "several groups of layers")),
            _ => None,
        };
        let weights = weights.ok_or_else(|| Fault::corrupt(fields.name("config_groups"), "names no weights"))?;
        let path = fields.name("config_groups.weights");
        let weights = Fields::new(weights, &path)?;
        match fields.text("format")?.unwrap_or("dense") {
            "pack-quantized" => {
                let bits = bits(weights, &["num_bits"])?;
                Ok(Self::packed("compressed-tensors", PackedFormat { order: Order::Rows, bits, zero_offset: 0 }))
            }
            "float-quantized" | "int-quantized" | "naive-quantized" => {
                if bits(weights, &["num_bits"])? != 8 {
                    return Err(unsupported(weights, "num_bits", "4"));
                }
                Ok(Self::scaled("compressed-tensors", block(weights, "block_structure")?))
            }
            other => Err(unsupported(fields, "format", other)),
        }
    }

    fn packed(method: &'static str, format: PackedFormat) -> Self {
        Self { method, bits: format.bits, format: Format::Packed(format) }
    }

    fn scaled(method: &'static str, block: Option<[usize; 2]>) -> Self {
        Self { method, bits: 8, format: Format::Scaled { block } }
    }

    /// As the configuration and vLLM's `--quantization` call it: `gptq`, `awq`, `compressed-tensors` or `fp8`.
    pub fn method(&self) -> &'static str {
        self.method
    }
}

impl fmt::Display for Quantisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bits", self.method, self.bits)
    }
}

/// 4 or 8, under the first of the keys that is there.
fn bits(fields: Fields, keys: &[&str]) -> Result<usize, Fault> {
    for key in keys {
        match fields.usize(key)? {
            None => {}
            Some(bits @ (4 | 8)) => return Ok(bits),
            Some(bits) => return Err(unsupported(fields, key, &bits.to_string())),
        }
    }
    Err(Fault::corrupt(fields.name(keys[0]), "is missing"))
}

fn block(fields: Fields, key: &str) -> Result<Option<[usize; 2]>, Fault> {
    let Some(sizes) = fields.array(key)? else { return Ok(None) };
    let sizes: Vec<Option<u64>> = sizes.iter().map(Value::as_u64).collect();
    match sizes[..] {
        [Some(rows @ 1..=65536), Some(columns @ 1..=65536)] => Ok(Some([rows as usize, columns as usize])),
        _ => Err(Fault::corrupt(fields.name(key), "is not a number of rows and a number of columns")),
    }
}

fn unsupported(fields: Fields, key: &str, found: &str) -> Fault {
    Fault::unsupported(fields.name(key), format!("{} is not supported; {SUPPORTED}", printable(found)))
}
