//! The files of a model's folder: on disk, or already in memory, as in a browser.

use crate::checkpoint::TokenizerSource;
use crate::error::{CheckpointError, Fault};
use crate::file::{ModelFile, read_text, text_of};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Where they are.
pub(crate) enum FolderFiles<'a> {
    /// In a folder.
    OnDisk(&'a Path),
    /// By their names; weights leave when they are opened.
    InMemory {
        /// For messages.
        name: &'a str,
        /// Contents.
        files: BTreeMap<String, Vec<u8>>,
    },
}

impl FolderFiles<'_> {
    /// The folder, for messages.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::OnDisk(folder) => folder.display().to_string(),
            Self::InMemory { name, .. } => (*name).to_owned(),
        }
    }

    /// A file, for messages.
    pub(crate) fn path(&self, file: &str) -> String {
        match self {
            Self::OnDisk(folder) => folder.join(file).display().to_string(),
            Self::InMemory { name, .. } => format!("{name}/{file}"),
        }
    }

    /// Adds a file's name to what is wrong with it.
    pub(crate) fn in_file(&self, file: &str) -> impl Fn(Fault) -> CheckpointError + use<> {
        let path = self.path(file);
        move |fault| fault.in_file(&path)
    }

    pub(crate) fn contains(&self, file: &str) -> bool {
        match self {
            Self::OnDisk(folder) => folder.join(file).exists(),
            Self::InMemory { files, .. } => files.contains_key(file),
        }
    }

    /// A small text file whole; `None` where there is none.
    pub(crate) fn read_text(&self, file: &str, bytes_max: u64) -> Result<Option<String>, CheckpointError> {
        match self {
            Self::OnDisk(folder) => read_text(&folder.join(file), bytes_max),
            Self::InMemory { files, .. } => {
                files.get(file).map(|bytes| text_of(bytes.clone(), bytes_max, &self.path(file))).transpose()
            }
        }
    }

    /// A file of weights.
    pub(crate) fn weights(&mut self, file: &str) -> Result<ModelFile, CheckpointError> {
        let path = self.path(file);
        match self {
            Self::OnDisk(folder) => ModelFile::open(&folder.join(file)),
            Self::InMemory { files, .. } => match files.remove(file) {
                Some(bytes) => Ok(ModelFile::from_bytes(&path, bytes)),
                None => Err(CheckpointError::Io { path, source: io::ErrorKind::NotFound.into() }),
            },
        }
    }

    /// tokenizer.json, which need not exist.
    pub(crate) fn json_tokenizer(&mut self) -> TokenizerSource {
        const FILE: &str = "tokenizer.json";
        match self {
            Self::OnDisk(folder) => TokenizerSource::Json(folder.join(FILE)),
            Self::InMemory { files, .. } => TokenizerSource::JsonBytes(files.remove(FILE).unwrap_or_default()),
        }
    }
}
