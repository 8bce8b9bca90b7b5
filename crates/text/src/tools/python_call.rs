//! `name(key=literal, …)` in Python to a name and a JSON object.

use serde_json::{Map, Number, Value};

use super::is_tool_name;

/// Nesting of lists and dictionaries that is followed.
const DEPTH_MAX: usize = 64;

/// The name and the arguments, or `None` when the text is not a call with keyword arguments that are literals.
pub(crate) fn parse_call(text: &str) -> Option<(String, String)> {
    let (name, rest) = text.split_once('(')?;
    let name = name.trim();
    let mut reader = Reader { rest, depth: 0 };
    let mut arguments = Map::new();
    while !reader.takes(')') {
        let (key, rest) = reader.rest.split_once('=')?;
        let key = key.trim();
        let is_key = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || c == '_');
        if !is_key || arguments.contains_key(key) {
            return None;
        }
        reader.rest = rest;
        arguments.insert(key.to_owned(), reader.literal()?);
        if !reader.takes(',') {
            reader.takes(')').then_some(())?;
            break;
        }
    }
    let whole = reader.rest.trim().is_empty() && is_tool_name(name);
    whole.then(|| (name.to_owned(), Value::Object(arguments).to_string()))
}

struct Reader<'a> {
    rest: &'a str,
    depth: usize,
}

impl Reader<'_> {
    fn takes(&mut self, c: char) -> bool {
        let rest = self.rest.trim_start().strip_prefix(c);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn literal(&mut self) -> Option<Value> {
        self.rest = self.rest.trim_start();
        match self.rest.chars().next()? {
            '"' | '\'' => self.text().map(Value::String),
            '[' => self.list('[', ']'),
            '(' => self.list('(', ')'),
            '{' => self.dictionary(),
            _ => self.word(),
        }
    }

    fn list(&mut self, open: char, close: char) -> Option<Value> {
        self.enter(open)?;
        let mut values = Vec::new();
        while !self.takes(close) {
            values.push(self.literal()?);
            if !self.takes(',') {
                self.takes(close).then_some(())?;
                break;
            }
        }
        self.depth -= 1;
        Some(Value::Array(values))
    }

    fn dictionary(&mut self) -> Option<Value> {
        self.enter('{')?;
        let mut members = Map::new();
        while !self.takes('}') {
            let Value::String(key) = self.literal()? else { return None };
            self.takes(':').then_some(())?;
            members.insert(key, self.literal()?);
            if !self.takes(',') {
                self.takes('}').then_some(())?;
                break;
            }
        }
        self.depth -= 1;
        Some(Value::Object(members))
    }

    fn enter(&mut self, open: char) -> Option<()> {
        self.depth += 1;
        (self.depth <= DEPTH_MAX && self.takes(open)).then_some(())
    }

    fn word(&mut self) -> Option<Value> {
        let end = self.rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '+' | '-' | '.')));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        match word {
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            "None" | "null" => Some(Value::Null),
            _ => {
                let digits = word.replace('_', "");
                let whole = digits.strip_prefix('+').unwrap_or(&digits);
                match whole.parse::<i64>() {
                    Ok(number) => Some(Value::Number(number.into())),
                    // Words such as `inf` are numbers to Rust and none in JSON.
                    Err(_) => Number::from_f64(whole.parse().ok()?).map(Value::Number),
                }
            }
        }
    }

    fn text(&mut self) -> Option<String> {
        let mut chars = self.rest.chars();
        let quote = chars.next()?;
        let mut text = String::new();
        loop {
            match chars.next()? {
                c if c == quote => break,
                '\\' => match chars.next()? {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    '0' => text.push('\0'),
                    'x' => text.push(code(&mut chars, 2)?),
                    'u' => text.push(code(&mut chars, 4)?),
                    'U' => text.push(code(&mut chars, 8)?),
                    '\n' => {}
                    c @ ('\\' | '\'' | '"') => text.push(c),
                    c => text.extend(['\\', c]),
                },
                c => text.push(c),
            }
        }
        self.rest = chars.as_str();
        Some(text)
    }
}

fn code(chars: &mut std::str::Chars<'_>, digits: usize) -> Option<char> {
    let mut value = 0;
    for _ in 0..digits {
        value = value * 16 + chars.next()?.to_digit(16)?;
    }
    char::from_u32(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_become_json() {
        let text = r#"f.g(a="x\n\u00e9'", b='\'', c=[1, -2.5, True], d={"k": None, 'l': (1,)}, e=1_000,)"#;
        let json = r#"{"a":"x\né'","b":"'","c":[1,-2.5,true],"d":{"k":null,"l":[1]},"e":1000}"#;
        assert_eq!(parse_call(text), Some(("f.g".to_owned(), json.to_owned())));
        assert_eq!(parse_call("now()"), Some(("now".to_owned(), "{}".to_owned())));
    }

    #[test]
    fn what_is_not_a_call_with_literals_is_refused() {
        for text in [
            "f(1)",
            "f(a=g())",
            "f(a=b)",
            "f(a=1 b=2)",
            "f(a=1, a=2)",
            "f(a=\"x)",
            "f(a=inf)",
            "f g(a=1)",
            "f(a=[1)",
            "f(a={1:2})",
            "(a=1)",
            "f(a=1))",
        ] {
            assert_eq!(parse_call(text), None, "{text}");
        }
        let deep = format!("f(a={}{})", "[".repeat(100), "]".repeat(100));
        assert_eq!(parse_call(&deep), None);
    }
}
