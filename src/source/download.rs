//! Downloading from the hub into its cache.
//!
//! The list of files is asked for first, so that the answer to a wrong name or a missing permission is a sentence and
//! not half a model. Interrupted files stay beside the cache's as `.part` and are resumed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;

use super::hub_id::{HubId, is_plain};
use super::{REFERENCE_MODEL, SourceEvent};

const ENDPOINT: &str = "https://huggingface.co";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
const LIST_BYTES_MAX: u64 = 16 << 20;
const TRIES: u32 = 5;

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
    siblings: Vec<RemoteFile>,
}

#[derive(Clone, Deserialize)]
struct RemoteFile {
    #[serde(rename = "rfilename")]
    name: String,
    #[serde(default)]
    size: Option<u64>,
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
    let endpoint = endpoint.trim_end_matches('/').to_owned();
    let cached = Cache::new(cache.to_path_buf());
    let token = token.or_else(|| set("HF_TOKEN")).or_else(|| set("HUGGING_FACE_HUB_TOKEN")).or_else(|| cached.token());
    let listing = list(id, &endpoint, token.as_deref())?;
    let wanted = wanted_files(id, listing.siblings)?;
    let snapshot = cache.join(id.folder_name()).join("snapshots").join(&listing.sha);
    let missing: Vec<RemoteFile> = wanted.into_iter().filter(|file| !snapshot.join(&file.name).exists()).collect();
    let repo = Repo::with_revision(id.repository.clone(), RepoType::Model, id.revision.clone());
    let api =
        ApiBuilder::from_cache(cached.clone()).with_endpoint(endpoint).with_token(token).with_progress(false).build();
    let api = api.map_err(|error| Failure::new(format!("cannot set up the download: {error}")))?.repo(repo.clone());
    let total_bytes = missing.iter().filter_map(|file| file.size).sum();
    on_event(SourceEvent::Download { num_files: missing.len(), total_bytes });
    let mut before = 0;
    for file in &missing {
        let path = fetch_file(&api, file, (id, cache), &mut |bytes| {
            on_event(SourceEvent::Progress { bytes: before + bytes })
        })?;
        if !path.starts_with(&snapshot) {
            return Err(Failure::new(format!("`{}` changed while it was downloaded; try again", id.repository)));
        }
        before += file.size.unwrap_or(0);
    }
    let _ = cached.repo(repo).create_ref(&listing.sha); // Without it the next start asks the hub once more.
    Ok(id.file.as_ref().map_or(snapshot.clone(), |file| snapshot.join(file)))
}

fn list(id: &HubId, endpoint: &str, token: Option<&str>) -> Result<Listing, Failure> {
    let url =
        format!("{endpoint}/api/models/{}/revision/{}?blobs=true", id.repository, id.revision.replace('/', "%2F"));
    let config = ureq::Agent::config_builder()
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_global(Some(LIST_TIMEOUT))
        .user_agent(concat!("firebrick/", env!("CARGO_PKG_VERSION")));
    let agent: ureq::Agent = config.build().into();
    let mut request = agent.get(&url);
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let mut response = request.call().map_err(|error| describe(id, endpoint, token.is_some(), &error))?;
    let body = response.body_mut().with_config().limit(LIST_BYTES_MAX).read_json();
    body.map_err(|error| Failure::new(format!("{endpoint} does not answer like the Hugging Face hub: {error}")))
}

fn describe(id: &HubId, endpoint: &str, has_token: bool, error: &ureq::Error) -> Failure {
    let name = &id.repository;
    match error {
        ureq::Error::StatusCode(401) if !has_token => Failure::new(format!(
            "the hub shows no model `{name}` to everybody; check the spelling, or, if it is gated or private, set \
             HF_TOKEN to a token from {endpoint}/settings/tokens"
        )),
        ureq::Error::StatusCode(401) => {
            Failure::new(format!("the hub knows no model `{name}`, or HF_TOKEN is not valid; check both"))
        }
        ureq::Error::StatusCode(403) => Failure::new(format!(
            "`{name}` is gated: accept its terms at {endpoint}/{name} and set HF_TOKEN to a token of that account"
        )),
        ureq::Error::StatusCode(404) => {
            let revision = &id.revision;
            Failure::new(format!("the hub has no model `{name}` with revision `{revision}`; check the spelling"))
        }
        ureq::Error::StatusCode(code @ (429 | 500..)) => {
            Failure { unreachable: true, ..unreachable(id, &format!("{endpoint} answered {code}")) }
        }
        ureq::Error::StatusCode(code) => Failure::new(format!("{endpoint} answered {code} for `{name}`")),
        other => unreachable(id, &format!("cannot reach {endpoint}: {other}")),
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

fn fetch_file(
    api: &ApiRepo,
    file: &RemoteFile,
    (id, cache): (&HubId, &Path),
    on_bytes: &mut dyn FnMut(u64),
) -> Result<PathBuf, Failure> {
    let mut tries = 0;
    let path = loop {
        tries += 1;
        match api.download_with_progress(&file.name, Counter { bytes: 0, on_bytes: &mut *on_bytes }) {
            Ok(path) => break path,
            Err(error) if tries < TRIES && is_passing(&error) => std::thread::sleep(Duration::from_secs(1 << tries)),
            Err(error) => return Err(download_failure(&error, file, (id, cache))),
        }
    };
    let length = fs::metadata(&path).map_or(0, |metadata| metadata.len());
    if file.size.is_some_and(|size| size != length) {
        let _ = fs::canonicalize(&path).and_then(fs::remove_file);
        let _ = fs::remove_file(&path);
        let name = &file.name;
        return Err(Failure::new(format!("{name} arrived with {length} bytes instead of those announced; try again")));
    }
    Ok(path)
}

fn is_passing(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(error) => {
            !matches!(**error, ureq::Error::StatusCode(code) if (400..500).contains(&code) && code != 429)
        }
        ApiError::IoError(error) => matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::TimedOut
                | io::ErrorKind::Other
        ),
        _ => false,
    }
}

fn download_failure(error: &ApiError, file: &RemoteFile, (id, cache): (&HubId, &Path)) -> Failure {
    let (name, folder) = (&file.name, cache.display());
    match error {
        ApiError::IoError(error) if error.kind() == io::ErrorKind::StorageFull => Failure::new(format!(
            "the disk of {folder} is full; free some space (`firebrick models rm`), or set HF_HOME to another disk"
        )),
        ApiError::IoError(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Failure::new(format!("cannot write to {folder}: {error}; set HF_HOME to a folder of yours"))
        }
        ApiError::LockAcquisition(_) => {
            Failure::new(format!("another program is downloading {name} of `{}`; wait for it", id.repository))
        }
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(401 | 403) => describe(id, ENDPOINT, true, error),
            _ => Failure::new(format!("downloading {name} failed: {error}; what has arrived is kept, try again")),
        },
        other => Failure::new(format!("downloading {name} failed: {other}; try again")),
    }
}

/// Hands the hub client's counts on.
struct Counter<'a> {
    bytes: u64,
    on_bytes: &'a mut dyn FnMut(u64),
}

impl Progress for Counter<'_> {
    fn init(&mut self, _: usize, _: &str) {
        self.bytes = 0;
    }

    fn update(&mut self, size: usize) {
        self.bytes += size as u64;
        (self.on_bytes)(self.bytes);
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(id: &str, files: &[&str]) -> Result<Vec<String>, String> {
        let id = HubId::parse(id, None).expect("an id");
        let files = files.iter().map(|name| RemoteFile { name: (*name).to_owned(), size: None }).collect();
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
