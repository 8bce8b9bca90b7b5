//! One file per architecture, each reading top to bottom like its paper.

mod gemma3;
mod gpt2;
mod llama;
mod opt;

pub(crate) use gemma3::Gemma3;
pub(crate) use gpt2::Gpt2;
pub(crate) use llama::Llama;
pub(crate) use opt::Opt;
