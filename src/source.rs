//! From a model's name to its files: a folder, a `.gguf` file, or a model on the Hugging Face hub.
//!
//! A model that is whole in the cache is used without asking the hub, so that a restart needs no network. Only the
//! kinds of files that a model is made of are ever downloaded, and none of them is executed.

mod cache;
mod download;
#[cfg(test)]
mod fake_hub;
mod hub_client;
mod hub_id;
mod transfer;

use std::path::{Path, PathBuf};

pub use cache::{CachedModel, cached_models, models_folder, remove_cached};
pub use hub_id::HubId;

use crate::Error;

/// The small model of the quickstart, which can also be had without the hub.
pub const REFERENCE_MODEL: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";
const REFERENCE_FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// Where a model's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSource {
    /// A folder or a `.gguf` file.
    pub path: PathBuf,
    /// How they came there.
    pub origin: Origin,
}

/// How a model's files came to be on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The name was a path.
    Local,
    /// They were in the hub's cache.
    Cached,
    /// They were downloaded now.
    Downloaded,
    /// The hub could not be reached; the quickstart's copy of the same model stands in.
    Substitute,
}

/// Where to look, and as whom.
#[derive(Clone, Debug, Default)]
pub struct SourceOptions {
    /// Branch, tag or commit; `None`: what stands behind `@` in the name, else `main`.
    pub revision: Option<String>,
    /// The hub's token; `None`: `HF_TOKEN`, else the token file in the cache.
    pub token: Option<String>,
    /// The hub's cache; `None`: `$HF_HOME/hub`, else `~/.cache/huggingface/hub`.
    pub cache: Option<PathBuf>,
    /// Ask the hub for a newer version although the cache has one.
    pub refresh: bool,
}

/// What happens while a model is being found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// A download begins, of so many bytes in all.
    Download {
        /// Files that are not there yet.
        num_files: usize,
        /// Their bytes.
        total_bytes: u64,
    },
    /// So many bytes of it are here.
    Progress {
        /// Bytes of all files together.
        bytes: u64,
    },
}

/// Finds a local model, or downloads it from the hub.
pub fn resolve(source: &str) -> Result<ModelSource, Error> {
    resolve_with(source, &SourceOptions::default(), &mut |_| ())
}

/// As [`resolve`], with options, and telling what happens.
pub fn resolve_with(
    source: &str,
    options: &SourceOptions,
    on_event: &mut dyn FnMut(SourceEvent),
) -> Result<ModelSource, Error> {
    if Path::new(source).exists() {
        return Ok(ModelSource { path: PathBuf::from(source), origin: Origin::Local });
    }
    let id = HubId::parse(source, options.revision.as_deref()).map_err(Error::Source)?;
    let cache = cache::hub_cache(options.cache.as_deref());
    if !options.refresh
        && let Some(path) = cache::find(&cache, &id)
    {
        return Ok(ModelSource { path, origin: Origin::Cached });
    }
    match download::fetch(&id, &cache, options.token.clone(), on_event) {
        Ok(path) => Ok(ModelSource { path, origin: Origin::Downloaded }),
        Err(failure) => match (failure.unreachable, cache::find(&cache, &id), substitute(&id)) {
            (true, Some(path), _) => Ok(ModelSource { path, origin: Origin::Cached }),
            (true, None, Some(path)) => Ok(ModelSource { path, origin: Origin::Substitute }),
            _ => Err(Error::Source(failure.message)),
        },
    }
}

/// The quickstart's copy of the reference model.
fn substitute(id: &HubId) -> Option<PathBuf> {
    let path = models_folder()?.join(REFERENCE_FILE);
    (id.repository == REFERENCE_MODEL && path.exists()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_path_is_used_as_it_is() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = resolve(folder.path().to_str().expect("a plain path")).expect("it exists");
        assert_eq!(source, ModelSource { path: folder.path().to_path_buf(), origin: Origin::Local });
    }

    #[test]
    fn a_path_that_is_not_there_is_not_looked_for_on_the_hub() {
        for path in ["./nothing", "/nowhere/model", "../x", "models/q4.gguf", "a/b/c/d"] {
            let error = resolve(path).expect_err("there is no such file").to_string();
            assert!(error.contains("no file or folder"), "{error}");
        }
    }
}
