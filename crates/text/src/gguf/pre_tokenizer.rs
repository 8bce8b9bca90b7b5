//! How a text is split before merging: GGUF's names (`tokenizer.ggml.pre`) and the patterns that the models were
//! trained with, as their own `tokenizer.json` files state them.

use serde_json::{Value, json};

use super::ORIGIN;
use crate::error::TokenizerError;

/// One splitting rule.
pub(super) struct Rule {
    /// The names under which GGUF files ask for it.
    names: &'static [&'static str],
    split: Split,
    /// Whether a word that is a token as a whole is taken before any merging.
    pub whole_words_first: bool,
    /// Whether the text is first brought into Unicode's composed form.
    composed: bool,
}

/// How the text is cut.
enum Split {
    /// GPT-2's own pattern, part of the byte-level step.
    Gpt2,
    /// Every digit alone, then GPT-2's pattern.
    DigitsGpt2,
    /// These patterns one after the other; every match and everything between matches is a piece.
    Patterns(&'static [&'static str]),
    /// Punctuation runs, GPT-2's pattern, then threes of digits.
    Falcon,
    /// The patterns, then every digit alone.
    PatternsDigits(&'static [&'static str]),
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const DEEPSEEK_CODER: [&str; 4] =
    [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+"];
const DEEPSEEK_LLM: [&str; 5] = [
    r"[\r\n]",
    r"\s?[A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-\x{2af}\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}\x{1e900}-\x{1e943}]+",
    r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+",
    r"\s+$",
    r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+",
];

/// What a GGUF file of unknown origin is split by.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

const fn rule(names: &'static [&'static str], split: Split) -> Rule {
    Rule { names, split, whole_words_first: false, composed: false }
}

const fn llama3(names: &'static [&'static str], whole_words_first: bool) -> Rule {
    Rule { names, split: Split::Patterns(&[LLAMA3]), whole_words_first, composed: false }
}

const fn qwen2(names: &'static [&'static str], composed: bool) -> Rule {
    Rule { names, split: Split::Patterns(&[QWEN2]), whole_words_first: false, composed }
}

const RULES: &[Rule] = &[
    rule(&["gpt-2", "mpt", "olmo", "phi-2", "jina-v2-es", "jina-v2-de", "exaone4", "modern-bert"], Split::Gpt2),
    rule(&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"], Split::DigitsGpt2),
    llama3(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "glm4"], true),
    llama3(&["dbrx", "smaug-bpe", "chatglm-bpe"], false),
    qwen2(&["qwen2", "deepseek-r1-qwen", "megrez"], true),
    qwen2(&["stablelm2"], false),
    rule(&["qwen35"], Split::Patterns(&[QWEN35])),
    Rule { names: &["gpt-4o", "llama4"], split: Split::Patterns(&[GPT4O]), whole_words_first: true, composed: false },
    Rule { names: &["tekken"], split: Split::Patterns(&[TEKKEN]), whole_words_first: true, composed: false },
    rule(&["deepseek-v3"], Split::Patterns(&DEEPSEEK3)),
    rule(&["deepseek-coder"], Split::PatternsDigits(&DEEPSEEK_CODER)),
    rule(&["deepseek-llm"], Split::PatternsDigits(&DEEPSEEK_LLM)),
    rule(&["falcon"], Split::Falcon),
    rule(&["default"], Split::Patterns(&DEFAULT)),
];

/// The names (`tokenizer.ggml.pre`) of the splitting rules that Firebrick knows.
pub fn gguf_pre_tokenizers() -> impl Iterator<Item = &'static str> {
    RULES.iter().flat_map(|rule| rule.names.iter().copied())
}

/// The rule of that name. A file without a name is refused: guessing would give a model tokens it was not trained on.
pub(super) fn find(name: Option<&str>) -> Result<&'static Rule, TokenizerError> {
    let wanted = name.unwrap_or("(absent)");
    RULES.iter().find(|rule| rule.names.contains(&wanted)).ok_or_else(|| {
        let known: Vec<&str> = gguf_pre_tokenizers().collect();
        TokenizerError::unsupported(ORIGIN, "tokenizer.ggml.pre", wanted, &known.join(", "))
    })
}

impl Rule {
    pub fn normalizer(&self) -> Value {
        if self.composed { json!({"type": "NFC"}) } else { Value::Null }
    }

    pub fn pre_tokenizer(&self) -> Value {
        let digits = json!({"type": "Digits", "individual_digits": true});
        let mut steps = match &self.split {
            Split::Gpt2 => Vec::new(),
            Split::DigitsGpt2 => vec![digits],
            Split::Patterns(patterns) => patterns.iter().map(|pattern| isolate(pattern)).collect(),
            Split::PatternsDigits(patterns) => {
                patterns.iter().map(|pattern| isolate(pattern)).chain([digits]).collect()
            }
            Split::Falcon => {
                let punctuation = json!({"type": "Punctuation", "behavior": "Contiguous"});
                vec![punctuation, byte_level(true), digits_in_threes()]
            }
        };
        match self.split {
            Split::Gpt2 | Split::DigitsGpt2 => steps.push(byte_level(true)),
            Split::Patterns(_) | Split::PatternsDigits(_) => steps.push(byte_level(false)),
            Split::Falcon => {}
        }
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

fn isolate(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

fn digits_in_threes() -> Value {
    isolate("[0-9][0-9][0-9]")
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}
