//! A recording of a live engine: its inputs and decisions, one JSON value a line, written by a thread of its own.
//!
//! The first line is the engine's configuration and its blocks; every other line is a [`TraceEntry`]. A process that is
//! killed leaves whole lines and at most one broken last one. Entries hold the prompts, as tokens.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use firebrick_engine::{EngineConfig, TraceEntry};
use serde::{Deserialize, Serialize};

/// The first line of a recording.
#[derive(Debug, Serialize, Deserialize)]
pub struct RecordingHeader {
    /// The engine's configuration.
    pub config: EngineConfig,
    /// Blocks of its executor.
    pub kv_blocks: u32,
}

/// A file that a recording will go to.
#[derive(Debug)]
pub struct RecordingFile {
    file: File,
    path: String,
}

impl RecordingFile {
    /// Opens the file, which must not exist yet: a recording is never written over.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        Ok(Self { file, path: path.display().to_string() })
    }

    /// Writes the header and starts the thread that writes the rest.
    pub(crate) fn start(self, header: &RecordingHeader) -> Recording {
        /// Steps that the file may be behind; then the engine waits for it, for a recording with holes is worth nothing.
        const STEPS_BEHIND_MAX: usize = 256;
        let (sender, entries) = sync_channel(STEPS_BEHIND_MAX);
        let line = serde_json::to_vec(header).expect("a configuration has only numbers and names");
        std::thread::Builder::new()
            .name("recording".to_owned())
            .spawn(move || {
                if let Err(error) = write_all(self.file, line, &entries) {
                    tracing::error!(%error, path = self.path, "the recording ends here: it cannot be written");
                }
            })
            .expect("a thread for the recording can be started at start-up");
        Recording { sender: Some(sender) }
    }
}

/// The engine thread's end of a recording. The file is complete soon after it is dropped.
pub(crate) struct Recording {
    sender: Option<SyncSender<Vec<TraceEntry>>>,
}

impl Recording {
    /// Writes the entries down, in order. A recording that has failed takes none any more; serving goes on.
    pub fn push(&mut self, entries: Vec<TraceEntry>) {
        let failed = self.sender.as_ref().is_some_and(|sender| !entries.is_empty() && sender.send(entries).is_err());
        if failed {
            self.sender = None;
        }
    }
}

fn write_all(file: File, header: Vec<u8>, entries: &Receiver<Vec<TraceEntry>>) -> io::Result<()> {
    let mut writer = BufWriter::new(file);
    writer.write_all(&header)?;
    writer.write_all(b"\n")?;
    loop {
        let batch = match entries.try_recv() {
            Ok(batch) => batch,
            Err(TryRecvError::Disconnected) => return writer.flush(),
            Err(TryRecvError::Empty) => {
                writer.flush()?;
                match entries.recv() {
                    Ok(batch) => batch,
                    Err(_) => return Ok(()),
                }
            }
        };
        for entry in batch {
            serde_json::to_writer(&mut writer, &entry)?;
            writer.write_all(b"\n")?;
        }
    }
}
