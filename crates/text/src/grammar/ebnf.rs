//! Grammars in EBNF as llama.cpp and xgrammar write it (`root ::= "a" | [0-9]+`), rewritten in Lark notation.
//!
//! Literals, character classes, groups, alternatives, repetitions and comments are understood; the grammar begins with
//! the rule `root`. Everything else is refused with its line.

use std::collections::HashMap;
use std::fmt::Write;
use std::iter::Peekable;
use std::str::Chars;

use super::GrammarError;
use super::lark_text::literal;

const ROOT: &str = "root";

/// Whether a text is in this notation; Lark has no `::=`.
pub(super) fn is_ebnf(text: &str) -> bool {
    text.contains("::=")
}

/// The same grammar in Lark notation.
pub(super) fn to_lark(text: &str) -> Result<String, GrammarError> {
    let mut rewriter = Rewriter { chars: text.chars().peekable(), line: 1, names: HashMap::new(), lark: String::new() };
    rewriter.run()?;
    let Rewriter { names, lark, .. } = rewriter;
    let mut undefined: Vec<&str> =
        names.iter().filter(|(_, name)| !name.is_defined).map(|(name, _)| name.as_str()).collect();
    undefined.sort_unstable();
    if let Some(name) = undefined.first() {
        return Err(invalid(format!("the rule {name:?} is used and not defined")));
    }
    let root = names.get(ROOT).ok_or_else(|| invalid("the rule \"root\" is missing".to_owned()))?;
    Ok(format!("start: r{}{lark}\n", root.number))
}

fn invalid(reason: String) -> GrammarError {
    GrammarError::Invalid { reason }
}

struct Name {
    number: usize,
    is_defined: bool,
}

struct Rewriter<'a> {
    chars: Peekable<Chars<'a>>,
    line: usize,
    names: HashMap<String, Name>,
    lark: String,
}

