//! How an answer's tokens are chosen.

use clap::Args;
use firebrick::SamplingParams;
use firebrick_checkpoint::GenerationConfig;

use super::values::quantity_u32;

/// Sampling parameters; those not given are the model's own (generation_config.json).
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 always takes the most likely token; larger values are freer [default: the model's, else 0.7]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,

    /// Draw from the most likely tokens that together have this probability [default: the model's, else 1]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,

    /// Draw from so many most likely tokens; 0 is all [default: the model's, else 0]
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,

    /// Draw from tokens at least this fraction as likely as the most likely one [default: the model's, else 0]
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,

    /// Above 1: tokens that occurred become less likely [default: the model's, else 1]
    #[arg(long, value_name = "FACTOR")]
    pub repetition_penalty: Option<f32>,

    /// The same number gives the same answer [default: another one each time]
    #[arg(long)]
    pub seed: Option<u64>,

    /// Tokens of an answer, at most [default: as many as the model's length allows]
    #[arg(long, value_name = "TOKENS", value_parser = quantity_u32)]
    pub max_tokens: Option<u32>,

    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

impl SamplingArgs {
    /// The engine's parameters, or what is wrong with them.
    pub fn params(&self, model: &GenerationConfig) -> Result<SamplingParams, String> {
        const TEMPERATURE: f32 = 0.7;
        let params = SamplingParams {
            temperature: self.temperature.or(model.temperature).unwrap_or(TEMPERATURE),
            top_p: self.top_p.or(model.top_p).unwrap_or(1.0),
            top_k: self.top_k.or(model.top_k).filter(|&k| k > 0),
            min_p: self.min_p.or(model.min_p).unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.or(model.repetition_penalty).unwrap_or(1.0),
            seed: self.seed,
            max_tokens: self.max_tokens.or(model.max_new_tokens),
            ..SamplingParams::default()
        };
        let check = |holds: bool, name: &str, value: f32, range: &str| {
            if holds { Ok(()) } else { Err(format!("--{name} is {value}, but must be {range}")) }
        };
        check((0.0..=100.0).contains(&params.temperature), "temperature", params.temperature, "from 0 to 100")?;
        check(params.top_p > 0.0 && params.top_p <= 1.0, "top-p", params.top_p, "above 0 and at most 1")?;
        check((0.0..=1.0).contains(&params.min_p), "min-p", params.min_p, "from 0 to 1")?;
        let penalty = params.repetition_penalty;
        check(penalty > 0.0 && penalty <= 100.0, "repetition-penalty", penalty, "above 0 and at most 100")?;
        Ok(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_comes_before_the_model() {
        let model = GenerationConfig { temperature: Some(0.2), top_p: Some(0.5), ..GenerationConfig::default() };
        let args = SamplingArgs { temperature: Some(1.5), ..SamplingArgs::default() };
        let params = args.params(&model).expect("valid");
        assert_eq!((params.temperature, params.top_p), (1.5, 0.5));
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        let args = SamplingArgs { top_p: Some(f32::NAN), ..SamplingArgs::default() };
        assert!(args.params(&GenerationConfig::default()).expect_err("not a number").contains("--top-p"));
    }
}
