//! The rules of the repository that a machine can check.
//!
//! Each rule is one file with one function from a [`Tree`] to its findings; this file lists them. A finding fails the
//! check, a note does not.

mod edges;
mod ignored_tests;
mod leftovers;
mod named_tests;
mod names;
mod ops;
mod places;
mod rooms;
mod rust_source;
mod sizes;
mod tree;
mod unsafe_code;

use std::path::Path;
use std::process::ExitCode;

use tree::Tree;

/// One line about one file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    /// Breaks a rule.
    Error(String),
    /// Worth a look.
    Note(String),
}

/// Everything that is checked on the files alone.
const RULES: [fn(&Tree) -> Vec<Finding>; 9] = [
    sizes::check,
    named_tests::check,
    names::check,
    unsafe_code::check,
    ops::check,
    leftovers::check,
    ignored_tests::check,
    places::check,
    rooms::check,
];

/// Checks the repository, prints what was found, one line each, and says so with the exit code.
pub fn run(root: &Path) -> ExitCode {
    let findings = match find(root) {
        Ok(findings) => findings,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut errors = 0;
    for finding in findings {
        match finding {
            Finding::Note(text) => println!("note: {text}"),
            Finding::Error(text) => {
                errors += 1;
                println!("error: {text}");
            }
        }
    }
    println!("tidy: {errors} {}", if errors == 1 { "finding" } else { "findings" });
    if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn find(root: &Path) -> Result<Vec<Finding>, String> {
    let tree = Tree::read(root)?;
    let mut findings = edges::check(&edges::packages(root)?);
    findings.extend(RULES.iter().flat_map(|rule| rule(&tree)));
    Ok(findings)
}

/// The texts of all errors, for tests.
#[cfg(test)]
fn errors(findings: Vec<Finding>) -> Vec<String> {
    findings
        .into_iter()
        .filter_map(|finding| match finding {
            Finding::Error(text) => Some(text),
            Finding::Note(_) => None,
        })
        .collect()
}
