//! cargo run --release -p firebrick-text --example grammar_times -- tokenizer.json END_TOKEN_ID
//!
//! What grammars cost with a model's vocabulary: preparing it, compiling, and the masks of random texts.

use std::time::Instant;

use firebrick_text::{GrammarCompiler, GrammarSource, TokenId, Tokenizer};
use serde_json::json;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().expect("the first argument is a tokenizer.json");
    let end: TokenId = arguments.next().and_then(|text| text.parse().ok()).expect("the second is the end token");
    let tokenizer = Tokenizer::from_file(path.as_ref()).expect("a tokenizer");
    let begun = Instant::now();
    let compiler = GrammarCompiler::new(&tokenizer, tokenizer.vocab_size() as u32, &[end]).expect("a vocabulary");
    println!("{} tokens, prepared in {} ms", tokenizer.vocab_size(), begun.elapsed().as_millis());
    let person = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0}, "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5}},
        "required": ["name", "age", "tags"], "additionalProperties": false});
    for (name, source) in [
        ("schema", GrammarSource::Json { schema: person, whitespace: None }),
        ("any object", GrammarSource::Json { schema: json!({"type": "object"}), whitespace: None }),
        ("regex", GrammarSource::Regex(r"[A-Z][a-z]+ \d{4}-\d{2}-\d{2}( .*)?".to_owned())),
    ] {
        let begun = Instant::now();
        let grammar = compiler.compile(&source).expect("it compiles");
        let compile = begun.elapsed();
        let (mut times, mut starts, mut state) = (Vec::new(), Vec::new(), 1_u64);
        for _ in 0..20 {
            let begun = Instant::now();
            let mut matcher = grammar.matcher();
            starts.push(begun.elapsed().as_micros());
            for _ in 0..100 {
                let begun = Instant::now();
                let words = matcher.allowed().expect("it can go on");
                times.push(begun.elapsed().as_micros());
                let allowed: Vec<TokenId> =
                    (0..words.len() as TokenId * 32).filter(|t| words[*t as usize / 32] >> (t % 32) & 1 == 1).collect();
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                let token = allowed[(state >> 33) as usize % allowed.len()];
                if token == end || matcher.accept(token).is_err() || matcher.is_complete() {
                    break;
                }
            }
        }
        times.sort_unstable();
        starts.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        println!(
            "{name}: compiled in {compile:?}, started in {} us, {} masks: median {} us, 99 % {} us, longest {} us",
            starts[starts.len() / 2],
            times.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}
