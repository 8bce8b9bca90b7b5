//! Makes a template count what its values cost, by writing filters into its expressions.
//!
//! The template engine bounds instructions and output, but not the values between them: a string that is appended to
//! itself thirty times, a list of lists of lists. So every operand of an operator that makes larger values (`~`, `+`,
//! `*`), every input of a filter, every list, tuple and mapping that is written out, and whatever a loop goes through, is
//! followed by a filter that charges its size ([`template_budget`](crate::template_budget)) and leaves it as it is.
//!
//! This reads tokens, not grammar: a filter binds tighter than every operator, so that what stands before and after an
//! operator is enough to know. What cannot be metered so is refused: a product of more than two factors without
//! brackets. Text that is no valid expression stays as it is, for the parser to refuse.

use std::collections::BTreeMap;

use crate::template_source::{Tag, tags};

/// Charges a value as it is.
pub(crate) const CHARGE: &str = "_charged";
/// Charges what going through a value costs.
pub(crate) const CHARGE_LOOP: &str = "_looped";
/// Notes the first factor of a product.
pub(crate) const FIRST_FACTOR: &str = "_first_factor";
/// Charges the product of the factor noted last and this one.
pub(crate) const SECOND_FACTOR: &str = "_second_factor";

/// The template with its meters; an error says what cannot be metered.
pub(crate) fn metered(source: &str) -> Result<String, String> {
    let mut out = String::with_capacity(source.len() * 2);
    for part in tags(source) {
        match part {
            Tag::Text(text) => out.push_str(text),
            Tag::Code(code) => out.push_str(&metered_tag(code)?),
        }
    }
    Ok(out)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A name, number or string.
    Atom,
    /// A word that is an operator or begins a statement.
    Word,
    Open,
    Close,
    Operator,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    /// Byte behind it.
    end: usize,
}

/// Words that are no values.
const WORDS: [&str; 9] = ["in", "not", "and", "or", "if", "else", "is", "recursive", "set"];

fn tokens(code: &str) -> Vec<Token<'_>> {
    let bytes = code.as_bytes();
    let (mut found, mut at) = (Vec::new(), 2);
    let is_statement = code.starts_with("{%");
    while at + 2 < bytes.len() {
        let start = at;
        let byte = bytes[at];
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80;
        let kind = match byte {
            b' ' | b'\t' | b'\n' | b'\r' => {
                at += 1;
                continue;
            }
            b'"' | b'\'' => {
                at += 1;
                while at < bytes.len() && bytes[at] != byte {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at = (at + 1).min(bytes.len());
                Kind::Atom
            }
            _ if is_name(&byte) => {
                at += bytes[at..].iter().take_while(|byte| is_name(byte)).count();
                let first = is_statement && found.is_empty();
                if first || WORDS.contains(&&code[start..at]) { Kind::Word } else { Kind::Atom }
            }
            b'(' | b'[' | b'{' => {
                at += 1;
                Kind::Open
            }
            b')' | b']' | b'}' => {
                at += 1;
                Kind::Close
            }
            _ => {
                let pair = bytes.get(at..at + 2);
                let is_pair = pair.is_some_and(|pair| matches!(pair, b"**" | b"//" | b"==" | b"!=" | b"<=" | b">="));
                at += if is_pair { 2 } else { 1 };
                // The signs of white space control at both ends are no operators.
                if byte == b'-' && (found.is_empty() || at + 2 >= bytes.len()) || byte == b'+' && found.is_empty() {
                    continue;
                }
                Kind::Operator
            }
        };
        let Some(text) = code.get(start..at) else { return found };
        found.push(Token { kind, text, end: at });
    }
    found
}

/// The filters to be written behind bytes of a tag. Their order at one place is that of the numbers.
type Inserts = BTreeMap<(usize, u8), &'static str>;

