//! What is written while working and must not stay.

use super::Finding;
use super::rust_source::without_literals;
use super::tree::Tree;

/// Words that promise work instead of doing it, put together here so that this file does not hold them.
const MARKS: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];
const MACROS: [&str; 3] = ["todo!", "unimplemented!", "dbg!"];

pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.files {
        let Some(text) = file.text.as_deref() else { continue };
        find(&file.path, text, &MARKS, &mut findings);
        if file.rust().is_some() {
            find(&file.path, &without_literals(text), &MACROS, &mut findings);
        }
    }
    findings
}

fn find(path: &str, text: &str, words: &[&str], findings: &mut Vec<Finding>) {
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(word) = words.iter().find(|word| line.contains(*word)) {
            findings.push(Finding::Error(format!("{path}:{number}: `{word}` is left over")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::errors;
    use super::*;

    #[test]
    fn marks_are_found_everywhere_and_macros_in_code() {
        let mark = format!("# {}: later", MARKS[0]);
        let tree = Tree::of(&[
            ("scripts/a.sh", &mark),
            ("a.rs", "fn f() {\n    todo!()\n}"),
            ("b.rs", "// `todo!` is only named here"),
        ]);
        let expected = [format!("scripts/a.sh:1: `{}` is left over", MARKS[0]), "a.rs:2: `todo!` is left over".into()];
        assert_eq!(errors(check(&tree)), expected);
    }
}
