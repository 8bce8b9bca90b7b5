//! Standard output: what a command is asked for goes here, everything else to standard error.

use std::io::{self, Write};
use std::process;

/// Writes text and flushes it, so that streamed words appear at once. A reader that has gone, as in `… | head`, ends
/// the program quietly.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let Err(error) = written {
        if error.kind() != io::ErrorKind::BrokenPipe {
            eprintln!("error: cannot write to standard output: {error}");
            process::exit(1);
        }
        process::exit(0);
    }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.2} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_the_largest_unit_that_fits() {
        assert_eq!((size(900), size(1536), size(5 << 30)), ("900 B".into(), "1.50 KiB".into(), "5.00 GiB".into()));
    }
}