fn metered_tag(code: &str) -> Result<String, String> {
    let tokens = tokens(code);
    let Some(partners) = partners(&tokens) else { return Ok(code.to_owned()) };
    let mut inserts = Inserts::new();
    let statement = tokens.first().filter(|token| token.kind == Kind::Word && code.starts_with("{%"));
    let statement = statement.map_or("", |token| token.text);
    // Targets of assignments and loops, and parameters, are no values.
    let values = match statement {
        "for" => tokens.iter().position(|token| token.text == "in").unwrap_or(0),
        "set" => tokens.iter().position(|token| token.text == "=").unwrap_or(0),
        "call" | "macro" => tokens.len(),
        _ => 0,
    };
    let mut products = vec![false];
    for (index, token) in tokens.iter().enumerate() {
        let before = index.checked_sub(1).map(|before| tokens[before]);
        let follows_value = before.is_some_and(|before| matches!(before.kind, Kind::Atom | Kind::Close));
        match (token.kind, token.text) {
            (Kind::Open, _) => {
                products.push(false);
                let is_list = token.text != "(" || has_comma(&tokens, index, partners[index]);
                if !follows_value && is_list && index >= values {
                    inserts.insert((tokens[partners[index]].end, 0), CHARGE);
                }
            }
            (Kind::Close, _) => drop(products.pop()),
            (Kind::Operator, "|") if follows_value => {
                inserts.insert((before.map_or(0, |before| before.end), 2), CHARGE);
            }
            (Kind::Operator, "~" | "+") if follows_value => {
                inserts.insert((before.map_or(0, |before| before.end), 2), CHARGE);
                inserts.insert((operand_end(&tokens, &partners, index + 1), 2), CHARGE);
            }
            (Kind::Operator, "*") if follows_value => {
                inserts.insert((before.map_or(0, |before| before.end), 3), FIRST_FACTOR);
                inserts.insert((operand_end(&tokens, &partners, index + 1), 3), SECOND_FACTOR);
            }
            _ => {}
        }
        let in_product = products.last_mut().expect("brackets have partners");
        match (token.kind, token.text) {
            (Kind::Operator, "*" | "**") if follows_value && *in_product => {
                return Err(format!(
                    "put the first two factors in brackets: {}",
                    code.chars().take(80).collect::<String>()
                ));
            }
            (Kind::Operator, "*" | "**" | "/" | "//" | "%") if follows_value => *in_product = true,
            (Kind::Operator, "." | "|") => {}
            (Kind::Operator | Kind::Word, _) => *in_product = false,
            _ => {}
        }
    }
    let mut out = written(code, &inserts);
    if statement == "for" {
        out = with_loop_charged(code, &tokens, &partners, &inserts).unwrap_or(out);
    }
    Ok(out)
}

/// `{% for x in (VALUE)|_looped if … %}`.
fn with_loop_charged(code: &str, tokens: &[Token], partners: &[usize], inserts: &Inserts) -> Option<String> {
    let begin = tokens.iter().position(|token| token.text == "in")?;
    let mut index = begin + 1;
    while let Some(token) = tokens.get(index) {
        match (token.kind, token.text) {
            (Kind::Word, "if" | "recursive") => break,
            (Kind::Open, _) => index = partners[index] + 1,
            _ => index += 1,
        }
    }
    let (from, to) = (tokens[begin].end, tokens.get(index - 1)?.end);
    if index == begin + 1 {
        return None;
    }
    let within = |range: std::ops::RangeInclusive<usize>| {
        inserts
            .iter()
            .filter(move |((at, _), _)| range.contains(at))
            .map(|(&key, &name)| (key, name))
            .collect::<Inserts>()
    };
    let shifted =
        |inserts: Inserts, by: usize| inserts.into_iter().map(|((at, order), name)| ((at - by, order), name)).collect();
    let value = written(&code[from..to], &shifted(within(from + 1..=to), from));
    let rest = written(&code[to..], &shifted(within(to + 1..=code.len()), to));
    Some(format!("{} ({value})|{CHARGE_LOOP}{rest}", &code[..from]))
}

fn written(code: &str, inserts: &Inserts) -> String {
    let (mut out, mut from) = (String::new(), 0);
    for ((at, _), name) in inserts {
        out.push_str(&code[from..*at]);
        out.push('|');
        out.push_str(name);
        from = *at;
    }
    out + &code[from..]
}

