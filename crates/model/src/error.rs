//! Why a model cannot be loaded.

use firebrick_checkpoint::CheckpointError;
use thiserror::Error;

/// A model that cannot be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file is missing, damaged or has an unexpected shape.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The architecture is known, this variant of it is not.
    #[error("{architecture} with {variant} is not supported")]
    Variant {
        /// The architecture's name.
        architecture: &'static str,
        /// What is different.
        variant: &'static str,
    },
}
