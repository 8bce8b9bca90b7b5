//! Downloading from the hub into its cache.
//!
//! The list of files is asked for first, so that the answer to a wrong name or a missing permission is a sentence and
//! not half a model. Files are fetched from the commit that was listed, so that nothing can change on the way.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::hub_client::{Hub, HubError, Patience};
use super::hub_id::{HubId, is_plain};
use super::transfer::{Digest, Place, RemoteFile, TransferError, fetch_file};
use super::{REFERENCE_MODEL, SourceEvent};

const ENDPOINT: &str = "https://huggingface.co";
const LIST_BYTES_MAX: u64 = 16 << 20;

/// Why a download failed.
pub(super) struct Failure {
    pub message: String,
    /// The hub did not answer at all, so that what is cached may stand in.
    pub unreachable: bool,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), unreachable: false }
    }
}

#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<ListedFile>,
}

#[derive(Deserialize)]
struct ListedFile {
    #[serde(rename = "rfilename")]
    name: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(rename = "blobId", default)]
    blob_id: Option<String>,
    #[serde(default)]
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    sha256: Option<String>,
    size: Option<u64>,
}

impl From<ListedFile> for RemoteFile {
    fn from(file: ListedFile) -> Self {
        // The blob of a large file is a pointer to its content, so that its digest is of no use.
        let digest = match &file.lfs {
            Some(large) => large.sha256.as_deref(),
            None => file.blob_id.as_deref(),
        };
        let digest = digest.and_then(Digest::parse);
        let size = file.lfs.and_then(|large| large.size).or(file.size);
        Self { name: file.name, size, digest }
    }
}

/// Brings the model's files into the cache; returns the snapshot's folder, or the one file wanted.
pub(super) fn fetch(
    id: &HubId,
    cache: &Path,
    token: Option<String>,
    on_event: &mut dyn FnMut(SourceEvent),
) -> Result<PathBuf, Failure> {
    let set = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    if set("HF_HUB_OFFLINE").is_some_and(|value| !matches!(value.as_str(), "0" | "false" | "False")) {
        return Err(unreachable(id, "HF_HUB_OFFLINE is set"));
    }
    let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
    let token = token.or_else(|| set("HF_TOKEN")).or_else(|| set("HUGGING_FACE_HUB_TOKEN"));
    let token = token.or_else(|| token_file(set("HF_TOKEN_PATH"), cache));
    fetch_from(&Hub::new(&endpoint, token, Patience::default()), id, cache, on_event)
}

/// The token that `hf auth login` leaves beside the cache.
fn token_file(path: Option<String>, cache: &Path) -> Option<String> {
    let path = path.map(PathBuf::from).or_else(|| Some(cache.parent()?.join("token")))?;
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|token| !token.is_empty())
}

/// As [`fetch`], from a hub that is known.
pub(super) fn fetch_from(
    hub: &Hub,
    id: &HubId,
    cache: &Path,
    on_event: &mut dyn FnMut(SourceEvent),
) -> Result<PathBuf, Failure> {
    let listing = list(id, hub)?;
    let commit = listing.sha;
    if !is_plain(&commit) {
        return Err(Failure::new(format!("{} does not answer like the Hugging Face hub", hub.endpoint)));
    }
    let wanted = wanted_files(id, listing.siblings.into_iter().map(RemoteFile::from).collect())?;
    let folder = cache.join(id.folder_name());
    let snapshot = folder.join("snapshots").join(&commit);
    let missing: Vec<RemoteFile> = wanted.into_iter().filter(|file| !snapshot.join(&file.name).exists()).collect();
    let total_bytes = missing.iter().filter_map(|file| file.size).sum();
    on_event(SourceEvent::Download { num_files: missing.len(), total_bytes });
    let url = format!("{}/{}/resolve/{commit}", hub.endpoint, id.repository);
    let place = Place { folder: &folder, commit: &commit, url: &url };
    let mut before = 0;
    for file in &missing {
        let mut on_bytes = |bytes| on_event(SourceEvent::Progress { bytes: before + bytes });
        fetch_file(hub, file, &place, &mut on_bytes)
            .map_err(|error| download_failure(error, hub, file, (id, cache)))?;
        before += file.size.unwrap_or(0);
    }
    // Without it the next start asks the hub once more.
    let _ = write_ref(&folder, &id.revision, &commit);
    Ok(id.file.as_ref().map_or(snapshot.clone(), |file| snapshot.join(file)))
}

