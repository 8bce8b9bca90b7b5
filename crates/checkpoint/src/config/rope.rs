//! Rotary position settings, in the forms config.json has had: `rope_theta` + `rope_scaling`, and `rope_parameters`.

use super::Fields;
use crate::error::{Fault, printable};

/// Rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f32,
    /// How the frequencies are stretched for long contexts.
    pub scaling: RopeScaling,
    /// Leading numbers of each head that are rotated; even.
    pub rotary_dim: usize,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
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
}

impl RopeConfig {
    /// The angle per position of each rotated pair, `rotary_dim / 2` of them, scaling applied.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let exponent = |pair: usize| 2.0 * pair as f64 / self.rotary_dim as f64;
        (0..self.rotary_dim / 2)
            .map(|pair| f64::from(self.theta).powf(-exponent(pair)))
            .map(|frequency| (frequency / self.scaling.divisor(frequency)) as f32)
            .collect()
    }
}

impl RopeScaling {
    /// What an unscaled frequency is divided by.
    pub(crate) fn divisor(&self, frequency: f64) -> f64 {
        match *self {
            Self::None => 1.0,
            Self::Linear { factor } => f64::from(factor),
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
            Some(nested) => of_object(Fields::new(nested, &flat.name(key))?, default_theta),
            None => of_object(flat, default_theta),
        };
    }
    let theta = fields.f32("rope_theta")?.unwrap_or(default_theta);
    match fields.get("rope_scaling") {
        Some(value) => Ok((theta, of_object(Fields::new(value, &fields.name("rope_scaling"))?, theta)?.1)),
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

fn of_object(fields: Fields, default_theta: f32) -> Result<(f32, RopeScaling), Fault> {
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
        other => {
            let problem = format!("{} is not supported; supported: default, linear, llama3", printable(other));
            return Err(Fault::unsupported(fields.name(key), problem));
        }
    };
    Ok((theta, scaling))
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
        let scaled = rope.inverse_frequencies();
        let plain = RopeConfig { scaling: RopeScaling::None, ..rope }.inverse_frequencies();
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
}
