//! Files whose names say nothing.

use super::Finding;
use super::tree::Tree;

const FORBIDDEN: [&str; 6] = ["utils", "util", "helpers", "common", "misc", "manager"];

/// Shared test code has its customary place, and every kernel begins with the same text.
const ALLOWED: [&str; 3] = ["tests/common/", "kernels/common.cuh", "shaders/common/"];

pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| !ALLOWED.iter().any(|allowed| file.path.contains(allowed))) {
        let folders = file.path.split('/').rev().skip(1);
        if let Some(name) = folders.chain([file.stem()]).find(|name| FORBIDDEN.contains(name)) {
            findings.push(Finding::Error(format!("{}: `{name}` is not a name; say what is in it", file.path)));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::errors;
    use super::*;

    #[test]
    fn empty_names_are_refused_for_files_and_folders() {
        let tree = Tree::of(&[
            ("crates/a/src/utils.rs", ""),
            ("crates/a/src/helpers/x.rs", ""),
            ("crates/a/src/block_pool.rs", ""),
            ("crates/a/tests/common/mod.rs", ""),
            ("kernels/common.cuh", ""),
        ]);
        let found = errors(check(&tree));
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("crates/a/src/utils.rs: `utils`"));
        assert!(found[1].starts_with("crates/a/src/helpers/x.rs: `helpers`"));
    }
}
