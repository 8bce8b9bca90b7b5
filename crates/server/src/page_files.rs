//! A built web page: its files, known by their exact names before the port opens, so that no request can name another.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use axum::body::{Body, Bytes};
use futures::stream;
use thiserror::Error;

/// Files of a page, at most: a built page has about ten, and as many models.
const FILES_MAX: usize = 1000;
/// Folders inside folders, at most.
const DEPTH_MAX: usize = 4;
/// Read and sent at once.
const PIECE_BYTES: usize = 256 << 10;

/// Why a folder is no built page.
#[derive(Debug, Error)]
pub enum PageError {
    /// It has no `index.html`.
    #[error("{0} holds no index.html, so that it is not a built page")]
    NoIndex(String),
    /// It has more files or folders than a page has.
    #[error("{folder} holds more than {FILES_MAX} files, or folders {DEPTH_MAX} deep, so that it is not a built page")]
    TooLarge {
        /// Which.
        folder: String,
    },
    /// It cannot be read.
    #[error("{folder} cannot be read: {source}")]
    Io {
        /// Which.
        folder: String,
        /// Why.
        source: io::Error,
    },
}

/// The files of a built page, by their paths below it.
#[derive(Debug)]
pub struct PageFiles(HashMap<String, PageFile>);

/// One file.
#[derive(Clone, Debug)]
pub(crate) enum PageFile {
    /// In the program.
    Embedded(&'static [u8]),
    /// On disk, read anew each time, because models are large.
    OnDisk(PathBuf),
}

impl PageFiles {
    /// The page in a folder.
    pub fn from_folder(folder: &Path) -> Result<Self, PageError> {
        let mut files = HashMap::new();
        collect(folder, "", &mut files)
            .map_err(|source| PageError::Io { folder: folder.display().to_string(), source })?
            .then_some(())
            .ok_or_else(|| PageError::TooLarge { folder: folder.display().to_string() })?;
        if !files.contains_key(INDEX) {
            return Err(PageError::NoIndex(folder.display().to_string()));
        }
        Ok(Self(files))
    }

    /// A page that is part of the program: paths and contents.
    pub fn embedded(files: &[(&str, &'static [u8])]) -> Self {
        Self(files.iter().map(|&(path, bytes)| (path.to_owned(), PageFile::Embedded(bytes))).collect())
    }

    /// The file that a path below the page names; the page itself for the empty path.
    pub(crate) fn find(&self, path: &str) -> Option<&PageFile> {
        self.0.get(if path.is_empty() { INDEX } else { path })
    }
}

const INDEX: &str = "index.html";

/// Adds the files of a folder and of those in it; `false` when there are too many.
fn collect(folder: &Path, prefix: &str, files: &mut HashMap<String, PageFile>) -> io::Result<bool> {
    for entry in folder.read_dir()? {
        let entry = entry?;
        // Names that no URL of the page has are not served.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        let (path, below) = (entry.path(), format!("{prefix}{name}"));
        // Links are followed: models are links to where they lie.
        let Ok(metadata) = path.metadata() else { continue };
        if metadata.is_dir() {
            let is_deep = below.matches('/').count() + 1 >= DEPTH_MAX;
            if is_deep || !collect(&path, &format!("{below}/"), files)? {
                return Ok(false);
            }
        } else if metadata.is_file() {
            files.insert(below, PageFile::OnDisk(path));
        }
        if files.len() > FILES_MAX {
            return Ok(false);
        }
    }
    Ok(true)
}

impl PageFile {
    /// Its bytes and how many.
    pub(crate) async fn open(&self) -> io::Result<(Body, u64)> {
        match self {
            Self::Embedded(bytes) => Ok((Body::from(Bytes::from_static(bytes)), bytes.len() as u64)),
            Self::OnDisk(path) => {
                let path = path.clone();
                let opened = blocking(move || {
                    let file = File::open(path)?;
                    let bytes = file.metadata()?.len();
                    Ok((file, bytes))
                });
                let (file, bytes) = opened.await?;
                Ok((Body::from_stream(pieces(file)), bytes))
            }
        }
    }
}

/// A file from here on, read off the threads that serve others.
fn pieces(file: File) -> impl futures::Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold(file, |mut file| async move {
        let read = blocking(move || {
            let mut piece = Vec::new();
            file.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
            Ok((piece, file))
        });
        let (piece, file) = read.await?;
        Ok((!piece.is_empty()).then(|| (Bytes::from(piece), file)))
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_an_index_and_shows_nothing_hidden() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = |folder: &Path| PageFiles::from_folder(folder).expect_err("no page").to_string();
        assert!(refused(folder.path()).contains("no index.html"));
        assert!(refused(&folder.path().join("none")).contains("cannot be read"));
        for (name, text) in [("index.html", "page"), (".secret", "s"), ("a.js", "a")] {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        std::fs::create_dir(folder.path().join("assets")).expect("a folder");
        std::fs::write(folder.path().join("assets/b.wasm"), "b").expect("a file");
        let page = PageFiles::from_folder(folder.path()).expect("a page");
        for path in ["", "index.html", "a.js", "assets/b.wasm"] {
            assert!(page.find(path).is_some(), "{path}");
        }
        for path in [".secret", "assets", "assets/", "../index.html", "./a.js", "/a.js", "assets/../a.js", "A.js"] {
            assert!(page.find(path).is_none(), "{path}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_is_no_page_is_not_searched_for_ever() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("index.html"), "page").expect("a file");
        std::os::unix::fs::symlink(folder.path(), folder.path().join("again")).expect("a link");
        assert!(matches!(PageFiles::from_folder(folder.path()), Err(PageError::TooLarge { .. })));
    }
}
