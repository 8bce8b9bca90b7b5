//! Streaming gives the same text as decoding at once, and stop strings are found wherever the text is cut.

mod support;

use firebrick_text::{GgufVocabulary, StopMatcher, Tokenizer};
use support::fetched::fetched;
use support::{GgufHeader, Random};

/// Byte tokens, letters, words with a space, a character of several bytes, a control and a user-defined token.
fn byte_fallback_tokenizer() -> Tokenizer {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned(), "<tool>".to_owned()];
    let mut token_types = vec![2, 3, 3, 4];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    token_types.extend([6; 256]);
    for text in ["▁", "h", "i", "hi", "▁hi", "é", "🎉", "▁▁", "\n"] {
        tokens.push(text.to_owned());
        token_types.push(1);
    }
    Tokenizer::from_gguf(GgufVocabulary {
        model: "llama".to_owned(),
        scores: (0..tokens.len()).map(|id| -(id as f32)).collect(),
        tokens,
        token_types,
        bos: Some(1),
        eos: Some(2),
        unknown: Some(0),
        add_bos: true,
        add_space_prefix: true,
        ..GgufVocabulary::default()
    })
    .expect("a valid vocabulary")
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special_tokens: bool) -> String {
    let mut detokenizer = tokenizer.detokenizer(skip_special_tokens);
    let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
    text.push_str(&detokenizer.finish());
    text
}

#[test]
fn byte_fallback_text_survives_the_round_trip() {
    let tokenizer = byte_fallback_tokenizer();
    for text in ["hi hi", "  hi", "é🎉 日本語 👨‍👩‍👧", "\n\t\u{0}", "hi<tool>hi", ""] {
        let ids = tokenizer.encode(text, true);
        assert_eq!(ids[0], 1, "{text:?} begins with the token that begins texts");
        assert_eq!(tokenizer.decode(&ids, true).replace("<tool> ", "<tool>"), text);
    }
}

#[test]
fn invalid_bytes_become_one_replacement_each() {
    let tokenizer = byte_fallback_tokenizer();
    let byte = |byte: u32| byte + 4;
    let ids = [byte(0xe6), byte(0x97), byte(0xa5), byte(0xff), byte(0xe6), byte(0x97)];
    assert_eq!(tokenizer.decode(&ids, true), "日\u{fffd}\u{fffd}\u{fffd}");
}

#[test]
fn a_continuation_keeps_its_space() {
    let tokenizer = byte_fallback_tokenizer();
    let word = tokenizer.token_id("▁hi").expect("in the vocabulary");
    assert_eq!(tokenizer.detokenizer(true).push(word), "hi");
    let mut detokenizer = tokenizer.detokenizer(true);
    detokenizer.continue_after(&tokenizer.encode("hi", true));
    assert_eq!(detokenizer.push(word), " hi");
}

#[test]
fn streamed_text_equals_decoded_text_for_random_tokens() {
    let tokenizer = byte_fallback_tokenizer();
    for seed in 0..2_000 {
        let mut random = Random(seed);
        let ids: Vec<u32> = (0..random.below(40)).map(|_| random.below(tokenizer.vocab_size() + 2) as u32).collect();
        for skip in [false, true] {
            assert_eq!(streamed(&tokenizer, &ids, skip), tokenizer.decode(&ids, skip), "seed {seed}");
        }
    }
}

/// Our decoding against the library's own, over texts (where both must agree exactly).
#[test]
fn real_vocabularies_decode_as_the_library_does() {
    let texts = [
        "Hello, wörld! 🎉👨‍👩‍👧",
        " leading",
        "日本語テキスト\n\n\tx",
        "a  b   c",
        "ﷺ ا",
        "don't  <b>'s",
        "e\u{301}\u{301}",
    ];
    for name in ["llama2", "llama3_1", "qwen3", "gemma3", "gptoss", "deepseek_v3"] {
        let Some(path) = fetched(&format!("tokenizer-{name}/tokenizer.json")) else { continue };
        let ours = Tokenizer::from_file(&path).expect("a real tokenizer");
        let library = tokenizers::Tokenizer::from_file(&path).expect("a real tokenizer");
        for text in texts {
            for special in [false, true] {
                let ids = ours.encode(text, special);
                let expected = library.encode(text, special).expect("encodes");
                assert_eq!(ids, expected.get_ids(), "{name}: {text:?}");
                for skip in [false, true] {
                    let expected = library.decode(&ids, skip).expect("decodes");
                    assert_eq!(ours.decode(&ids, skip), expected, "{name}: {text:?}");
                    assert_eq!(streamed(&ours, &ids, skip), expected, "{name}: {text:?}");
                }
            }
        }
        let mut random = Random(7);
        if !name.contains("llama2") && !name.contains("gemma") {
            for _ in 0..200 {
                let ids: Vec<u32> = (0..20).map(|_| random.below(ours.vocab_size()) as u32).collect();
                assert_eq!(ours.decode(&ids, false), library.decode(&ids, false).expect("decodes"), "{name}: {ids:?}");
            }
        }
    }
}

