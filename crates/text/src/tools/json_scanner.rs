//! Reads JSON one character at a time and says where a value ends and where it stops being JSON.
//!
//! It keeps no text. Control characters inside strings are let through, because models write line ends there; whoever
//! passes the text on escapes them (`escaped`).

/// Nesting that is followed; JSON libraries give up there too.
const DEPTH_MAX: usize = 100;

/// What a character did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scan {
    /// The value goes on.
    More,
    /// The value ends with this character.
    Done,
    /// No JSON value begins like this; the character was not taken.
    Invalid,
}

/// Where the scanner stands, seen from the members of the outermost object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Within a key.
    Key,
    /// Behind a key.
    AfterKey,
    /// Behind a colon.
    BeforeValue,
    /// Within a member's value.
    InValue,
    /// Behind a value.
    AfterValue,
    /// Anywhere else.
    Outside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Value,
    FirstValue,
    FirstKey,
    Key,
    Colon,
    AfterValue,
    /// `escape`: 0 outside an escape, 1 behind the backslash, 2 to 5 before so many minus one hexadecimal digits.
    Text {
        is_key: bool,
        escape: u8,
    },
    Number(Number),
    Word {
        rest: &'static str,
    },
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

/// The state of reading one value, which must be an object.
#[derive(Debug, Clone)]
pub(crate) struct JsonScanner {
    /// Open brackets, `{` or `[`.
    open: Vec<char>,
    state: State,
}

impl JsonScanner {
    /// Before an object.
    pub fn new() -> Self {
        Self { open: Vec::new(), state: State::Value }
    }

    /// Whether nothing but white space has come.
    pub fn is_fresh(&self) -> bool {
        self.open.is_empty() && self.state == State::Value
    }

    /// Whether the next character is inside a string.
    pub fn is_in_text(&self) -> bool {
        matches!(self.state, State::Text { .. })
    }

    /// See [`Place`].
    pub fn place(&self) -> Place {
        match (self.open.len(), self.state) {
            (0, _) => Place::Outside,
            (1, State::Text { is_key: true, .. }) => Place::Key,
            (1, State::Colon) => Place::AfterKey,
            (1, State::Value) => Place::BeforeValue,
            (1, State::AfterValue) => Place::AfterValue,
            (1, State::FirstKey | State::Key) => Place::Outside,
            _ => Place::InValue,
        }
    }

    /// Takes a character.
    pub fn push(&mut self, c: char) -> Scan {
        let before = self.state;
        let taken = match before {
            State::Text { is_key, escape } => self.text(c, is_key, escape),
            State::Number(number) => match number.next(c) {
                Some(next) => self.go(State::Number(next)),
                None if number.may_end() => {
                    self.state = State::AfterValue;
                    self.between(c)
                }
                None => false,
            },
            State::Word { rest } => self.word(c, rest),
            _ => self.between(c),
        };
        match (taken, self.state) {
            (false, _) => {
                self.state = before;
                Scan::Invalid
            }
            (true, State::Done) => Scan::Done,
            (true, _) => Scan::More,
        }
    }

    fn go(&mut self, state: State) -> bool {
        self.state = state;
        true
    }

    fn between(&mut self, c: char) -> bool {
        if matches!(c, ' ' | '\t' | '\n' | '\r') {
            return self.state != State::Done;
        }
        match (self.state, c) {
            (State::FirstKey, '}') | (State::AfterValue, '}') => self.close('{'),
            (State::FirstValue, ']') | (State::AfterValue, ']') => self.close('['),
            (State::FirstKey | State::Key, '"') => self.go(State::Text { is_key: true, escape: 0 }),
            (State::Colon, ':') => self.go(State::Value),
            (State::AfterValue, ',') => {
                let next = if self.open.last() == Some(&'{') { State::Key } else { State::Value };
                self.go(next)
            }
            (State::Value | State::FirstValue, _) if self.open.is_empty() => c == '{' && self.open(c, State::FirstKey),
            (State::Value | State::FirstValue, _) => self.begin_value(c),
            _ => false,
        }
    }

    fn begin_value(&mut self, c: char) -> bool {
        match c {
            '{' => self.open(c, State::FirstKey),
            '[' => self.open(c, State::FirstValue),
            '"' => self.go(State::Text { is_key: false, escape: 0 }),
            '-' => self.go(State::Number(Number::Minus)),
            '0' => self.go(State::Number(Number::Zero)),
            '1'..='9' => self.go(State::Number(Number::Whole)),
            't' => self.go(State::Word { rest: "rue" }),
            'f' => self.go(State::Word { rest: "alse" }),
            'n' => self.go(State::Word { rest: "ull" }),
            _ => false,
        }
    }

