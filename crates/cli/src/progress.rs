//! Progress bars on standard error, and a way to write lines above them. On anything but a terminal they are silent.

use std::io::{self, IsTerminal, Write};

use firebrick::SourceEvent;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

/// The bars of one command.
#[derive(Clone, Default)]
pub struct Bars(MultiProgress);

impl Bars {
    /// No bars yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether anybody sees them.
    pub fn are_visible(&self) -> bool {
        io::stderr().is_terminal()
    }

    /// A bar of bytes; without a total it only counts.
    pub fn bytes(&self, what: &str, total: Option<u64>) -> ProgressBar {
        let (bar, template) = match total {
            Some(total) => (ProgressBar::new(total), "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"),
            None => (ProgressBar::new_spinner(), "{spinner} {msg} {bytes}"),
        };
        self.styled(bar, template, what)
    }

    /// A bar of things done.
    pub fn count(&self, what: &str, total: u64) -> ProgressBar {
        self.styled(ProgressBar::new(total), "{msg} [{bar:30}] {pos}/{len} {elapsed} {eta}", what)
    }

    fn styled(&self, bar: ProgressBar, template: &str, what: &str) -> ProgressBar {
        let style = ProgressStyle::with_template(template).expect("the template is a constant and valid");
        let bar = self.0.add(bar.with_style(style.progress_chars("=> ")));
        bar.set_message(what.to_owned());
        bar
    }

    /// Shows a download as [`firebrick::resolve_with`] tells of it.
    pub fn download(&self, name: &str) -> impl FnMut(SourceEvent) + use<> {
        let (bars, name) = (self.clone(), name.to_owned());
        let mut bar: Option<ProgressBar> = None;
        move |event| match event {
            SourceEvent::Download { num_files, total_bytes } if num_files > 0 => {
                tracing::info!("downloading {name}: {num_files} files, {}", crate::output::size(total_bytes));
                bar = Some(bars.bytes("downloading", (total_bytes > 0).then_some(total_bytes)));
            }
            SourceEvent::Download { .. } => {}
            SourceEvent::Progress { bytes } => {
                if let Some(bar) = &bar {
                    bar.set_position(bytes);
                }
            }
        }
    }
}

/// Log lines are written while the bars stand aside.
impl<'a> MakeWriter<'a> for Bars {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter { bars: self.0.clone(), line: Vec::new() }
    }
}

/// Collects one line and writes it whole.
pub struct LineWriter {
    bars: MultiProgress,
    line: Vec<u8>,
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        // Nobody can be told that the log cannot be written.
        let _ = self.bars.suspend(|| io::stderr().write_all(&self.line));
    }
}
