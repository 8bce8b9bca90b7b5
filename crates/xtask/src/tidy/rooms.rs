//! Words of the standard library that a crate must not know, so that it stays what ARCHITECTURE.md says it is. Tests may.

use super::Finding;
use super::rust_source::{without_literals, without_tests};
use super::tree::Tree;

/// Where, which words, and why not.
const FORBIDDEN: [(&str, &[&str], &str); 3] = [
    (
        "crates/engine/src/",
        &["std::thread", "std::time", "std::net", "std::fs", "std::env", "RandomState"],
        "the engine is a pure state machine",
    ),
    ("crates/text/src/", &["std::thread", "std::time", "std::net", "std::env"], "text is pure computation"),
    ("crates/model/src/", &["cfg(feature"], "models do not ask which backend runs them"),
];

pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.files {
        let rules = FORBIDDEN.iter().filter(|(folder, ..)| file.path.starts_with(folder));
        for (_, words, reason) in rules {
            let code = without_literals(file.rust().unwrap_or_default());
            for (number, line) in (1..).zip(without_tests(&code).lines()) {
                if let Some(word) = words.iter().find(|word| line.contains(*word)) {
                    findings.push(Finding::Error(format!("{}:{number}: `{word}`: {reason}", file.path)));
                }
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::errors;
    use super::*;

    #[test]
    fn the_engine_reads_no_clock() {
        let tree = Tree::of(&[
            ("crates/engine/src/plan.rs", "//! No std::time here.\nuse std::time::Instant;"),
            ("crates/engine/src/trace.rs", "#[cfg(test)]\nmod tests {\n    use std::fs;\n}"),
            ("crates/server/src/state.rs", "use std::time::Instant;"),
        ]);
        let expected = ["crates/engine/src/plan.rs:2: `std::time`: the engine is a pure state machine"];
        assert_eq!(errors(check(&tree)), expected);
    }
}
