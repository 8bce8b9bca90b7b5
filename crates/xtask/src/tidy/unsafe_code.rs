//! `unsafe` stands in few files, each of which says why it is sound.

use super::Finding;
use super::rust_source::{lines_with_word, without_literals};
use super::tree::Tree;

/// Vector instructions, the CUDA driver, and files mapped into memory.
const ALLOWED: [&str; 4] = [
    "crates/ops/src/launch.rs",
    "crates/ops/src/cpu/lanes.rs",
    "crates/ops/src/cuda/",
    "crates/checkpoint/src/file.rs",
];

pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.files {
        let Some(text) = file.rust() else { continue };
        let code = without_literals(text);
        let Some(line) = lines_with_word(&code, "unsafe").next() else { continue };
        if !ALLOWED.iter().any(|allowed| file.path.starts_with(allowed)) {
            findings.push(Finding::Error(format!("{}:{line}: unsafe code does not belong here", file.path)));
        } else if !text.contains("// SAFETY") {
            findings.push(Finding::Error(format!("{}:{line}: unsafe code without a `// SAFETY` comment", file.path)));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::errors;
    use super::*;

    #[test]
    fn unsafe_code_needs_its_place_and_its_reason() {
        let tree = Tree::of(&[
            ("crates/ops/src/launch.rs", "// SAFETY: checked above.\nunsafe { f() }"),
            ("crates/ops/src/cuda/driver.rs", "unsafe { f() }"),
            ("crates/engine/src/lib.rs", "\nunsafe { f() }"),
            ("crates/text/src/lib.rs", "// unsafe is only a word here"),
        ]);
        assert_eq!(
            errors(check(&tree)),
            [
                "crates/ops/src/cuda/driver.rs:1: unsafe code without a `// SAFETY` comment",
                "crates/engine/src/lib.rs:2: unsafe code does not belong here",
            ]
        );
    }
}
