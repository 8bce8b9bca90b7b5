//! The repository's own commands: `cargo xtask tidy` and `cargo xtask ci`.
//!
//! Tidy checks what compiler and clippy cannot: which crate may depend on which, sizes, names and completeness. Nothing
//! here changes a file.

mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
usage: cargo xtask <command>

  tidy   check crate edges, sizes, names, unsafe code and the sources of every operation
  ci     run everything that must hold before a change lands (scripts/test.sh)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let root = repository_root();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => tidy::run(&root),
        ["ci"] => ci(&root),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// The whole gate is one script, so that it also runs on a machine that has no Rust yet.
fn ci(root: &Path) -> ExitCode {
    match Command::new(root.join("scripts/test.sh")).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: scripts/test.sh cannot be run: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The folder that holds `crates/xtask`. A binary may have been built where another copy of the repository lay: Cargo says where
/// this one is.
fn repository_root() -> PathBuf {
    let package = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
    let root = Path::new(&package).ancestors().nth(2);
    root.expect("this package is in `crates/xtask` of the repository").to_path_buf()
}
