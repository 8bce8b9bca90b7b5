//! `tokenizer.json`: whatever the bytes, a tokenizer that encodes and decodes, or an error.
#![no_main]

mod caught;

use firebrick_text::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: caught::only_what_is_not_caught_counts(), |data: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_bytes(data) else { return };
    for text in ["", "ab <bos> é\u{0} 12,  x", "e\u{301}\u{301}\u{301}\u{1f600}"] {
        if let Ok(tokens) = tokenizer.try_encode(text, true) {
            tokenizer.decode(&tokens, true);
        }
    }
    tokenizer.decode(&[0, 1, 2, 3, 127, 1 << 31], false);
    let mut detokenizer = tokenizer.detokenizer(false);
    let mut shown: String = (0..8).map(|token| detokenizer.push(token)).collect();
    shown.push_str(&detokenizer.finish());
});
