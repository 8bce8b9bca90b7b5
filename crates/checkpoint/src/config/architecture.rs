//! The closed set of model architectures.

use crate::error::{Fault, printable};
use std::fmt;

/// A supported architecture, named as in config.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama 1 to 3, SmolLM2, TinyLlama and kin.
    Llama,
    /// Mistral 7B and kin.
    Mistral,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
    /// Phi 3 and kin: Phi 3.5, Phi 4.
    Phi3,
    /// Gemma 3, text.
    Gemma3,
    /// OPT.
    Opt,
    /// GPT-2.
    Gpt2,
}

impl Architecture {
    /// Every architecture, in the order they are listed to users.
    pub const ALL: [Self; 8] =
        [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Phi3, Self::Gemma3, Self::Opt, Self::Gpt2];

    /// The name in config.json's `architectures`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Phi3 => "Phi3ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
            Self::Opt => "OPTForCausalLM",
            Self::Gpt2 => "GPT2LMHeadModel",
        }
    }

    /// By the name in `architectures`. Gemma 3 with vision is run as its text part.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "Gemma3ForConditionalGeneration" => Some(Self::Gemma3),
            _ => Self::ALL.into_iter().find(|architecture| architecture.name() == name),
        }
    }

    /// By config.json's `model_type`, for files without `architectures`.
    pub(crate) fn from_model_type(model_type: &str) -> Option<Self> {
        match model_type {
            "llama" => Some(Self::Llama),
            "mistral" => Some(Self::Mistral),
            "qwen2" => Some(Self::Qwen2),
            "qwen3" => Some(Self::Qwen3),
            "phi3" => Some(Self::Phi3),
            "gemma3" | "gemma3_text" => Some(Self::Gemma3),
            "opt" => Some(Self::Opt),
            "gpt2" => Some(Self::Gpt2),
            _ => None,
        }
    }

    /// Whether files have a layer's queries, keys and values in one matrix, and the gates and values of its MLP.
    pub fn fuses_projections(self) -> bool {
        self == Self::Phi3
    }

    /// By GGUF's `general.architecture`; Mistral's files say llama.
    pub(crate) fn from_gguf(name: &str) -> Option<Self> {
        match name {
            "llama" => Some(Self::Llama),
            "qwen2" => Some(Self::Qwen2),
            "qwen3" => Some(Self::Qwen3),
            "gemma3" => Some(Self::Gemma3),
            "gpt2" => Some(Self::Gpt2),
            _ => None,
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The refusal of a model by name, listing what is supported.
pub(crate) fn unsupported_model(field: &str, name: &str) -> Fault {
    let supported = Architecture::ALL.map(Architecture::name).join(", ");
    Fault::unsupported(field, format!("Model {} is not supported; supported: {supported}", printable(name)))
}
