//! A model file's bytes, mapped from disk or held in memory, and small text files read whole.

use crate::error::{CheckpointError, Fault};
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read};
use std::ops::{Deref, Range};
use std::path::Path;

/// The bytes of one weight file.
pub(crate) struct ModelFile {
    /// For messages.
    pub(crate) name: String,
    /// Mapped, or in memory; a part of it keeps the whole alive.
    bytes: Bytes,
}

impl ModelFile {
    /// Maps a file, so that only what is read occupies memory.
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let name = path.display().to_string();
        match map(path) {
            Ok(mapped) => Ok(Self { name, bytes: mapped.map_or_else(Bytes::new, Bytes::from_owner) }),
            Err(source) => Err(CheckpointError::Io { path: name, source }),
        }
    }

    /// Takes bytes that are already in memory.
    pub(crate) fn from_bytes(name: &str, bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), bytes: bytes.into() }
    }

    /// A part, not copied.
    pub(crate) fn part(&self, range: Range<usize>) -> Bytes {
        self.bytes.slice(range)
    }
}

impl Deref for ModelFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// `None` for an empty file, which cannot be mapped.
#[allow(unsafe_code, reason = "mapping a file is unsafe in every library; this is the only place")]
fn map(path: &Path) -> io::Result<Option<memmap2::Mmap>> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file"));
    }
    if metadata.len() == 0 {
        return Ok(None);
    }
    // SAFETY: the map is read-only and only ever seen as plain bytes, which have no invalid values. Changing the file
    // while it is mapped is the operator's fault: the values change, or the process ends where the file was cut.
    unsafe { memmap2::Mmap::map(&file) }.map(Some)
}

/// Reads a small text file whole; `None` where there is none.
pub(crate) fn read_text(path: &Path, bytes_max: u64) -> Result<Option<String>, CheckpointError> {
    let name = path.display().to_string();
    let failed = |source| CheckpointError::Io { path: name.clone(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    text_of(bytes, bytes_max, &name).map(Some)
}

/// A small file's bytes as text; `name` is for messages.
pub(crate) fn text_of(bytes: Vec<u8>, bytes_max: u64, name: &str) -> Result<String, CheckpointError> {
    if bytes.len() as u64 > bytes_max {
        return Err(Fault::corrupt("size", format!("exceeds {bytes_max} bytes")).in_file(name));
    }
    let text = String::from_utf8(bytes);
    text.map_err(|error| Fault::corrupt("text", error.utf8_error().to_string()).in_file(name))
}