#[test]
fn chunks_of_smollm2_are_whole_characters() {
    let Some(path) = fetched("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let tokenizer = Tokenizer::from_gguf(GgufHeader::read(&path).vocabulary()).expect("a supported vocabulary");
    let text = "🎉 naïve 日本語 👩‍🚀";
    let ids = tokenizer.encode(text, false);
    let mut detokenizer = tokenizer.detokenizer(true);
    let chunks: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
    assert_eq!(chunks.concat() + &detokenizer.finish(), text);
    assert!(chunks.iter().all(|chunk| !chunk.contains('\u{fffd}')), "{chunks:?}");
    assert!(
        chunks.iter().filter(|chunk| chunk.is_empty()).count() > 2,
        "characters of several tokens wait: {chunks:?}"
    );
}

/// The stop string that ends first, and the longest of those, by looking at every prefix.
fn naive(text: &str, stops: &[String]) -> Option<(usize, usize)> {
    for (end, _) in text.char_indices().skip(1).chain([(text.len(), ' ')]) {
        let ending =
            stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty() && text[..end].ends_with(stop.as_str()));
        if let Some((index, _)) = ending.max_by_key(|(index, stop)| (stop.len(), std::cmp::Reverse(*index))) {
            return Some((end, index));
        }
    }
    None
}

#[test]
fn stop_strings_are_found_as_the_naive_search_finds_them() {
    let alphabet = ['a', 'b', 'é', '🎉'];
    for seed in 0..20_000 {
        let mut random = Random(seed);
        let mut word = |length: usize| -> String {
            (0..random.below(length)).map(|_| alphabet[random.below(alphabet.len())]).collect()
        };
        let stops: Vec<String> = (0..4).map(|_| word(5)).collect();
        let text = word(30);
        for include in [false, true] {
            let mut matcher = StopMatcher::new(&stops, include);
            let (mut shown, mut matched) = (String::new(), None);
            for piece in random.split(&text) {
                let output = matcher.push(piece);
                shown.push_str(&output.text);
                matched = matched.or(output.matched);
            }
            shown.push_str(&matcher.finish());
            let expected = naive(&text, &stops);
            let expected_text = match expected {
                Some((end, index)) if !include => &text[..end - stops[index].len()],
                Some((end, _)) => &text[..end],
                None => &text,
            };
            assert_eq!(matched, expected.map(|(_, index)| index), "seed {seed}: {text:?} {stops:?}");
            assert_eq!(shown, expected_text, "seed {seed}: {text:?} {stops:?}");
        }
    }
}

#[test]
fn a_stop_string_does_not_end_in_text_that_is_passed() {
    let mut matcher = StopMatcher::new(&["abc".to_owned(), "b".to_owned()], false);
    assert_eq!(matcher.pass("xabcxab"), "xabcx");
    let output = matcher.push("cd");
    assert_eq!((output.text.as_str(), output.matched), ("", Some(0)), "it ends in what is pushed");
    assert_eq!(matcher.pass("e"), "");
}

#[test]
fn only_a_possible_beginning_of_a_stop_string_is_held_back() {
    let mut matcher = StopMatcher::new(&["</s>".to_owned(), "User:".to_owned()], false);
    assert_eq!(matcher.push("Hello <").text, "Hello ");
    assert_eq!(matcher.push("b> Us").text, "<b> ");
    assert_eq!(matcher.finish(), "Us");
}
