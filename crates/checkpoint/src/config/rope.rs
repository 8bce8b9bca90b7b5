//! Rotary position settings, in the forms config.json has had: `rope_theta` + `rope_scaling`, and `rope_parameters`.

use std::sync::Arc;

use super::Fields;
use crate::error::{Fault, printable};

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f32,
    /// How the frequencies are stretched for long contexts.
    pub scaling: RopeScaling,
    /// Leading numbers of each head that are rotated; even.
    pub rotary_dim: usize,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by the factor.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3.1: long wavelengths divided, short ones kept, a smooth ramp between.
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f32,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f32,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Context length before stretching.
        original_max_position_embeddings: usize,
    },
    /// LongRoPE.
    Long(Arc<LongRope>),
}

/// LongRoPE (Ding et al., 2024): every frequency has a divisor of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// The divisors where no sequence can be longer than the original context.
    pub short_factors: Vec<f32>,
    /// Those where sequences can be: of short ones then too, so that what is cached of a sequence stays right as it grows.
    pub long_factors: Vec<f32>,
    /// Context length before stretching.
    pub original_max_position_embeddings: usize,
    /// What rotated numbers are multiplied by.
    pub attention_factor: f32,
}

impl RopeConfig {
    /// The angle per position of each rotated pair, `rotary_dim / 2` of them, scaling for sequences of up to
    /// `max_model_len` tokens applied.
    pub fn inverse_frequencies(&self, max_model_len: usize) -> Vec<f32> {
        let frequency = |pair: usize| f64::from(self.theta).powf(-2.0 * pair as f64 / self.rotary_dim as f64);
        (0..self.rotary_dim / 2)
            .map(|pair| (frequency(pair) / self.scaling.divisor(pair, frequency(pair), max_model_len)) as f32)
            .collect()
    }

    /// What rotated numbers are multiplied by.
    pub fn magnitude(&self) -> f32 {
        match &self.scaling {
            RopeScaling::Long(long) => long.attention_factor,
            _ => 1.0,
        }
    }
}

impl RopeScaling {
    /// What the unscaled frequency of a pair is divided by.
    pub(crate) fn divisor(&self, pair: usize, frequency: f64, max_model_len: usize) -> f64 {
        match *self {
            Self::None => 1.0,
            Self::Linear { factor } => f64::from(factor),
            Self::Long(ref long) => {
                let is_short = max_model_len <= long.original_max_position_embeddings;
                f64::from(if is_short { &long.short_factors } else { &long.long_factors }[pair])
            }
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
                let turns = original_max_position_embeddings as f64 * frequency / std::f64::consts::TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                1.0 / ((1.0 - kept) / f64::from(factor) + kept)
            }
        }
    }
}

/// Which layers' settings are wanted, where `rope_parameters` tells them apart.
#[derive(Clone, Copy)]
pub(super) enum RopeLayers {
    Full,
    Sliding,
}

/// Theta and scaling of some layers: `rope_parameters` where present, else `rope_theta` and `rope_scaling`.
pub(super) fn read(fields: Fields, layers: RopeLayers, default_theta: f32) -> Result<(f32, RopeScaling), Fault> {
    if let Some(value) = fields.get("rope_parameters") {
        let path = fields.name("rope_parameters");
        let flat = Fields::new(value, &path)?;
        let key = match layers {
            RopeLayers::Full => "full_attention",
            RopeLayers::Sliding => "sliding_attention",
        };
        return match flat.get(key) {
            Some(nested) => of_object(Fields::new(nested, &flat.name(key))?, fields, default_theta),
            None => of_object(flat, fields, default_theta),
        };
    }
    let theta = fields.f32("rope_theta")?.unwrap_or(default_theta);
    match fields.get("rope_scaling") {
        Some(value) => Ok((theta, of_object(Fields::new(value, &fields.name("rope_scaling"))?, fields, theta)?.1)),
        None => Ok((theta, RopeScaling::None)),
    }
}

/// The part of each head that is rotated, which either form may name.
pub(super) fn rotated_part(fields: Fields) -> Result<f32, Fault> {
    const KEY: &str = "partial_rotary_factor";
    let nested = match fields.get("rope_parameters") {
        Some(value) => Fields::new(value, &fields.name("rope_parameters"))?.f32(KEY)?,
        None => None,
    };
    Ok(fields.f32(KEY)?.or(nested).unwrap_or(1.0))
}

