//! Mutated templates, schemas, expressions and grammars end in a value or an error: no panic, no hang, whatever the text.
//!
//! `FIREBRICK_FUZZ_ROUNDS=100` runs a hundred times as many, each with other seeds.

mod support;

use std::time::{Duration, Instant};

use firebrick_text::{
    COMPILE_STACK_BYTES, ChatTemplate, GrammarCompiler, GrammarSource, Message, RenderOptions, SpecialTokens,
    TemplateLimits, Tokenizer,
};
use serde_json::Value;
use support::Random;

const TOKENIZER: &str = include_str!("../../../tests/corpus/tokenizer.json");
const SCHEMAS: &str = include_str!("../../../tests/corpus/schemas.jsonl");
const EXPRESSIONS: &str = include_str!("../../../tests/corpus/expressions.txt");
const GRAMMARS: &str = include_str!("../../../tests/corpus/grammars.txt");
const TEMPLATES: &str = include_str!("../fixtures/chat_templates.json");
/// No single text may take longer; the limits are meant to end it long before.
const SECONDS_MAX: u64 = 10;

fn rounds(usual: u64) -> u64 {
    let factor = std::env::var("FIREBRICK_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok());
    usual * factor.unwrap_or(1_u64)
}

/// A few cuts, copies, and pieces of another text.
fn mutated(random: &mut Random, text: &str, other: &str, pieces: &[&str]) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    let other: Vec<char> = other.chars().collect();
    for _ in 0..=random.below(4) {
        let at = random.below(characters.len() + 1);
        let end = (at + random.below(12)).min(characters.len());
        let new: Vec<char> = match random.below(4) {
            0 => Vec::new(),
            1 => pieces[random.below(pieces.len())].chars().collect(),
            2 => {
                let start = random.below(other.len().max(1));
                other[start.min(other.len())..(start + random.below(40)).min(other.len())].to_vec()
            }
            _ => characters[at..end].repeat(2 + random.below(3)),
        };
        characters.splice(at..end, new);
    }
    characters.into_iter().collect()
}

/// Runs each mutation of the seeds, on a thread with the stack that compiling needs, and returns how many were refused.
fn run(
    seeds: Vec<String>,
    pieces: &'static [&'static str],
    usual: u64,
    mut attempt: impl FnMut(&str) -> bool + Send + 'static,
) -> (u64, u64) {
    let body = move || {
        let (mut taken, mut refused) = (0, 0);
        for seed in 0..rounds(usual) {
            let mut random = Random(seed);
            let text = &seeds[random.below(seeds.len())];
            let other = &seeds[random.below(seeds.len())];
            let text = mutated(&mut random, text, other, pieces);
            let begun = Instant::now();
            *(if attempt(&text) { &mut taken } else { &mut refused }) += 1;
            assert!(
                begun.elapsed() < Duration::from_secs(SECONDS_MAX),
                "seed {seed} took {:?}: {text}",
                begun.elapsed()
            );
        }
        (taken, refused)
    };
    let thread = std::thread::Builder::new().stack_size(COMPILE_STACK_BYTES).spawn(body).expect("a thread");
    thread.join().expect("no mutation panics")
}