/// Remembers which commit a branch or tag stands for.
fn write_ref(folder: &Path, revision: &str, commit: &str) -> io::Result<()> {
    if revision == commit {
        return Ok(());
    }
    let path = folder.join("refs").join(revision);
    let staged = folder.join("refs").join(".new");
    fs::create_dir_all(path.parent().unwrap_or(folder))?;
    fs::write(&staged, commit)?;
    fs::rename(staged, path)
}

fn list(id: &HubId, hub: &Hub) -> Result<Listing, Failure> {
    let revision = id.revision.replace('/', "%2F");
    let url = format!("{}/api/models/{}/revision/{revision}?blobs=true", hub.endpoint, id.repository);
    let mut tries = 1;
    let response = loop {
        match hub.get(&url, 0) {
            Ok(response) => break response,
            // A hub that cannot be reached at all is not waited for: the cache may do.
            Err(error @ HubError::Status { .. }) if error.is_passing() && tries < hub.patience.tries => {
                std::thread::sleep(hub.patience.pause * (1 << tries));
                tries += 1;
            }
            Err(error) => return Err(describe(id, hub, &error)),
        }
    };
    let strange = |what: &dyn std::fmt::Display| {
        Failure::new(format!("{} does not answer like the Hugging Face hub: {what}", hub.endpoint))
    };
    let mut text = String::new();
    let read = response.into_body().into_reader().take(LIST_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| strange(&error))?;
    serde_json::from_str(&text).map_err(|error| strange(&error))
}

fn describe(id: &HubId, hub: &Hub, error: &HubError) -> Failure {
    let (name, endpoint, has_token) = (&id.repository, &hub.endpoint, hub.token.is_some());
    match error {
        HubError::Status { code: 401, .. } if !has_token => Failure::new(format!(
            "the hub shows no model `{name}` to everybody; check the spelling, or, if it is gated or private, set \
             HF_TOKEN to a token from {endpoint}/settings/tokens"
        )),
        HubError::Status { code: 401, .. } => {
            Failure::new(format!("the hub knows no model `{name}`, or HF_TOKEN is not valid; check both"))
        }
        HubError::Status { code: 403, .. } => Failure::new(format!(
            "`{name}` is gated: accept its terms at {endpoint}/{name} and set HF_TOKEN to a token of that account"
        )),
        HubError::Status { code: 404, .. } => {
            let revision = &id.revision;
            Failure::new(format!("the hub has no model `{name}` with revision `{revision}`; check the spelling"))
        }
        HubError::Status { code, .. } if error.is_passing() => unreachable(id, &format!("{endpoint} answered {code}")),
        HubError::Status { code, .. } => Failure::new(format!("{endpoint} answered {code} for `{name}`")),
        HubError::Redirect(reason) => Failure::new(reason.clone()),
        HubError::Unreachable(reason) => unreachable(id, reason),
    }
}

fn unreachable(id: &HubId, reason: &str) -> Failure {
    let hint = if id.repository == REFERENCE_MODEL {
        "`scripts/fetch-models.sh smollm2` gets this model without the hub"
    } else {
        "pass a folder or .gguf file that is on this machine, or get the quickstart's model with \
         `scripts/fetch-models.sh smollm2`"
    };
    Failure { message: format!("`{}` is not in the cache and {reason}; {hint}", id.repository), unreachable: true }
}