    fn open(&mut self, bracket: char, inside: State) -> bool {
        if self.open.len() == DEPTH_MAX {
            return false;
        }
        self.open.push(bracket);
        self.go(inside)
    }

    fn close(&mut self, bracket: char) -> bool {
        if self.open.last() != Some(&bracket) {
            return false;
        }
        self.open.pop();
        self.go(if self.open.is_empty() { State::Done } else { State::AfterValue })
    }

    fn text(&mut self, c: char, is_key: bool, escape: u8) -> bool {
        let next = match (escape, c) {
            (0, '"') => return self.go(if is_key { State::Colon } else { State::AfterValue }),
            (0, '\\') => 1,
            (0, _) => 0,
            (1, 'u') => 5,
            (1, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => 0,
            (1, _) => return false,
            (digits, _) if c.is_ascii_hexdigit() => {
                if digits == 2 {
                    0
                } else {
                    digits - 1
                }
            }
            _ => return false,
        };
        self.go(State::Text { is_key, escape: next })
    }

    fn word(&mut self, c: char, rest: &'static str) -> bool {
        match rest.strip_prefix(c) {
            Some("") => self.go(State::AfterValue),
            Some(rest) => self.go(State::Word { rest }),
            None => false,
        }
    }
}

impl Number {
    fn next(self, c: char) -> Option<Self> {
        match (self, c) {
            (Self::Minus, '0') => Some(Self::Zero),
            (Self::Minus, '1'..='9') | (Self::Whole, '0'..='9') => Some(Self::Whole),
            (Self::Zero | Self::Whole, '.') => Some(Self::Point),
            (Self::Point | Self::Fraction, '0'..='9') => Some(Self::Fraction),
            (Self::Zero | Self::Whole | Self::Fraction, 'e' | 'E') => Some(Self::Exponent),
            (Self::Exponent, '+' | '-') => Some(Self::ExponentSign),
            (Self::Exponent | Self::ExponentSign | Self::ExponentDigits, '0'..='9') => Some(Self::ExponentDigits),
            _ => None,
        }
    }

    fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Whole | Self::Fraction | Self::ExponentDigits)
    }
}

/// Appends a character of JSON text; inside strings, control characters are written as JSON wants them.
pub(crate) fn push_escaped(text: &mut String, c: char, in_text: bool) {
    match c {
        '\n' if in_text => text.push_str("\\n"),
        '\r' if in_text => text.push_str("\\r"),
        '\t' if in_text => text.push_str("\\t"),
        c if in_text && u32::from(c) < 0x20 => text.push_str(&format!("\\u{:04x}", u32::from(c))),
        c => text.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of the object in bytes, or where it stops being one.
    fn scan(text: &str) -> (Scan, usize) {
        let mut scanner = JsonScanner::new();
        for (at, c) in text.char_indices() {
            match scanner.push(c) {
                Scan::More => {}
                end => return (end, at),
            }
        }
        (Scan::More, text.len())
    }

    #[test]
    fn objects_end_where_json_says() {
        for text in [
            "{}",
            r#" { "a" : [1, -0.5e+3, {"b": []}], "c": "}\"\u00e9", "d": true, "e": null, "f": false }"#,
            r#"{"a":0}"#,
        ] {
            let text_and_more = format!("{text} more");
            assert_eq!(scan(&text_and_more), (Scan::Done, text.len() - 1), "{text}");
            assert!(serde_json::from_str::<serde_json::Value>(text).is_ok());
        }
    }

    #[test]
    fn what_is_not_json_is_found_at_its_first_wrong_character() {
        for (text, at) in [
            ("[1]", 0),
            ("{a", 1),
            (r#"{"a" 1"#, 5),
            (r#"{"a":01"#, 6),
            (r#"{"a":1.}"#, 7),
            (r#"{"a":tru}"#, 8),
            (r#"{"a":"\x"#, 7),
            (r#"{"a":1,}"#, 7),
            (r#"{"a":[1}"#, 7),
            (r#"{"a":[,"#, 6),
            (r#"{"a":"\u12g"#, 10),
        ] {
            assert_eq!(scan(text), (Scan::Invalid, at), "{text}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let text = format!("{{\"a\":{}", "[".repeat(DEPTH_MAX + 1));
        assert_eq!(scan(&text).0, Scan::Invalid);
    }
}
