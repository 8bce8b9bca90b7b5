//! A document that names tests names tests that exist.

use std::collections::HashSet;

use super::Finding;
use super::tree::Tree;

/// Its words in backquotes that read like names of tests are checked.
const DOCUMENT: &str = "docs/reliability.md";

pub fn check(tree: &Tree) -> Vec<Finding> {
    let Some(document) = tree.text(DOCUMENT) else { return Vec::new() };
    let known: HashSet<&str> = tree.files.iter().flat_map(|file| functions(file.text.as_deref(), &file.path)).collect();
    let missing = (1..).zip(document.lines()).flat_map(|(number, line)| {
        let names = line.split('`').skip(1).step_by(2).filter(|word| is_test_name(word));
        names.filter(|name| !known.contains(name)).map(move |name| (number, name)).collect::<Vec<_>>()
    });
    missing.map(|(number, name)| Finding::Error(format!("{DOCUMENT}:{number}: there is no test `{name}`"))).collect()
}

/// A claim in small letters: at least four words.
fn is_test_name(word: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    word.bytes().all(plain) && word.matches('_').count() >= 3
}

/// Names of the functions that a file defines.
fn functions<'a>(text: Option<&'a str>, path: &str) -> impl Iterator<Item = &'a str> {
    let keyword = if path.ends_with(".rs") { "fn " } else { "def " };
    let is_code = path.ends_with(".rs") || path.ends_with(".py");
    let lines = text.filter(|_| is_code).unwrap_or_default().lines();
    lines.filter_map(move |line| line.split_once(keyword)?.1.split(['(', '<']).next())
}

#[cfg(test)]
mod tests {
    use super::super::errors;
    use super::*;

    #[test]
    fn a_test_that_is_named_must_exist() {
        let code = ("a.rs", "    async fn a_claim_in_rust_holds() {}");
        let script = ("tests/b.py", "    def test_a_claim_in_python(self):");
        let document =
            "`a_claim_in_rust_holds`, `test_a_claim_in_python`,\n`a_claim_nobody_tests` and `Other::thing`, `--a-flag`";
        let tree = Tree::of(&[code, script, (DOCUMENT, document)]);
        assert_eq!(errors(check(&tree)), ["docs/reliability.md:2: there is no test `a_claim_nobody_tests`"]);
    }
}
