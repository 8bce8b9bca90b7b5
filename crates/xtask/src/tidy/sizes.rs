//! Files that are too long to be read in one sitting, and functions that are longer than a screen.

use super::Finding;
use super::rust_source::{functions, without_literals, without_tests};
use super::tree::{File, Tree};

/// A file with more lines is a long one.
const FILE_LINES_LONG: usize = 400;
/// No file has more lines, tests aside.
const FILE_LINES_MAX: usize = 600;
/// No function has more lines.
const FUNCTION_LINES_MAX: usize = 70;
/// No example has more lines.
const EXAMPLE_LINES_MAX: usize = 60;
/// The endings of files that are written by hand and compiled or run.
const SOURCE_ENDINGS: [&str; 6] = [".rs", ".cu", ".cuh", ".wgsl", ".py", ".sh"];

pub fn check(tree: &Tree) -> Vec<Finding> {
    let sources = tree.files.iter().filter(|file| SOURCE_ENDINGS.iter().any(|ending| file.path.ends_with(ending)));
    sources.filter(|file| !file.is_test()).flat_map(check_file).collect()
}

fn check_file(file: &File) -> Vec<Finding> {
    let Some(text) = file.text.as_deref() else { return Vec::new() };
    let code = if file.path.ends_with(".rs") { without_literals(text) } else { text.to_string() };
    let code = without_tests(&code);
    let path = &file.path;
    let num_lines = code.lines().count();
    let mut findings = Vec::new();
    if path.starts_with("examples/") && num_lines > EXAMPLE_LINES_MAX {
        findings.push(Finding::Error(format!("{path}: {num_lines} lines; an example has at most {EXAMPLE_LINES_MAX}")));
    }
    if num_lines > FILE_LINES_MAX {
        findings.push(Finding::Error(format!("{path}: {num_lines} lines without tests; at most {FILE_LINES_MAX}")));
    } else if num_lines > FILE_LINES_LONG {
        findings.push(Finding::Note(format!("{path}: {num_lines} lines without tests; look for the second noun")));
    }
    if file.rust().is_some() {
        let long = functions(code).into_iter().filter(|function| function.num_lines > FUNCTION_LINES_MAX);
        findings.extend(long.map(|function| {
            let (line, name, length) = (function.line, function.name, function.num_lines);
            Finding::Error(format!("{path}:{line}: `{name}` has {length} lines; at most {FUNCTION_LINES_MAX}"))
        }));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::errors;
    use super::*;

    fn function_of(num_lines: usize) -> String {
        format!("fn long() {{\n{}}}\n", "    x();\n".repeat(num_lines - 2))
    }

    #[test]
    fn a_long_file_is_a_note_and_a_longer_one_an_error() {
        let (note, error) = ("x();\n".repeat(401), "x();\n".repeat(601));
        let findings = check(&Tree::of(&[("a.rs", &note), ("b.wgsl", &error), ("c.rs", "x();\n")]));
        assert_eq!(findings.len(), 2);
        assert!(matches!(&findings[0], Finding::Note(text) if text.starts_with("a.rs: 401 lines")));
        assert!(matches!(&findings[1], Finding::Error(text) if text.starts_with("b.wgsl: 601 lines")));
    }

    #[test]
    fn tests_do_not_count() {
        let text = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{}}}\n", function_of(700));
        assert!(check(&Tree::of(&[("a.rs", &text), ("crates/a/tests/b.rs", &function_of(700))])).is_empty());
    }

    #[test]
    fn a_function_has_at_most_seventy_lines() {
        let found = errors(check(&Tree::of(&[("a.rs", &function_of(70)), ("b.rs", &function_of(71))])));
        assert_eq!(found, ["b.rs:1: `long` has 71 lines; at most 70"]);
    }

    #[test]
    fn an_example_has_at_most_sixty_lines() {
        let found = errors(check(&Tree::of(&[("examples/a.py", &"x\n".repeat(61))])));
        assert_eq!(found, ["examples/a.py: 61 lines; an example has at most 60"]);
    }
}
