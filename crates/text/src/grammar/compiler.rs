//! Compiling sources against a vocabulary, and following a compiled grammar token by token.

use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::{Value, json};

use super::cache::GrammarCache;
use super::spelling::Spelling;
use super::{GrammarError, GrammarSource, Whitespace, ascii_classes, ebnf, lark_text, source_limits};
use crate::{TokenId, Tokenizer};

/// White space between parts of JSON: a space, or a line end and its indentation. Unlimited white space would let a
/// model go on for ever without saying anything.
const JSON_WHITESPACE: &str = r" |\r?\n[ \t]{0,64}";
const CACHE_BYTES_MAX: usize = 64 << 20;
/// Longer than any text that a token of a real vocabulary stands for.
const TOKEN_BYTES_MAX: usize = 1 << 15;

/// Compiles grammars for one vocabulary and keeps the last ones.
pub struct GrammarCompiler {
    factory: ParserFactory,
    num_words: usize,
    spelling: Spelling,
    cache: Mutex<GrammarCache>,
}

impl GrammarCompiler {
    /// Prepares a vocabulary; with a hundred thousand tokens that takes a good part of a second. `vocab_size` is that of
    /// the logits, and `end_tokens` end a text where the grammar allows an end.
    pub fn new(tokenizer: &Tokenizer, vocab_size: u32, end_tokens: &[TokenId]) -> Result<Self, GrammarError> {
        let refused = |reason: &dyn std::fmt::Display| GrammarError::Vocabulary { reason: reason.to_string() };
        let end_tokens: Vec<TokenId> = end_tokens.iter().copied().filter(|token| *token < vocab_size).collect();
        let Some(&end) = end_tokens.first() else {
            return Err(refused(&"it has no end-of-sequence token"));
        };
        let words: Vec<Vec<u8>> = (0..vocab_size).map(|token| word(tokenizer, token)).collect();
        let ordinary = (0..).zip(&words).filter(|(token, _)| !tokenizer.is_special(*token)).map(|(_, word)| word);
        let spelling = Spelling::new(ordinary);
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size, end), &words).with_eos_tokens(&end_tokens);
        // Not canonical: the model decides how a text is cut into tokens.
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|error| refused(&error))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory, num_words: (vocab_size as usize).div_ceil(32), spelling, cache: Mutex::default() })
    }

    /// Compiles a source, or finds it compiled. It needs [`COMPILE_STACK_BYTES`](super::COMPILE_STACK_BYTES) of stack.
    pub fn compile(&self, source: &GrammarSource) -> Result<Grammar, GrammarError> {
        source_limits::check(source)?;
        let key = format!("{source:?}");
        if let Some(grammar) = self.cache().get(&key) {
            return Ok(grammar);
        }
        let invalid = |error: &dyn std::fmt::Display| GrammarError::Invalid { reason: shown(error) };
        if let GrammarSource::Choice(choices) = source
            && let Some(choice) = choices.iter().find(|choice| !self.spelling.can_spell(choice))
        {
            let shown: String = choice.chars().take(40).collect();
            return Err(invalid(&format!("this model's vocabulary cannot spell the choice {shown:?}")));
        }
        let parser = self.factory.create_parser(self.grammar_of(source)?).map_err(|error| invalid(&error))?;
        let mut matcher = Matcher::new(Ok(parser));
        // The first mask shows what only fails when the grammar is used, and warms its automaton.
        let first = matcher.compute_mask_or_eos().map_err(|error| invalid(&error))?;
        if first.num_set() == 0 {
            return Err(invalid(&"no text of this vocabulary matches it"));
        }
        let grammar = Grammar { start: Arc::new(matcher), num_words: self.num_words };
        self.cache().insert(key, grammar.clone(), CACHE_BYTES_MAX);
        Ok(grammar)
    }

    fn grammar_of(&self, source: &GrammarSource) -> Result<TopLevelGrammar, GrammarError> {
        let lark = match source {
            GrammarSource::Json { schema, whitespace } => {
                return Ok(TopLevelGrammar::from_json_schema(json_schema(schema, whitespace.as_ref())?));
            }
            GrammarSource::Regex(pattern) => {
                return Ok(TopLevelGrammar::from_regex(&ascii_classes::of_pattern(without_anchors(pattern))));
            }
            GrammarSource::Choice(choices) => lark_text::of_choices(choices),
            GrammarSource::Grammar(text) if ebnf::is_ebnf(text) => ebnf::to_lark(text)?,
            GrammarSource::Grammar(text) => text.clone(),
            GrammarSource::StructuralTag(tag) => lark_text::of_structural_tag(tag)?,
            GrammarSource::JsonOrCalls(either) => {
                let answer = json_schema(&either.answer, either.whitespace.as_ref())?;
                let call = json_schema(&either.call, None)?;
                let marks = [&either.begin, &either.end].map(|mark| self.mark(mark));
                lark_text::of_json_or_calls([&answer, &call], &marks, either.several)
            }
        };
        Ok(TopLevelGrammar::from_lark(lark))
    }

    /// A word that a format marks something with: a special token, where the vocabulary has that.
    fn mark(&self, word: &str) -> String {
        match self.factory.tok_env().tok_trie().get_special_token(word) {
            Some(token) if !word.is_empty() => format!("<[{token}]>"),
            _ => lark_text::literal(word),
        }
    }

    /// Compiled grammars that are kept.
    pub fn num_cached(&self) -> usize {
        self.cache().len()
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, GrammarCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fuel for compiling (20 ms) and for one mask (some 20 ms), and 64 MB of automaton states.
fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_items_in_row: 2_000,
        max_lexer_states: 32_000,
        max_grammar_size: 100_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// A token's bytes as the library wants them: special tokens are marked, tokens without text are empty.
fn word(tokenizer: &Tokenizer, token: TokenId) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(token).filter(|bytes| bytes.len() < TOKEN_BYTES_MAX).unwrap_or_default();
    let marked =
        tokenizer.is_special(token) || bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) && bytes.len() > 1;
    if marked && !bytes.is_empty() {
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], &bytes[..]].concat();
    }
    bytes
}

