//! What a configuration must satisfy before anything is sized by it, whichever file it came from.

use super::{ModelConfig, RopeScaling};
use crate::error::Fault;

const LAYERS_MAX: usize = 4096;

/// Must pass before a list with one entry per layer is made.
pub(crate) fn check_layers(num_layers: usize) -> Result<(), Fault> {
    within("number of layers", num_layers, LAYERS_MAX)
}

/// Sizes are within generous bounds (so their products cannot overflow) and agree with each other.
pub(crate) fn check(config: &ModelConfig) -> Result<(), Fault> {
    check_layers(config.num_layers)?;
    within("vocabulary size", config.vocab_size, 1 << 24)?;
    within("hidden size", config.hidden_size, 1 << 20)?;
    within("intermediate size", config.intermediate_size, 1 << 22)?;
    within("number of heads", config.num_heads, 1 << 12)?;
    within("number of key/value heads", config.num_kv_heads, 1 << 12)?;
    within("head size", config.head_dim, 1 << 12)?;
    within("number of positions", config.max_position_embeddings, 1 << 28)?;
    if !config.num_heads.is_multiple_of(config.num_kv_heads) {
        let problem = format!("{} does not divide the {} heads", config.num_kv_heads, config.num_heads);
        return Err(Fault::corrupt("number of key/value heads", problem));
    }
    if config.position_offset.is_some() && config.query_size() != config.hidden_size {
        let problem = format!("{} heads do not divide hidden size {}", config.num_heads, config.hidden_size);
        return Err(Fault::corrupt("number of heads", problem));
    }
    if config.sliding_window == Some(0) {
        return Err(Fault::corrupt("sliding window", "is 0"));
    }
    positive("norm epsilon", config.norm_eps)?;
    positive("attention scale", config.attention_scale)?;
    for (name, cap) in
        [("attention softcap", config.attention_softcap), ("final logit softcap", config.final_logit_softcap)]
    {
        cap.map_or(Ok(()), |cap| positive(name, cap))?;
    }
    check_rope(config)
}

fn check_rope(config: &ModelConfig) -> Result<(), Fault> {
    let Some(rope) = &config.rope else { return Ok(()) };
    positive("rope theta", rope.theta)?;
    config.local_rope_theta.map_or(Ok(()), |theta| positive("local rope theta", theta))?;
    if !rope.rotary_dim.is_multiple_of(2) || rope.rotary_dim == 0 || rope.rotary_dim > config.head_dim {
        let problem =
            format!("{} must be even, above 0 and at most the head size {}", rope.rotary_dim, config.head_dim);
        return Err(Fault::corrupt("rotary size", problem));
    }
    match rope.scaling {
        RopeScaling::None => Ok(()),
        RopeScaling::Linear { factor } => positive("rope scaling factor", factor),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            positive("rope scaling factor", factor)?;
            positive("low_freq_factor", low_freq_factor)?;
            within("original_max_position_embeddings", original_max_position_embeddings, 1 << 28)?;
            if high_freq_factor > low_freq_factor {
                return Ok(());
            }
            Err(Fault::corrupt("high_freq_factor", "must be above low_freq_factor"))
        }
        RopeScaling::Long(ref long) => {
            within("original_max_position_embeddings", long.original_max_position_embeddings, 1 << 28)?;
            positive("attention_factor", long.attention_factor)?;
            for (name, factors) in [("short_factor", &long.short_factors), ("long_factor", &long.long_factors)] {
                if factors.len() != rope.rotary_dim / 2 {
                    let problem = format!("has {} numbers for {} rotated pairs", factors.len(), rope.rotary_dim / 2);
                    return Err(Fault::corrupt(name, problem));
                }
                factors.iter().try_for_each(|factor| positive(name, *factor))?;
            }
            Ok(())
        }
    }
}

fn within(name: &str, value: usize, max: usize) -> Result<(), Fault> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    Err(Fault::corrupt(name, format!("is {value}, expected 1 to {max}")))
}

fn positive(name: &str, value: f32) -> Result<(), Fault> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Fault::corrupt(name, format!("is {value}, expected a positive number")))
}
