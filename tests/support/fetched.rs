//! What `scripts/fetch-models.sh` fetches, for the tests of every crate.

use std::env;
use std::path::PathBuf;

/// A path in the cache that the script fills, if it is there.
pub fn path_of(name: &str) -> Option<PathBuf> {
    let models = env::var("FIREBRICK_MODELS").map(PathBuf::from).unwrap_or_else(|_| {
        let home = env::var("HOME").unwrap_or_default();
        let cache = env::var("XDG_CACHE_HOME").unwrap_or_else(|_| format!("{home}/.cache"));
        PathBuf::from(cache).join("firebrick/models")
    });
    Some(models.join(name)).filter(|path| path.exists())
}

/// The same; `None`, visibly, only where `FIREBRICK_TEST_MODELS` does not demand it.
pub fn fetched(name: &str) -> Option<PathBuf> {
    let path = path_of(name);
    let demanded = env::var("FIREBRICK_TEST_MODELS").is_ok_and(|value| value == "required");
    assert!(path.is_some() || !demanded, "{name} is missing; run scripts/fetch-models.sh");
    if path.is_none() {
        eprintln!("NOT TESTED: {name} is missing; run scripts/fetch-models.sh");
    }
    path
}
