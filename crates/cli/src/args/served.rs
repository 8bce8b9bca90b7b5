//! How a served model is named, and what it is told about itself.

use clap::{Args, ValueEnum};

use super::values::{reasoning_parser, tool_call_parser};

/// What clients see of a model beside its answers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ServedArgs {
    /// Names that clients may use; the first is shown [default: the model as given]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub served_model_name: Vec<String>,

    /// Sampling defaults: auto (the model's generation_config.json) or vllm (neutral ones)
    #[arg(long, value_enum, default_value = "auto")]
    pub generation_config: GenerationConfigSource,

    /// JSON that replaces single sampling defaults, such as '{"temperature": 0.5}'
    #[arg(long, value_name = "JSON")]
    pub override_generation_config: Option<String>,

    /// JSON object of chat template variables that requests do not set themselves, such as '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON")]
    pub default_chat_template_kwargs: Option<String>,

    /// How the model writes tool calls: auto (seen from its chat template), none, or a name such as hermes or mistral
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = tool_call_parser)]
    pub tool_call_parser: String,

    /// How the model marks reasoning: auto (seen from its chat template), none, or a name such as qwen3 or deepseek_r1
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = reasoning_parser)]
    pub reasoning_parser: String,
}

/// `--generation-config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GenerationConfigSource {
    /// The model's generation_config.json
    Auto,
    /// Neutral values
    Vllm,
}
