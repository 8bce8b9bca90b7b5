//! How a token's spelling becomes bytes of text: the `decoder` part of a tokenizer, one token at a time.
//!
//! Hugging Face's decoders are written over a whole list of tokens; here each is a rule for a single token, so that text
//! can be streamed in constant time per token. Decoders that need to see the next token are refused at load.

use serde_json::Value;

use crate::error::TokenizerError;
use crate::utf8::Replacement;

const SUPPORTED: &str =
    "ByteLevel, ByteFallback, Fuse, Metaspace, Replace (of a string), Sequence, Strip, WordPiece, none";

/// The decoder of a tokenizer.
#[derive(Debug, Clone)]
pub(crate) enum PieceRule {
    /// Every character of a spelling stands for one byte.
    ByteLevel,
    /// Rewriting steps; with byte fallback, tokens like `<0xE4>` stand for one byte.
    Steps(Vec<Step>),
    /// A marker stands for a space; the first token loses it.
    Metaspace { marker: char, first_keeps_space: bool },
    /// Tokens are words, except those that begin with the prefix.
    WordPiece { prefix: String, cleanup: bool },
    /// No decoder: tokens are separated by spaces.
    Words,
}

/// One step of a decoder sequence.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    Replace {
        from: String,
        to: String,
    },
    ByteFallback,
    /// Strips the token's own ends.
    Strip {
        character: char,
        start: usize,
        stop: usize,
    },
    /// Strips the beginning of the whole text.
    StripText {
        character: char,
        count: usize,
    },
}

/// What one token contributes.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece {
    Text(String),
    /// Bytes that may be a part of a character.
    Bytes(Vec<u8>),
}

impl PieceRule {
    /// Reads the `decoder` field of a tokenizer.
    pub fn parse(decoder: Option<&Value>, origin: &str) -> Result<Self, TokenizerError> {
        let Some(decoder) = decoder.filter(|value| !value.is_null()) else { return Ok(Self::Words) };
        let kind = kind_of(decoder);
        match kind {
            "ByteLevel" => Ok(Self::ByteLevel),
            "Metaspace" => Self::parse_metaspace(decoder, origin),
            "WordPiece" => Ok(Self::WordPiece {
                prefix: decoder["prefix"].as_str().unwrap_or("##").to_owned(),
                cleanup: decoder["cleanup"].as_bool().unwrap_or(true),
            }),
            "Sequence" => Self::parse_sequence(decoder, origin),
            _ => Self::parse_steps(std::slice::from_ref(decoder), origin),
        }
    }

    fn parse_metaspace(decoder: &Value, origin: &str) -> Result<Self, TokenizerError> {
        let marker = single_char(decoder, "replacement", "decoder.replacement", origin)?;
        let scheme = decoder["prepend_scheme"].as_str();
        let keeps = match scheme {
            Some(scheme) => scheme == "never",
            None => decoder["add_prefix_space"].as_bool() == Some(false),
        };
        Ok(Self::Metaspace { marker, first_keeps_space: keeps })
    }

    fn parse_sequence(decoder: &Value, origin: &str) -> Result<Self, TokenizerError> {
        let Some(members) = decoder["decoders"].as_array() else {
            return Err(TokenizerError::invalid(origin, "decoder.decoders", "is not a list"));
        };
        let mut members: Vec<Value> = members.clone();
        while members.len() > 1 && members.last().is_some_and(|last| kind_of(last) == "Fuse") {
            members.pop();
        }
        match members.as_slice() {
            [] => Ok(Self::Words),
            [only] if kind_of(only) != "Sequence" => Self::parse(Some(only), origin),
            several => Self::parse_steps(several, origin),
        }
    }

    fn parse_steps(members: &[Value], origin: &str) -> Result<Self, TokenizerError> {
        let (mut steps, mut fused) = (Vec::new(), false);
        for member in members {
            match kind_of(member) {
                "Fuse" => fused = true,
                "ByteFallback" if !fused => steps.push(Step::ByteFallback),
                "Replace" if !fused => steps.push(parse_replace(member, origin)?),
                "Strip" => steps.push(parse_strip(member, fused, origin)?),
                other => {
                    let value = if fused { format!("{other} after Fuse") } else { other.to_owned() };
                    return Err(TokenizerError::unsupported(origin, "decoder.type", value, SUPPORTED));
                }
            }
        }
        Ok(Self::Steps(steps))
    }

