//! One file from the hub into the cache: resumed where it broke off, checked, and put into place in one step.
//!
//! A file is written beside its place, as `.part`, under a lock that ends with the process. Only when its length and
//! its digest are right does it get its name, so that whatever has a name in the cache is whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use ureq::http::{HeaderMap, header};

use super::hub_client::{Hub, HubError};
use super::hub_id::is_plain;

/// What the hub says a file's content is, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Digest {
    /// Of large files.
    Sha256(String),
    /// Of small files: git's name of the content.
    GitSha1(String),
}

impl Digest {
    /// Told apart by its length; anything else is none.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match (is_hex, text.len()) {
            (true, 64) => Some(Self::Sha256(text)),
            (true, 40) => Some(Self::GitSha1(text)),
            _ => None,
        }
    }

    fn hex(&self) -> &str {
        let (Self::Sha256(hex) | Self::GitSha1(hex)) = self;
        hex
    }

    /// Whether this is the digest of what `file` holds.
    fn matches(&self, file: &mut File, length: u64) -> io::Result<bool> {
        let mut context = match self {
            Self::Sha256(_) => Context::new(&SHA256),
            Self::GitSha1(_) => Context::new(&SHA1_FOR_LEGACY_USE_ONLY),
        };
        if matches!(self, Self::GitSha1(_)) {
            context.update(format!("blob {length}\0").as_bytes());
        }
        file.seek(SeekFrom::Start(0))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => context.update(&buffer[..count]),
            }
        }
        let hex: String = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(hex == self.hex())
    }
}

/// A file as the hub lists it.
#[derive(Clone, Debug)]
pub struct RemoteFile {
    /// Its name, without folders.
    pub name: String,
    /// Its bytes, if the hub says.
    pub size: Option<u64>,
    /// Its content, if the hub says.
    pub digest: Option<Digest>,
}

/// Where a file goes.
pub struct Place<'a> {
    /// The model's folder in the cache.
    pub folder: &'a Path,
    /// The commit that it belongs to.
    pub commit: &'a str,
    /// Its URL without the file's name.
    pub url: &'a str,
}

/// Why a file did not arrive.
#[derive(Debug)]
pub enum TransferError {
    /// The hub's fault.
    Hub(HubError),
    /// What arrived is not what was announced.
    Damaged(String),
    /// Another process is at it.
    Locked,
    /// The disk's fault.
    Disk(io::Error),
}