impl Rewriter<'_> {
    fn run(&mut self) -> Result<(), GrammarError> {
        let mut begun = false;
        while let Some(c) = self.next() {
            match c {
                '#' => while self.next().is_some_and(|c| c != '\n') {},
                c if c.is_whitespace() => {}
                c if c.is_ascii_alphabetic() || c == '_' => begun |= self.name(c)?,
                _ if !begun => return Err(self.wrong("a rule begins with its name and ::=")),
                '"' => self.literal()?,
                '[' => self.class()?,
                '{' => self.repetition()?,
                '.' => self.lark.push_str(" /(?s:.)/"),
                '|' => self.lark.push_str(" |"),
                '(' => self.lark.push_str(" ("),
                ')' | '*' | '+' | '?' => self.lark.push(c),
                other => return Err(self.wrong(&format!("{other:?} is not understood"))),
            }
        }
        if begun { Ok(()) } else { Err(invalid("the grammar has no rules".to_owned())) }
    }

    fn next(&mut self) -> Option<char> {
        let c = self.chars.next();
        self.line += usize::from(c == Some('\n'));
        c
    }

    fn wrong(&self, reason: &str) -> GrammarError {
        invalid(format!("EBNF, line {}: {reason}", self.line))
    }

    /// A name; before `::=` it begins its rule, elsewhere it is used. Says whether a rule begins.
    fn name(&mut self, first: char) -> Result<bool, GrammarError> {
        let mut name = String::from(first);
        while let Some(&c) = self.chars.peek()
            && (c.is_ascii_alphanumeric() || c == '-' || c == '_')
        {
            name.push(c);
            self.next();
        }
        let mut ahead = self.chars.clone();
        while ahead.next_if(|c| c.is_whitespace()).is_some() {}
        let is_rule = ahead.by_ref().take(3).eq("::=".chars());
        let number = self.names.len();
        let entry = self.names.entry(name).or_insert(Name { number, is_defined: false });
        let number = entry.number;
        if !is_rule {
            let _ = write!(self.lark, " r{number}");
            return Ok(false);
        }
        if std::mem::replace(&mut entry.is_defined, true) {
            return Err(self.wrong("the rule is defined twice"));
        }
        while self.next() != Some('=') {}
        let _ = write!(self.lark, "\nr{number}:");
        Ok(true)
    }

    fn literal(&mut self) -> Result<(), GrammarError> {
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') => break,
                Some('\\') => text.push(self.escape()?),
                Some(c) => text.push(c),
                None => return Err(self.wrong("a literal does not end")),
            }
        }
        self.lark.push(' ');
        self.lark.push_str(&literal(&text));
        Ok(())
    }

    /// A class of characters, written again with every character as a number.
    fn class(&mut self) -> Result<(), GrammarError> {
        let mut class = String::new();
        if self.chars.next_if_eq(&'^').is_some() {
            class.push('^');
        }
        let mut is_empty = true;
        loop {
            let c = match self.next() {
                Some(']') => break,
                Some('\\') => self.escape()?,
                // Between two characters it is a range, at either end of the class itself.
                Some('-') if !is_empty && !class.ends_with('-') && self.chars.peek() != Some(&']') => {
                    class.push('-');
                    continue;
                }
                Some(c) => c,
                None => return Err(self.wrong("a class of characters does not end")),
            };
            is_empty = false;
            let _ = write!(class, "\\u{{{:x}}}", c as u32);
        }
        if is_empty {
            return Err(self.wrong("a class of characters is empty"));
        }
        let _ = write!(self.lark, " /[{class}]/");
        Ok(())
    }

    fn repetition(&mut self) -> Result<(), GrammarError> {
        let mut counts = String::new();
        loop {
            match self.next() {
                Some('}') => break,
                Some(c) if c.is_ascii_digit() || c == ',' => counts.push(c),
                Some(' ') => {}
                _ => return Err(self.wrong("a repetition is written {n}, {n,} or {n,m}")),
            }
        }
        let _ = write!(self.lark, "{{{counts}}}");
        Ok(())
    }

    fn escape(&mut self) -> Result<char, GrammarError> {
        let digits = match self.next() {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some(c) if !c.is_ascii_alphanumeric() => return Ok(c),
            _ => return Err(self.wrong("an escape is not understood")),
        };
        let mut code = 0;
        for _ in 0..digits {
            let digit = self.next().and_then(|c| c.to_digit(16));
            code = code * 16 + digit.ok_or_else(|| self.wrong("an escape has too few digits"))?;
            if code > 0x0010_ffff {
                break;
            }
        }
        char::from_u32(code).ok_or_else(|| self.wrong("an escape is not a character"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_rewritten_with_numbers_for_names() {
        let text =
            "# a sum\nroot ::= num-ber (\"+\" num-ber){2,3} |\n  \"\\\"\\x41\\u00e9\"\nnum-ber ::= [0-9]+ # digits\n";
        let lark = to_lark(text).expect("understood");
        assert_eq!(lark, "start: r0\nr0: r1 ( \"+\" r1){2,3} | \"\\\"Aé\"\nr1: /[\\u{30}-\\u{39}]/+\n");
    }

    #[test]
    fn classes_keep_their_meaning() {
        let lark = to_lark(r#"root ::= [^\]/-] [a-c-] [\n&&]"#).expect("understood");
        assert!(lark.contains(r"/[^\u{5d}\u{2f}\u{2d}]/ /[\u{61}-\u{63}\u{2d}]/ /[\u{a}\u{26}\u{26}]/"), "{lark}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let reason = |text: &str| to_lark(text).expect_err("refused").to_string();
        assert!(reason("root ::= a").contains("\"a\" is used and not defined"));
        assert!(reason("a ::= \"x\"").contains("\"root\" is missing"));
        assert!(reason("root ::= \"x\"\nroot ::= \"y\"").contains("line 2: the rule is defined twice"));
        assert!(reason("root ::= \"x").contains("does not end"));
        assert!(reason("root ::= [x").contains("does not end"));
        assert!(reason("root ::= []").contains("empty"));
        assert!(reason("root ::= \"\\q\"").contains("escape"));
        assert!(reason("root ::= \"\\ud800\"").contains("not a character"));
        assert!(reason("root ::=\n@x").contains("line 2: '@'"));
        assert!(reason("\"x\" root ::= \"x\"").contains("begins with its name"));
        assert!(reason("root ::= \"x\"{a}").contains("repetition"));
        assert!(reason("::=").contains("begins with its name"));
    }
}
