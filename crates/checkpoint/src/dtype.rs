//! Number formats: the three a model computes in, and those that files store.

use std::fmt;
use std::str::FromStr;

/// A number format that weights are handed over in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single: wide range, short mantissa.
    BF16,
}

impl Dtype {
    /// Bytes per number.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        })
    }
}

/// Format of the keys and values of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// That of a form of weights, where the device computes in it.
    Float(Dtype),
    /// FP8 with 4 bits of exponent and 3 of fraction.
    E4m3,
}

impl KvDtype {
    /// Bytes per number.
    pub const fn size(self) -> usize {
        match self {
            Self::Float(dtype) => dtype.size(),
            Self::E4m3 => 1,
        }
    }
}

impl From<Dtype> for KvDtype {
    fn from(dtype: Dtype) -> Self {
        Self::Float(dtype)
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(dtype) => dtype.fmt(f),
            Self::E4m3 => f.pad("fp8_e4m3"),
        }
    }
}

/// A dtype name that is none of the known ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown dtype {0:?}; supported: float32 (float), float16 (half), bfloat16")]
pub struct UnknownDtype(pub String);

impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(name: &str) -> Result<Self, UnknownDtype> {
        match name {
            "float32" | "float" => Ok(Self::F32),
            "float16" | "half" => Ok(Self::F16),
            "bfloat16" => Ok(Self::BF16),
            other => Err(UnknownDtype(other.to_owned())),
        }
    }
}

/// How a tensor lies in its file. The quantised formats are GGUF's: numbers in blocks that share scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the formats' own names")]
pub enum StoredDtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// 4 bits, a scale per 32.
    Q4_0,
    /// 4 bits, a scale and a minimum per 32.
    Q4_1,
    /// 5 bits, a scale per 32.
    Q5_0,
    /// 5 bits, a scale and a minimum per 32.
    Q5_1,
    /// 8 bits, a scale per 32.
    Q8_0,
    /// 4 bits, 6-bit scales and minima per 32 in blocks of 256.
    Q4_K,
    /// 5 bits, 6-bit scales and minima per 32 in blocks of 256.
    Q5_K,
    /// 6 bits, 8-bit scales per 16 in blocks of 256.
    Q6_K,
}

impl StoredDtype {
    /// Every format, in the order of GGUF's numbers except bfloat16, which came late.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::BF16,
    ];

    /// Numbers per block; 1 for plain formats.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// The plain format, where it is one.
    pub const fn plain(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::BF16 => Some(Dtype::BF16),
            _ => None,
        }
    }

    /// GGUF's number for the format.
    pub(crate) const fn ggml_number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::BF16 => 30,
        }
    }

    /// The format with GGUF's number.
    pub(crate) fn from_ggml(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|stored| stored.ggml_number() == number)
    }

    /// Bytes of `elements` numbers; `None` where they do not fill whole blocks or overflow.
    pub(crate) fn bytes_of(self, elements: usize) -> Option<usize> {
        let whole = elements.is_multiple_of(self.block_len());
        whole.then_some(elements / self.block_len())?.checked_mul(self.block_bytes())
    }
}

impl fmt::Display for StoredDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dtype_names_round_trip_and_aliases_parse() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        assert_eq!("half".parse(), Ok(Dtype::F16));
        assert_eq!("float".parse(), Ok(Dtype::F32));
        assert!("int8".parse::<Dtype>().unwrap_err().to_string().contains("bfloat16"));
    }

    #[test]
    fn partial_blocks_have_no_size() {
        assert_eq!(StoredDtype::Q4_K.bytes_of(512), Some(288));
        assert_eq!(StoredDtype::Q4_K.bytes_of(128), None);
        assert_eq!(StoredDtype::F32.bytes_of(usize::MAX / 2), None);
    }
}