/// A schema as the library takes it, with what may stand between parts.
fn json_schema(schema: &Value, whitespace: Option<&Whitespace>) -> Result<Value, GrammarError> {
    let mut schema = match schema {
        Value::Object(_) => ascii_classes::of_schema(schema),
        any_or_none => json!({ "allOf": [any_or_none] }),
    };
    if schema.get("x-guidance").is_some() {
        let reason = "x-guidance is not supported in a schema; use whitespace_pattern".to_owned();
        return Err(GrammarError::Invalid { reason });
    }
    json_options(whitespace).apply_to(&mut schema);
    Ok(schema)
}

fn json_options(whitespace: Option<&Whitespace>) -> JsonCompileOptions {
    let pattern = match whitespace {
        None => Some(JSON_WHITESPACE),
        Some(Whitespace::None) => None,
        Some(Whitespace::Pattern(pattern)) => Some(pattern.as_str()),
    }
    .map(ascii_classes::of_pattern);
    JsonCompileOptions {
        whitespace_flexible: pattern.is_some(),
        whitespace_pattern: pattern,
        ..JsonCompileOptions::default()
    }
}

/// The whole text is matched in any case; anchors at the ends say nothing and are not known to the compiler.
fn without_anchors(pattern: &str) -> &str {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    let Some(inner) = pattern.strip_suffix('$') else { return pattern };
    let escapes = inner.bytes().rev().take_while(|byte| *byte == b'\\').count();
    if escapes % 2 == 0 { inner } else { pattern }
}

/// The library's words without its decoration.
fn shown(error: &dyn std::fmt::Display) -> String {
    const CHARS_MAX: usize = 400;
    let text = error.to_string();
    let text = text.split("\n<").next().unwrap_or_default();
    let text = match text {
        "NoExtensionBias" => "no text matches it",
        "LexerTooComplex" | "ParserTooComplex" => "following it takes too many steps",
        _ if text.starts_with("panic: ") => "it is too complex, or a number in it is out of range",
        _ => text,
    };
    text.chars().take(CHARS_MAX).collect()
}

/// A compiled grammar. Cloning shares it.
#[derive(Clone)]
pub struct Grammar {
    start: Arc<Matcher>,
    num_words: usize,
}

impl Grammar {
    /// A matcher at the beginning of a text. It shares nothing that changes with others.
    pub fn matcher(&self) -> GrammarMatcher {
        GrammarMatcher { matcher: self.start.deep_clone(), num_words: self.num_words }
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar(..)")
    }
}

/// How far one text is within its grammar.
pub struct GrammarMatcher {
    matcher: Matcher,
    num_words: usize,
}

impl GrammarMatcher {
    /// The tokens that may come next, an end token among them where the text may end: bit `token % 32` of word
    /// `token / 32`.
    pub fn allowed(&mut self) -> Result<Vec<u32>, GrammarError> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|error| failed(&error))?;
        let mut words = Vec::from(mask);
        words.resize(self.num_words, 0);
        Ok(words)
    }

    /// Takes the token that was chosen.
    pub fn accept(&mut self, token: TokenId) -> Result<(), GrammarError> {
        self.matcher.consume_token(token).map_err(|error| failed(&error))?;
        let reason = self.matcher.stop_reason();
        if reason.is_ok() { Ok(()) } else { Err(failed(&reason)) }
    }

    /// Whether nothing can follow.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// Whether the text may end here.
    pub fn may_end(&mut self) -> bool {
        self.matcher.is_stopped() || self.matcher.is_accepting().unwrap_or(false)
    }
}

fn failed(error: &dyn std::fmt::Display) -> GrammarError {
    let text = error.to_string();
    if text.starts_with("NoExtensionBias") {
        return GrammarError::DeadEnd;
    }
    // The library has one kind of error for a token that is not allowed and for a limit that is reached.
    let limits = ["max is", "Too many items", "fuel", "TooComplex"];
    let is_limit = limits.iter().any(|words| text.contains(words));
    let reason = shown(error);
    if is_limit { GrammarError::TooComplex { reason } } else { GrammarError::Match { reason } }
}