/// For every bracket the index of its partner; `None` where one is missing.
fn partners(tokens: &[Token]) -> Option<Vec<usize>> {
    let (mut partners, mut open) = (vec![0; tokens.len()], Vec::new());
    for (index, token) in tokens.iter().enumerate() {
        match token.kind {
            Kind::Open => open.push(index),
            Kind::Close => {
                let partner = open.pop()?;
                (partners[partner], partners[index]) = (index, partner);
            }
            _ => {}
        }
    }
    open.is_empty().then_some(partners)
}

fn has_comma(tokens: &[Token], open: usize, close: usize) -> bool {
    let mut depth = 0;
    tokens[open + 1..close].iter().any(|token| {
        depth += i32::from(token.kind == Kind::Open) - i32::from(token.kind == Kind::Close);
        depth == 0 && token.text == ","
    })
}

/// The byte behind an operand that begins with this token: signs, a value, and what is attached to it.
fn operand_end(tokens: &[Token], partners: &[usize], begin: usize) -> usize {
    let mut index = begin;
    while tokens.get(index).is_some_and(|token| matches!(token.text, "-" | "+" | "not")) {
        index += 1;
    }
    let mut end = tokens[index.min(tokens.len() - 1)].end;
    while let Some(token) = tokens.get(index) {
        match (token.kind, token.text) {
            (Kind::Open, _) => {
                end = tokens[partners[index]].end;
                index = partners[index] + 1;
            }
            (Kind::Atom, _) if index == begin || !matches!(tokens[index - 1].kind, Kind::Atom | Kind::Close) => {
                end = token.end;
                index += 1;
            }
            (Kind::Operator, "." | "|") => index += 1,
            _ => break,
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_inputs_lists_and_loops_are_charged() {
        for (source, expected) in [
            ("{{ x }}", "{{ x }}"),
            ("{{ a ~ b.c[0] }}", "{{ a|_charged ~ b.c[0]|_charged }}"),
            ("{{- a.b(c) + 'd' -}}", "{{- a.b(c)|_charged + 'd'|_charged -}}"),
            ("{{ x|upper }}", "{{ x|_charged|upper }}"),
            ("{{ -x + -y|abs }}", "{{ -x|_charged + -y|_charged|abs|_charged }}"),
            ("{{ 2 * x }}", "{{ 2|_first_factor * x|_second_factor }}"),
            ("{{ f(*a, **b) }}", "{{ f(*a, **b) }}"),
            ("{% set x = [a, {'b': c}] %}", "{% set x = [a, {'b': c}|_charged]|_charged %}"),
            ("{% set a, b = (c, d) %}", "{% set a, b = (c, d)|_charged %}"),
            ("{% for a, b in c %}", "{% for a, b in ( c)|_looped %}"),
            ("{%- for m in a + b if m[0] -%}", "{%- for m in ( a|_charged + b|_charged)|_looped if m[0] -%}"),
            ("{% macro m(a, b=(1)) %}", "{% macro m(a, b=(1)) %}"),
            (
                "{{ 'a ~ b' }}{# a ~ b #}{% raw %}{{ a ~ b }}{% endraw %} a ~ b",
                "{{ 'a ~ b' }}{# a ~ b #}{% raw %}{{ a ~ b }}{% endraw %} a ~ b",
            ),
            ("{{ {'a': {}}|tojson }}", "{{ {'a': {}|_charged}|_charged|_charged|tojson }}"),
            ("{{ a[1:] + b }}", "{{ a[1:]|_charged + b|_charged }}"),
            ("{{ ( }} {{ 'a", "{{ ( }} {{ 'a"),
        ] {
            assert_eq!(metered(source).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn products_of_more_than_two_factors_need_brackets() {
        for refused in ["{{ 'x' * 9 * 9 }}", "{{ 9 ** 9 * 'x' }}", "{{ 9 // 1 * 'x' }}", "{{ 'x' * 9 ** 9 }}"] {
            assert!(metered(refused).is_err(), "{refused}");
        }
        for sound in ["{{ ('x' * 9) * 9 }}", "{{ a * 2 + b * 3 }}", "{{ f(a * 2) * 3 }}", "{{ a * 6 / 2 }}"] {
            assert!(metered(sound).is_ok(), "{sound}");
        }
    }
}