    /// What the token `text` contributes; `first` says that no token came before it.
    pub fn piece(&self, text: &str, first: bool) -> Piece {
        match self {
            Self::ByteLevel => Piece::Bytes(byte_level_bytes(text)),
            Self::Steps(steps) => apply_steps(steps, text),
            Self::Metaspace { marker, first_keeps_space } => {
                let space = if first && !first_keeps_space { "" } else { " " };
                Piece::Text(text.replace(*marker, space))
            }
            Self::WordPiece { prefix, cleanup } => Piece::Text(word_piece(text, prefix, *cleanup, first)),
            Self::Words if first => Piece::Text(text.to_owned()),
            Self::Words => Piece::Text(format!(" {text}")),
        }
    }

    /// The characters that the whole text loses at its beginning.
    pub fn strip_at_start(&self) -> Option<(char, usize)> {
        let Self::Steps(steps) = self else { return None };
        steps.iter().find_map(|step| match step {
            Step::StripText { character, count } => Some((*character, *count)),
            _ => None,
        })
    }

    pub fn replacement(&self) -> Replacement {
        match self {
            Self::Steps(_) => Replacement::PerByte,
            _ => Replacement::PerSequence,
        }
    }
}

fn kind_of(decoder: &Value) -> &str {
    decoder["type"].as_str().unwrap_or("(no type)")
}

fn single_char(decoder: &Value, key: &str, field: &str, origin: &str) -> Result<char, TokenizerError> {
    let mut chars = decoder[key].as_str().unwrap_or("").chars();
    match (chars.next(), chars.next()) {
        (Some(only), None) => Ok(only),
        _ => Err(TokenizerError::invalid(origin, field, "is not one character")),
    }
}

fn parse_replace(member: &Value, origin: &str) -> Result<Step, TokenizerError> {
    let field = "decoder.decoders.pattern";
    let Some(from) = member["pattern"]["String"].as_str().filter(|from| !from.is_empty()) else {
        return Err(TokenizerError::unsupported(origin, field, "a Replace that is not of a string", SUPPORTED));
    };
    let Some(to) = member["content"].as_str() else {
        return Err(TokenizerError::invalid(origin, "decoder.decoders.content", "is not a string"));
    };
    Ok(Step::Replace { from: from.to_owned(), to: to.to_owned() })
}

fn parse_strip(member: &Value, fused: bool, origin: &str) -> Result<Step, TokenizerError> {
    let character = single_char(member, "content", "decoder.decoders.content", origin)?;
    let start = usize::try_from(member["start"].as_u64().unwrap_or(0)).unwrap_or(usize::MAX);
    let stop = usize::try_from(member["stop"].as_u64().unwrap_or(0)).unwrap_or(usize::MAX);
    match (fused, stop) {
        (false, _) => Ok(Step::Strip { character, start, stop }),
        (true, 0) => Ok(Step::StripText { character, count: start }),
        (true, _) => Err(TokenizerError::unsupported(origin, "decoder.decoders.stop", stop, "0 after Fuse")),
    }
}

fn apply_steps(steps: &[Step], text: &str) -> Piece {
    let mut text = text.to_owned();
    for step in steps {
        match step {
            Step::Replace { from, to } => text = text.replace(from.as_str(), to),
            Step::ByteFallback => {
                if let Some(byte) = byte_token(&text) {
                    return Piece::Bytes(vec![byte]);
                }
            }
            Step::Strip { character, start, stop } => text = strip_ends(&text, *character, *start, *stop),
            Step::StripText { .. } => {}
        }
    }
    Piece::Text(text)
}

/// The byte that a byte-fallback token such as `<0xE4>` stands for.
pub(crate) fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

fn strip_ends(text: &str, character: char, start: usize, stop: usize) -> String {
    let width = character.len_utf8();
    let at_start = text.chars().take(start).take_while(|&c| c == character).count();
    let rest = &text[at_start * width..];
    let at_end = rest.chars().rev().take(stop).take_while(|&c| c == character).count();
    rest[..rest.len() - at_end * width].to_owned()
}

/// The bytes of a byte-level spelling. A token with a character outside that alphabet is an added token: itself.
fn byte_level_bytes(text: &str) -> Vec<u8> {
    text.chars().map(byte_of_char).collect::<Option<Vec<u8>>>().unwrap_or_else(|| text.as_bytes().to_vec())
}

/// The byte-level alphabet: printable Latin-1 stands for itself; the other 68 bytes are U+0100 and up, in order.
fn byte_of_char(character: char) -> Option<u8> {
    match character as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

fn word_piece(text: &str, prefix: &str, cleanup: bool, first: bool) -> String {
    let text = match (first, text.strip_prefix(prefix)) {
        (true, _) => text.to_owned(),
        (false, Some(rest)) => rest.to_owned(),
        (false, None) => format!(" {text}"),
    };
    if !cleanup {
        return text;
    }
    const TIDY: [(&str, &str); 11] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    TIDY.iter().fold(text, |text, (from, to)| text.replace(from, to))
}
