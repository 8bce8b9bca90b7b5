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
    /// The device limits the size of one tensor, and a layer's keys are one.
    #[error(
        "{num_blocks} blocks of {block_size} tokens make the keys of one layer larger than this device's largest buffer: at \
         most {num_blocks_max} fit"
    )]
    CacheTooLarge {
        /// What was asked for.
        num_blocks: usize,
        /// Tokens of a block.
        block_size: usize,
        /// What the device can hold.
        num_blocks_max: usize,
    },
}
