//! Models that are on this machine already: the hub's cache, in the layout all Hugging Face tools share.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::hub_id::HubId;

/// A model in the hub's cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedModel {
    /// `org/name`.
    pub repository: String,
    /// Its folder, of all versions.
    pub path: PathBuf,
    /// Bytes on disk.
    pub bytes: u64,
}

/// Where the hub's models are kept.
pub(crate) fn hub_cache(wanted: Option<&Path>) -> PathBuf {
    if let Some(path) = wanted {
        return path.to_path_buf();
    }
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("HF_HUB_CACHE")
        .or_else(|| set("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| env::home_dir().map(|home| home.join(".cache/huggingface/hub")))
        .unwrap_or_else(|| PathBuf::from(".cache/huggingface/hub"))
}

/// Where `scripts/fetch-models.sh` puts the quickstart's models.
pub fn models_folder() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("FIREBRICK_MODELS")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("firebrick/models")))
        .or_else(|| env::home_dir().map(|home| home.join(".cache/firebrick/models")))
}

/// A whole model in the cache: its snapshot's folder, or the one file wanted.
pub(crate) fn find(cache: &Path, id: &HubId) -> Option<PathBuf> {
    let folder = cache.join(id.folder_name());
    let commit = match fs::read_to_string(folder.join("refs").join(&id.revision)) {
        Ok(commit) => commit.trim().to_owned(),
        Err(_) => id.revision.clone(),
    };
    let snapshot = folder.join("snapshots").join(commit);
    match &id.file {
        Some(file) => Some(snapshot.join(file)).filter(|path| path.exists()),
        None => is_whole(&snapshot).then_some(snapshot),
    }
}

/// Configuration, tokenizer and every file of weights are there. Downloads fetch the small files first.
fn is_whole(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).exists();
    let tokenizer = has("tokenizer.json") || (has("vocab.json") && has("merges.txt"));
    let weights = has("model.safetensors") || all_shards(snapshot).unwrap_or(false);
    (has("config.json") && tokenizer && weights) || num_gguf_files(snapshot) == 1
}

fn all_shards(snapshot: &Path) -> Option<bool> {
    let text = fs::read_to_string(snapshot.join("model.safetensors.index.json")).ok()?;
    let index: serde_json::Value = serde_json::from_str(&text).ok()?;
    let mut files = index.get("weight_map")?.as_object()?.values();
    Some(files.all(|file| file.as_str().is_some_and(|name| snapshot.join(name).exists())))
}

fn num_gguf_files(snapshot: &Path) -> usize {
    let entries = fs::read_dir(snapshot).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "gguf")).count()
}

/// Every model in the hub's cache, and the quickstart's.
pub fn cached_models(cache: Option<&Path>) -> Vec<CachedModel> {
    let entries = fs::read_dir(hub_cache(cache)).into_iter().flatten().flatten();
    let mut models: Vec<CachedModel> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let repository = name.strip_prefix("models--")?.replacen("--", "/", 1);
            Some(CachedModel { repository, bytes: bytes_below(&entry.path().join("blobs")), path: entry.path() })
        })
        .collect();
    models.sort_by(|a, b| a.repository.cmp(&b.repository));
    let own = models_folder().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    models.extend(own.filter_map(|entry| {
        let path = entry.path();
        let is_gguf = path.extension().is_some_and(|extension| extension == "gguf");
        let bytes = entry.metadata().ok().filter(|_| is_gguf)?.len();
        Some(CachedModel { repository: path.display().to_string(), path, bytes })
    }));
    models
}

/// Deletes a model from the hub's cache; the error says what is wrong.
pub fn remove_cached(repository: &str, cache: Option<&Path>) -> Result<CachedModel, String> {
    let models = cached_models(cache);
    let found = models.into_iter().find(|model| model.repository == repository);
    let model =
        found.ok_or_else(|| format!("`{repository}` is not in the cache; `firebrick models list` shows what is"))?;
    let removed = if model.path.is_dir() { fs::remove_dir_all(&model.path) } else { fs::remove_file(&model.path) };
    removed.map_err(|error| format!("cannot remove {}: {error}", model.path.display()))?;
    Ok(model)
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().expect("a file in a folder")).expect("a folder can be made");
        fs::write(path, text).expect("a file can be written");
    }

    #[test]
    fn only_a_whole_snapshot_counts() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let folder = cache.path().join("models--org--name");
        let snapshot = folder.join("snapshots/abc");
        let id = HubId::parse("org/name", None).expect("an id");
        write(&folder.join("refs/main"), "abc");
        write(&snapshot.join("config.json"), "{}");
        write(&snapshot.join("tokenizer.json"), "{}");
        let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        write(&snapshot.join("model.safetensors.index.json"), index);
        write(&snapshot.join("model-1.safetensors"), "");
        assert_eq!(find(cache.path(), &id), None);
        write(&snapshot.join("model-2.safetensors"), "");
        assert_eq!(find(cache.path(), &id), Some(snapshot));
    }

    #[test]
    fn a_model_is_listed_with_its_size_and_can_be_removed() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        write(&cache.path().join("models--org--name--x/blobs/1"), "12345");
        let models = cached_models(Some(cache.path()));
        assert_eq!((models[0].repository.as_str(), models[0].bytes), ("org/name--x", 5));
        remove_cached("org/name--x", Some(cache.path())).expect("it is there");
        assert!(remove_cached("org/name--x", Some(cache.path())).is_err());
    }
}
