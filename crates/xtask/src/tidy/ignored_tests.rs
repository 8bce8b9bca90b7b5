//! A test that is not run says why.

use super::Finding;
use super::rust_source::without_literals;
use super::tree::Tree;

pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.files {
        let Some(text) = file.rust() else { continue };
        let code = without_literals(text);
        for (number, _) in (1..).zip(code.lines()).filter(|(_, line)| line.contains("#[ignore]")) {
            findings.push(Finding::Error(format!("{}:{number}: ignored without a reason", file.path)));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::errors;
    use super::*;

    #[test]
    fn an_ignored_test_needs_a_reason() {
        let tree = Tree::of(&[("a.rs", "#[ignore]\nfn f() {}"), ("b.rs", "#[ignore = \"needs a GPU\"]\nfn f() {}")]);
        assert_eq!(errors(check(&tree)), ["a.rs:1: ignored without a reason"]);
    }
}
