//! Just enough of Rust's grammar to count lines: comments and literals are blanked out, and the test module cut off.

/// A source with comments, strings and character literals replaced by spaces; lines and columns stay where they are.
pub fn without_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(code).expect("literals are replaced whole, so that no character is cut")
}

/// Where the comment or literal that starts at `at` ends; `at` itself when none does.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let inside_word = at > 0 && is_word(bytes[at - 1]);
    match rest {
        [b'/', b'/', ..] => at + rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => at + block_comment_len(rest),
        [b'"', ..] => at + string_len(rest),
        [b'r', b'"' | b'#', ..] if !inside_word => at + raw_string_len(rest),
        [b'\'', ..] => at + char_len(rest),
        _ => at,
    }
}

fn block_comment_len(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at + 1 < rest.len() {
        match (rest[at], rest[at + 1]) {
            (b'/', b'*') => (depth, at) = (depth + 1, at + 2),
            (b'*', b'/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn string_len(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Zero when this is a raw identifier, `r#type`.
fn raw_string_len(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|&&byte| byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let closing: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = &rest[2 + hashes..];
    let end = body.windows(closing.len()).position(|window| window == closing);
    end.map_or(rest.len(), |end| 2 + hashes + end + closing.len())
}

/// Zero when this is a lifetime or a label.
fn char_len(rest: &[u8]) -> usize {
    let text = match std::str::from_utf8(&rest[1..rest.len().min(16)]) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&rest[1..1 + error.valid_up_to()]).expect("checked up to here"),
    };
    let mut chars = text.char_indices();
    match chars.next() {
        // The escaped character may itself be a quote.
        Some((_, '\\')) => text[2.min(text.len())..].find('\'').map_or(0, |end| end + 4),
        Some(_) => chars.next().filter(|(_, next)| *next == '\'').map_or(0, |(end, _)| end + 2),
        None => 0,
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The part before `#[cfg(test)] mod tests { … }`, which is the last thing in a file.
pub fn without_tests(code: &str) -> &str {
    let mut search = 0;
    while let Some(found) = code[search..].find("#[cfg(test)]") {
        let start = search + found;
        let after = start + "#[cfg(test)]".len();
        if code[after..].trim_start().starts_with("mod tests {") {
            return &code[..start];
        }
        search = after;
    }
    code
}

/// Numbers (from 1) of the lines in which a word stands by itself.
pub fn lines_with_word<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    (1..).zip(code.lines()).filter(move |(_, line)| has_word(line, word)).map(|(number, _)| number)
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = at.checked_sub(1).map(|before| line.as_bytes()[before]);
        let after = line.as_bytes().get(at + word.len()).copied();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function<'a> {
    /// Its name.
    pub name: &'a str,
    /// Line of its `fn`, from 1.
    pub line: usize,
    /// Lines from there to the closing brace.
    pub num_lines: usize,
}

/// The functions of a source without literals; nested ones too.
pub fn functions(code: &str) -> Vec<Function<'_>> {
    let mut functions = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if at > 0 && is_word(code.as_bytes()[at - 1]) {
            continue;
        }
        let rest = &code[at + 3..];
        let name = &rest[..rest.bytes().take_while(|&byte| is_word(byte)).count()];
        if let Some(body) = body_end(rest).filter(|_| !name.is_empty()) {
            let lines = |text: &str| text.bytes().filter(|&byte| byte == b'\n').count();
            functions.push(Function { name, line: 1 + lines(&code[..at]), num_lines: 1 + lines(&rest[..body]) });
        }
    }
    functions
}

/// Where the body closes; `None` for a declaration, which ends with a semicolon outside of brackets.
fn body_end(rest: &str) -> Option<usize> {
    let (mut brackets, mut braces) = (0, 0);
    for (at, byte) in rest.bytes().enumerate() {
        match byte {
            b'(' | b'[' => brackets += 1,
            b')' | b']' => brackets -= 1,
            b'{' => braces += 1,
            b'}' => {
                braces -= 1;
                if braces == 0 && brackets == 0 {
                    return Some(at);
                }
            }
            b';' if braces == 0 && brackets == 0 => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blank() {
        assert_eq!(without_literals("a // {\nb"), "a     \nb");
        assert_eq!(without_literals("a /* { /* } */ { */ b").replace(' ', ""), "ab");
        assert_eq!(without_literals(r#"f("{ \" {", '{', '\'', 'x')"#).replace(' ', ""), "f(,,,)");
        assert_eq!(without_literals("r#\"{ \" {\"# + r#type").trim_start(), "+ r#type");
        assert_eq!(without_literals("fn f<'a>(x: &'a str) {}"), "fn f<'a>(x: &'a str) {}");
        assert_eq!(without_literals("'ä' 'b'").trim(), "");
    }

    #[test]
    fn the_test_module_is_cut_off_and_other_test_items_are_not() {
        let code = "#[cfg(test)]\nuse a;\nfn f() {}\n#[cfg(test)]\nmod tests {\n}\n";
        assert_eq!(without_tests(code), "#[cfg(test)]\nuse a;\nfn f() {}\n");
    }

    #[test]
    fn functions_are_measured_from_fn_to_the_closing_brace() {
        let code = "trait T { fn declared(x: [u8; 4]); }\n\npub fn f(\n    x: u8,\n) {\n    if x {\n    }\n}\n";
        assert_eq!(functions(code), [Function { name: "f", line: 3, num_lines: 6 }]);
    }

    #[test]
    fn words_stand_by_themselves() {
        assert_eq!(lines_with_word("unsafe_code\nunsafe {}\n", "unsafe").collect::<Vec<_>>(), [2]);
    }
}