/// `whole`: the configuration that it is a part of.
fn of_object(fields: Fields, whole: Fields, default_theta: f32) -> Result<(f32, RopeScaling), Fault> {
    let theta = fields.f32("rope_theta")?.unwrap_or(default_theta);
    let key = if fields.get("rope_type").is_some() { "rope_type" } else { "type" };
    let scaling = match fields.text(key)?.unwrap_or("default") {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: fields.f32_required("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: fields.f32_required("factor")?,
            low_freq_factor: fields.f32_required("low_freq_factor")?,
            high_freq_factor: fields.f32_required("high_freq_factor")?,
            original_max_position_embeddings: fields.usize_required("original_max_position_embeddings")?,
        },
        "longrope" | "su" => RopeScaling::Long(Arc::new(long(fields, whole)?)),
        other => {
            let problem =
                format!("{} is not supported; supported: default, linear, llama3, longrope", printable(other));
            return Err(Fault::unsupported(fields.name(key), problem));
        }
    };
    Ok((theta, scaling))
}

/// As `_compute_longrope_parameters` of transformers reads them.
fn long(fields: Fields, whole: Fields) -> Result<LongRope, Fault> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let factors = |key: &str| -> Result<Vec<f32>, Fault> {
        let values = fields.array(key)?.ok_or_else(|| Fault::corrupt(fields.name(key), "is missing"))?;
        let value = |value: &serde_json::Value| value.as_f64().map(|value| value as f32);
        let not_numbers = || Fault::corrupt(fields.name(key), "is not a list of numbers");
        values.iter().map(value).collect::<Option<_>>().ok_or_else(not_numbers)
    };
    let original = match fields.usize(ORIGINAL)? {
        Some(original) => original,
        None => whole.usize_required(ORIGINAL)?,
    };
    let stretch = match fields.f32("factor")? {
        Some(factor) => f64::from(factor),
        None => whole.usize("max_position_embeddings")?.unwrap_or(original) as f64 / original.max(1) as f64,
    };
    let computed = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() };
    Ok(LongRope {
        short_factors: factors("short_factor")?,
        long_factors: factors("long_factor")?,
        original_max_position_embeddings: original,
        attention_factor: fields.f32("attention_factor")?.unwrap_or(computed as f32),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_short_wavelengths_and_divides_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let rope = RopeConfig { theta: 500_000.0, scaling, rotary_dim: 128 };
        let scaled = rope.inverse_frequencies(131_072);
        let plain = RopeConfig { scaling: RopeScaling::None, ..rope }.inverse_frequencies(131_072);
        assert_eq!(scaled[0], plain[0]);
        assert!((plain[63] / scaled[63] - 8.0).abs() < 1e-4);
        // Wavelength 2π/f between 8192/4 and 8192/1: the published formula by hand for pair 32.
        let frequency = 500_000f64.powf(-64.0 / 128.0);
        let wavelength = std::f64::consts::TAU / frequency;
        let smooth = (8192.0 / wavelength - 1.0) / 3.0;
        let smooth = smooth.clamp(0.0, 1.0);
        let expected = (1.0 - smooth) * frequency / 8.0 + smooth * frequency;
        assert!((f64::from(scaled[32]) / expected - 1.0).abs() < 1e-6);
    }
    #[test]
    fn longrope_divides_by_what_the_longest_sequence_wants() {
        let rope_of = |settings: serde_json::Value| {
            let lengths = serde_json::json!({
                "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096, "rope_scaling": settings
            });
            let (theta, scaling) = read(Fields::new(&lengths, "").unwrap(), RopeLayers::Full, 10_000.0).unwrap();
            RopeConfig { theta, scaling, rotary_dim: 4 }
        };
        let mut settings =
            serde_json::json!({"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [3.0, 8.0]});
        let rope = rope_of(settings.clone());
        assert_eq!(rope.inverse_frequencies(4096), [1.0, 0.005]);
        assert_eq!(rope.inverse_frequencies(4097), [1.0 / 3.0, 0.00125]);
        // sqrt(1 + ln 32 / ln 4096), as of Phi 3 mini with 128k.
        assert!((rope.magnitude() - 1.190_238).abs() < 1e-6);
        // What is stated comes before what lengths tell: sqrt(1 + ln 4096 / ln 4096).
        settings["factor"] = 4096.0.into();
        assert!((rope_of(settings.clone()).magnitude() - 2f32.sqrt()).abs() < 1e-6);
        settings["attention_factor"] = 1.5.into();
        assert_eq!(rope_of(settings).magnitude(), 1.5);
    }
}