impl From<io::Error> for TransferError {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// Brings a file into the cache, trying again as often as the hub's patience says.
pub fn fetch_file(
    hub: &Hub,
    file: &RemoteFile,
    place: &Place,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<(), TransferError> {
    if !is_plain(&file.name) || !is_plain(place.commit) {
        return Err(TransferError::Damaged("the hub lists a name that is none".to_owned()));
    }
    let blobs = place.folder.join("blobs");
    fs::create_dir_all(&blobs)?;
    let key = match &file.digest {
        Some(digest) => digest.hex().to_owned(),
        None => format!("{}.{}", place.commit, file.name),
    };
    let blob = blobs.join(&key);
    let is_whole = |length| file.size.is_none_or(|size| size == length);
    if fs::metadata(&blob).is_ok_and(|metadata| is_whole(metadata.len())) {
        return Ok(link(&blob, place, &file.name)?);
    }
    let mut part = Part::open(&blobs.join(format!("{key}.part")))?;
    let url = format!("{}/{}", place.url, file.name);
    let result = with_retries(hub, &url, file, &mut part, on_bytes);
    match result {
        Ok(()) => {
            part.file.sync_all()?;
            fs::rename(&part.path, &blob)?;
            Ok(link(&blob, place, &file.name)?)
        }
        Err(error) => {
            // What may be resumed stays; what is damaged or fills the disk goes.
            let full = matches!(&error, TransferError::Disk(error) if error.kind() == io::ErrorKind::StorageFull);
            if full || matches!(error, TransferError::Damaged(_)) {
                let _ = fs::remove_file(&part.path);
            }
            Err(error)
        }
    }
}

fn with_retries(
    hub: &Hub,
    url: &str,
    file: &RemoteFile,
    part: &mut Part,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<(), TransferError> {
    const TRIES_MAX: u32 = 100;
    let mut fruitless = 0;
    for _ in 0..TRIES_MAX {
        let before = part.length;
        let error = match part.try_once(hub, url, file, on_bytes) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let advice = match &error {
            TransferError::Hub(error) if !error.is_passing() => None,
            TransferError::Hub(HubError::Status { retry_after, .. }) => Some(*retry_after),
            TransferError::Hub(_) | TransferError::Damaged(_) => Some(None),
            _ => None,
        };
        fruitless = if part.length > before { 0 } else { fruitless + 1 };
        let Some(retry_after) = advice.filter(|_| fruitless < hub.patience.tries) else { return Err(error) };
        let pause = hub.patience.pause * (1 << fruitless.min(5));
        std::thread::sleep(retry_after.map_or(pause, |asked| asked.clamp(pause, 60 * hub.patience.pause)));
    }
    Err(TransferError::Hub(HubError::Unreachable(format!("the transfer broke off {TRIES_MAX} times"))))
}

/// A file on its way.
struct Part {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Part {
    fn open(path: &Path) -> Result<Self, TransferError> {
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(TransferError::Locked),
            // Some network disks have no locks; two downloads at a time are worse there, but not wrong.
            Err(TryLockError::Error(_)) => {}
        }
        let length = file.seek(SeekFrom::End(0))?;
        Ok(Self { path: path.to_path_buf(), file, length })
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.length = 0;
        Ok(())
    }

    /// One request, from where the last one ended.
    fn try_once(
        &mut self,
        hub: &Hub,
        url: &str,
        file: &RemoteFile,
        on_bytes: &mut dyn FnMut(u64),
    ) -> Result<(), TransferError> {
        if file.size.is_some_and(|size| self.length > size) {
            self.restart()?;
        }
        let mut size = file.size;
        let mut digest = file.digest.clone();
        if size.is_none_or(|size| self.length < size) {
            let response = match hub.get(url, self.length) {
                Err(HubError::Status { code: 416, .. }) => {
                    self.restart()?;
                    return Err(TransferError::Damaged("the hub has less of it than has arrived".to_owned()));
                }
                other => other.map_err(TransferError::Hub)?,
            };
            let headers = response.headers();
            let whole = if response.status().as_u16() == 206 { resumed(headers, self.length) } else { None };
            if self.length > 0 && whole.is_none() {
                self.restart()?;
            }
            // Without compression the announced length is the file's; with it there is none.
            size = size.or(whole).or_else(|| number(headers, header::CONTENT_LENGTH.as_str()));
            let tag = headers.get("x-linked-etag").or_else(|| headers.get(header::ETAG));
            digest = digest.or_else(|| tag.and_then(|tag| tag.to_str().ok()).and_then(Digest::parse));
            self.append(response.into_body().into_reader(), size, on_bytes)?;
        }
        self.check(size, digest.as_ref())
    }

    /// Writes what arrives; a transfer that breaks off leaves what it has brought.
    fn append(
        &mut self,
        mut body: impl Read,
        size: Option<u64>,
        on_bytes: &mut dyn FnMut(u64),
    ) -> Result<(), TransferError> {
        self.file.seek(SeekFrom::Start(self.length))?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) => return Err(TransferError::Hub(HubError::Unreachable(format!("it broke off: {error}")))),
            };
            if size.is_some_and(|size| self.length + count as u64 > size) {
                self.restart()?;
                return Err(TransferError::Damaged("more bytes arrived than were announced".to_owned()));
            }
            self.file.write_all(&buffer[..count])?;
            self.length += count as u64;
            on_bytes(self.length);
        }
    }

    fn check(&mut self, size: Option<u64>, digest: Option<&Digest>) -> Result<(), TransferError> {
        if let Some(size) = size.filter(|&size| size != self.length) {
            let message = format!("{} of {size} bytes arrived", self.length);
            return Err(TransferError::Hub(HubError::Unreachable(message)));
        }
        if let Some(digest) = digest
            && !digest.matches(&mut self.file, self.length)?
        {
            self.restart()?;
            return Err(TransferError::Damaged("its content is not what the hub announced".to_owned()));
        }
        Ok(())
    }
}

/// The whole length, if `Content-Range` goes on exactly where we are.
fn resumed(headers: &HeaderMap, from: u64) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, whole) = range.split_once('/')?;
    let begins: u64 = range.split_once('-')?.0.parse().ok()?;
    whole.parse().ok().filter(|_| begins == from)
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// Puts a blob into its snapshot under its name, in one step.
fn link(blob: &Path, place: &Place, name: &str) -> io::Result<()> {
    let snapshot = place.folder.join("snapshots").join(place.commit);
    fs::create_dir_all(&snapshot)?;
    let (target, staged) = (snapshot.join(name), snapshot.join(format!(".{name}.new")));
    let _ = fs::remove_file(&staged);
    stage(blob, &staged)?;
    fs::rename(&staged, &target)
}

/// A relative link, so that the cache can be moved.
#[cfg(unix)]
fn stage(blob: &Path, staged: &Path) -> io::Result<()> {
    let name = blob.file_name().unwrap_or_default();
    std::os::unix::fs::symlink(Path::new("../../blobs").join(name), staged)
}

/// Links need a privilege there, so the file has two names, or is copied where the disk cannot do that.
#[cfg(not(unix))]
fn stage(blob: &Path, staged: &Path) -> io::Result<()> {
    fs::hard_link(blob, staged).or_else(|_| fs::copy(blob, staged).map(|_| ()))
}
