//! From a model's name to its files.

use std::path::{Path, PathBuf};

use crate::Error;

/// Where a model's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSource {
    /// A folder or a `.gguf` file.
    pub path: PathBuf,
}

/// Finds a local model, or downloads it from the hub.
pub fn resolve(source: &str) -> Result<ModelSource, Error> {
    let path = Path::new(source);
    if path.exists() {
        return Ok(ModelSource { path: path.to_path_buf() });
    }
    Err(Error::Source(format!("no file or folder `{source}`")))
}