fn lines(text: &str) -> Vec<String> {
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn compiler() -> (GrammarCompiler, Tokenizer) {
    let tokenizer = Tokenizer::from_bytes(TOKENIZER.as_bytes()).expect("the corpus tokenizer is valid");
    (GrammarCompiler::new(&tokenizer, 128, &[2]).expect("a usable vocabulary"), tokenizer)
}

/// Compiles, and follows random allowed tokens for a while.
fn follow(compiler: &GrammarCompiler, source: &GrammarSource) -> bool {
    let Ok(grammar) = compiler.compile(source) else { return false };
    let (mut matcher, mut random) = (grammar.matcher(), Random(7));
    for _ in 0..24 {
        let Ok(words) = matcher.allowed() else { return true };
        let allowed: Vec<u32> = (0..128).filter(|&token| words[token as usize / 32] >> (token % 32) & 1 == 1).collect();
        if allowed.is_empty() || matcher.accept(allowed[random.below(allowed.len())]).is_err() || matcher.is_complete()
        {
            return true;
        }
    }
    true
}

#[test]
fn mutated_templates_end_in_time() {
    let parsed: Value = serde_json::from_str(TEMPLATES).expect("a fixture");
    let templates = parsed.as_object().expect("by name").values();
    let seeds = templates.filter_map(|entry| entry["template"].as_str().map(str::to_owned)).collect();
    let pieces = &[
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "{% endfor %}",
        "{% endif %}",
        "{% if",
        "{% for x in messages %}",
        "(",
        ")",
        "[",
        "]",
        "[0]",
        "[::-1]",
        "| tojson",
        "| length",
        "| join(',')",
        ".split('a')",
        "range(99999)",
        "messages",
        "loop.index0 + 1",
        "'",
        "\"",
        "-%}",
        "namespace(a=1)",
        "{% macro m(x) %}",
        "{% endmacro %}",
        "{{ m(m(1)) }}",
        "is defined",
        "not",
        "in",
        "~",
        "**",
        "//",
        "None",
        "true",
        "é\u{0}",
    ];
    let (taken, refused) = run(seeds, pieces, 1500, |source| {
        let limits = TemplateLimits { fuel: 20_000, output_bytes: 64 << 10, ..TemplateLimits::default() };
        let Ok(template) = ChatTemplate::with_limits(source, SpecialTokens::default(), limits) else { return false };
        let messages =
            [Message::new("system", "Be brief."), Message::new("user", "Hi é"), Message::new("assistant", "")];
        template.render(&messages, &RenderOptions::default()).is_ok()
    });
    assert!(taken > 20 && refused > 100, "{taken} taken, {refused} refused");
}

#[test]
fn mutated_schemas_end_in_time() {
    let (compiler, _) = compiler();
    let pieces = &[
        "{}",
        "[]",
        "null",
        "true",
        "-1",
        "0",
        "1e308",
        "\"",
        "{\"$ref\":\"#\"}",
        "{\"type\":\"string\"}",
        ",",
        ":",
        "}",
        "\"pattern\":\"(a+)+$\"",
        "\"minLength\":1000000",
        "\"maxItems\":0",
        "\"enum\":[1,1]",
        "\"not\":{}",
        "\"anyOf\":[{},{}]",
        "\"additionalProperties\":false",
        "99999999999999999999",
        "\\u0000",
    ];
    let (taken, refused) = run(lines(SCHEMAS), pieces, 1200, move |text| {
        let Ok(schema) = serde_json::from_str(text) else { return false };
        follow(&compiler, &GrammarSource::Json { schema, whitespace: None })
    });
    assert!(taken > 20 && refused > 100, "{taken} taken, {refused} refused");
}

#[test]
fn mutated_expressions_end_in_time() {
    let (compiler, _) = compiler();
    let pieces = &[
        "(",
        ")",
        "[",
        "]",
        "{0,9999}",
        "{5}",
        "*",
        "+",
        "?",
        "|",
        "\\",
        "\\d",
        "\\p{L}",
        "(?i)",
        "(?:",
        "[^",
        "^",
        "$",
        "\\b",
        ".",
        "(.*)*",
        "{1000000000}",
        "\\x{110000}",
        "é",
        "-",
        "&&",
        "(?=",
        "\u{0}",
    ];
    let (taken, refused) =
        run(lines(EXPRESSIONS), pieces, 400, move |text| follow(&compiler, &GrammarSource::Regex(text.to_owned())));
    assert!(taken > 100 && refused > 100, "{taken} taken, {refused} refused");
}

#[test]
fn mutated_grammars_end_in_time() {
    let (compiler, _) = compiler();
    let pieces = &[
        "start: ",
        "\n",
        "|",
        "(",
        ")",
        "[",
        "]",
        "*",
        "+",
        "?",
        "\"a\"",
        "/a/",
        "/(/",
        "%ignore /x/",
        "%import common",
        "%json {}",
        "start",
        ":",
        "~3..5",
        "{1000}",
        "\"",
        "/",
        "//",
        "\\",
        "é",
        "->",
        "%regex {}",
        "<[1]>",
    ];
    let seeds = GRAMMARS.split("\n\n").map(str::to_owned).collect();
    let (taken, refused) =
        run(seeds, pieces, 1500, move |text| follow(&compiler, &GrammarSource::Grammar(text.to_owned())));
    assert!(taken > 20 && refused > 100, "{taken} taken, {refused} refused");
}

#[test]
fn mutated_tokenizers_never_panic() {
    let pieces = &[
        "null",
        "{}",
        "[]",
        "-1",
        "4294967296",
        "\"\"",
        "true",
        "\"type\":\"Unigram\"",
        "\"type\":\"WordPiece\"",
        "\"type\":\"Sequence\"",
        "\"type\":\"Split\"",
        "\"id\":0",
        "\"byte_fallback\":true",
        ",",
        ":",
        "\"\\u0000\"",
        "\"pattern\":{\"Regex\":\"(\"}",
        "\"type\":\"NFKC\"",
        "\"merges\":[\"a b\"]",
        "\"special\":true",
    ];
    let (_, refused) = run(vec![TOKENIZER.to_owned()], pieces, 400, |text| {
        let Ok(tokenizer) = Tokenizer::from_bytes(text.as_bytes()) else { return false };
        let _ = tokenizer.try_encode("ab <bos> é\u{0}", true);
        tokenizer.decode(&[0, 1, 2, 3, 127, 1 << 31], false);
        true
    });
    assert!(refused > 50, "{refused} refused");
}