/// The files that a model is made of: small ones first, so that a whole file of weights means a whole model.
fn wanted_files(id: &HubId, files: Vec<RemoteFile>) -> Result<Vec<RemoteFile>, Failure> {
    let plain: Vec<RemoteFile> = files.into_iter().filter(|file| is_plain(&file.name)).collect();
    let ends = |file: &RemoteFile, extension: &str| file.name.ends_with(extension);
    if let Some(wanted) = &id.file {
        let found: Vec<RemoteFile> = plain.into_iter().filter(|file| file.name == *wanted).collect();
        return if found.is_empty() {
            Err(Failure::new(format!("`{}` has no file `{wanted}`; see its list of files on the hub", id.repository)))
        } else {
            Ok(found)
        };
    }
    let weights: Vec<RemoteFile> = plain.iter().filter(|file| ends(file, ".safetensors")).cloned().collect();
    let is_small = |file: &&RemoteFile| [".json", ".model", ".jinja", ".txt"].iter().any(|end| ends(file, end));
    let small: Vec<RemoteFile> = plain.iter().filter(is_small).cloned().collect();
    if !weights.is_empty() {
        return Ok([small, preferred(weights)].concat());
    }
    let gguf: Vec<RemoteFile> = plain.into_iter().filter(|file| ends(file, ".gguf")).collect();
    match &gguf[..] {
        [_] => Ok(gguf),
        [] => Err(Failure::new(format!(
            "`{}` has neither .safetensors nor .gguf files; pickled .bin weights are not read, because reading them \
             can run code",
            id.repository
        ))),
        [first, ..] => Err(Failure::new(format!(
            "`{0}` has {1} .gguf files; name one of them, as in {0}/{2}",
            id.repository,
            gguf.len(),
            first.name
        ))),
    }
}

/// The files named `model…`, where there are such; other names are copies in older layouts.
fn preferred(weights: Vec<RemoteFile>) -> Vec<RemoteFile> {
    let named: Vec<RemoteFile> = weights.iter().filter(|file| file.name.starts_with("model")).cloned().collect();
    if named.is_empty() { weights } else { named }
}

fn download_failure(error: TransferError, hub: &Hub, file: &RemoteFile, (id, cache): (&HubId, &Path)) -> Failure {
    let (name, folder) = (&file.name, cache.display());
    match error {
        TransferError::Disk(error) if error.kind() == io::ErrorKind::StorageFull => Failure::new(format!(
            "the disk of {folder} is full; free some space (`firebrick models rm`), or set HF_HOME to another disk"
        )),
        TransferError::Disk(error) => {
            Failure::new(format!("cannot write to {folder}: {error}; set HF_HOME to a folder of yours"))
        }
        TransferError::Locked => {
            Failure::new(format!("another program is downloading {name} of `{}`; wait for it", id.repository))
        }
        TransferError::Damaged(reason) => {
            Failure::new(format!("{name} arrived damaged: {reason}; it was thrown away, try again"))
        }
        TransferError::Hub(error @ HubError::Status { code: 401 | 403, .. }) => describe(id, hub, &error),
        TransferError::Hub(error) => {
            Failure::new(format!("downloading {name} failed: {error}; what has arrived is kept, try again"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(id: &str, files: &[&str]) -> Result<Vec<String>, String> {
        let id = HubId::parse(id, None).expect("an id");
        let files =
            files.iter().map(|name| RemoteFile { name: (*name).to_owned(), size: None, digest: None }).collect();
        let wanted = wanted_files(&id, files).map_err(|failure| failure.message)?;
        Ok(wanted.into_iter().map(|file| file.name).collect())
    }

    #[test]
    fn weights_come_last_and_nothing_that_runs_comes_at_all() {
        let files =
            ["model.safetensors", "config.json", "modeling_x.py", "pytorch_model.bin", "../evil.json", "a/b.json"];
        assert_eq!(names("o/n", &files).expect("a model"), ["config.json", "model.safetensors"]);
    }

    #[test]
    fn one_of_several_gguf_files_must_be_named() {
        let files = ["n-Q4.gguf", "n-Q8.gguf", "config.json"];
        let refusal = names("o/n", &files).expect_err("ambiguous");
        assert!(refusal.contains("o/n/n-Q4.gguf"), "{refusal}");
        assert_eq!(names("o/n/n-Q8.gguf", &files).expect("named"), ["n-Q8.gguf"]);
    }

    #[test]
    fn pickled_weights_are_refused_with_the_reason() {
        assert!(names("o/n", &["pytorch_model.bin", "config.json"]).expect_err("no weights").contains("can run code"));
    }
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod hub_tests;
