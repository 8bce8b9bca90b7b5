//! What clients ask answers to match: the first byte says in which notation (`j` a JSON schema, `r` an expression, `c`
//! choices a line, else a grammar). Either it is refused, or tokens that it allows can be followed for a while.
#![no_main]

mod caught;

use std::sync::LazyLock;

use firebrick_text::{COMPILE_STACK_BYTES, GrammarCompiler, GrammarSource, Tokenizer};
use libfuzzer_sys::fuzz_target;

static COMPILER: LazyLock<GrammarCompiler> = LazyLock::new(|| {
    let tokenizer = include_bytes!("../../tests/corpus/tokenizer.json");
    let tokenizer = Tokenizer::from_bytes(tokenizer).expect("the corpus tokenizer is valid");
    GrammarCompiler::new(&tokenizer, 128, &[2]).expect("a usable vocabulary")
});

fn source(data: &[u8]) -> Option<GrammarSource> {
    let (kind, text) = data.split_first()?;
    let text = std::str::from_utf8(text).ok()?.to_owned();
    Some(match kind {
        b'j' => GrammarSource::Json { schema: serde_json::from_str(&text).ok()?, whitespace: None },
        b'r' => GrammarSource::Regex(text),
        b'c' => GrammarSource::Choice(text.lines().map(str::to_owned).collect()),
        _ => GrammarSource::Grammar(text),
    })
}

/// Compiles and takes allowed tokens, chosen by the bytes of the source itself.
fn follow(source: &GrammarSource, choices: &[u8]) {
    let Ok(grammar) = COMPILER.compile(source) else { return };
    let mut matcher = grammar.matcher();
    for &choice in choices.iter().cycle().take(24) {
        let Ok(words) = matcher.allowed() else { return };
        let allowed: Vec<u32> = (0..128).filter(|&token| words[token as usize / 32] >> (token % 32) & 1 == 1).collect();
        let Some(&token) = allowed.get(usize::from(choice) % allowed.len().max(1)) else { return };
        if matcher.accept(token).is_err() || matcher.is_complete() {
            return;
        }
    }
}

fuzz_target!(init: caught::only_what_is_not_caught_counts(), |data: &[u8]| {
    let Some(source) = source(data) else { return };
    // The stack that the server gives it.
    let thread = std::thread::Builder::new().stack_size(COMPILE_STACK_BYTES);
    std::thread::scope(|scope| {
        let compiling = thread.spawn_scoped(scope, || follow(&source, data)).expect("a thread");
        compiling.join().expect("no grammar panics");
    });
});
