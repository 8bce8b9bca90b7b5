//! Why a model cannot be loaded or used.

use firebrick_checkpoint::{CheckpointError, PlanRefusal};
use firebrick_engine::{ConfigError, EngineError, Rejected};
use firebrick_model::LoadError;
use firebrick_ops::DeviceError;
use firebrick_text::{TemplateError, TokenizerError};
use thiserror::Error as ThisError;

/// Everything that can go wrong between a model's name and its text.
#[derive(Debug, ThisError)]
pub enum Error {
    /// The model's name leads nowhere.
    #[error("{0}")]
    Source(String),
    /// A file is missing, damaged or of an unknown kind.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The weights cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It does not fit into memory.
    #[error("{0}")]
    Memory(#[from] Box<PlanRefusal>),
    /// An option contradicts the model or another option.
    #[error("{0}")]
    Option(String),
    /// The engine's limits contradict each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tokenizer cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template cannot be read or rendered.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The model has no chat template.
    #[error("the model has no chat template; give one with --chat-template, or complete plain prompts instead")]
    NoTemplate,
    /// A prompt is refused.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The device failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
