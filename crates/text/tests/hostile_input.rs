//! Broken files, endless templates and enormous texts end in an error or in bounded time.

mod support;

use std::time::{Duration, Instant};

use firebrick_text::{ChatTemplate, GgufVocabulary, Message, RenderOptions, SpecialTokens, TemplateError, Tokenizer};
use support::fetched::fetched;
use support::{GgufHeader, Random};

const SMALL: &str = r#"{"version":"1.0","truncation":{"direction":"Right","max_length":3,"strategy":"LongestFirst","stride":0},
"padding":null,"added_tokens":[{"id":3,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,
"normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,
"trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":false,
"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":null,
"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,
"vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}}"#;

#[test]
fn a_truncation_rule_in_the_file_does_not_cut_prompts() {
    let tokenizer = Tokenizer::from_bytes(SMALL.as_bytes()).expect("valid");
    assert_eq!(tokenizer.encode("ababab<s>ab", false), [2, 2, 2, 3, 2]);
    assert_eq!(tokenizer.decode(&[2, 3, 0], true), "aba");
    assert_eq!((tokenizer.vocab_size(), tokenizer.is_special(3), tokenizer.token_id("ab")), (4, true, Some(2)));
    assert_eq!(tokenizer.token_bytes_max(), 3);
}

#[test]
fn every_truncation_of_a_tokenizer_is_an_error() {
    for length in 0..SMALL.len() {
        assert!(Tokenizer::from_bytes(&SMALL.as_bytes()[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn mutated_tokenizers_never_panic() {
    for seed in 0..3_000 {
        let (mut random, mut bytes) = (Random(seed), SMALL.as_bytes().to_vec());
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            bytes[at] = b"\"{}[],:0919aeltrunsfBPE\\ "[random.below(25)];
        }
        if let Ok(tokenizer) = Tokenizer::from_bytes(&bytes) {
            let _ = tokenizer.try_encode("ab <s> é", true);
            tokenizer.decode(&[0, 1, 2, 3, 4, 1 << 31], false);
        }
    }
}

#[test]
fn an_unknown_splitting_rule_is_refused_with_the_known_ones() {
    let vocabulary = GgufVocabulary {
        model: "gpt2".to_owned(),
        pre: Some("from-the-future".to_owned()),
        tokens: vec!["a".to_owned()],
        ..GgufVocabulary::default()
    };
    let message = Tokenizer::from_gguf(vocabulary).expect_err("unknown").to_string();
    assert!(message.contains("from-the-future") && message.contains("smollm"), "{message}");
}

fn render(source: &str) -> Result<String, TemplateError> {
    let template = ChatTemplate::new(source, SpecialTokens::default())?;
    template.render(&[Message::new("user", "Hi")], &RenderOptions::default())
}

#[test]
fn hostile_templates_end_in_an_error() {
    let deep = format!("{}1{}", "{% if true %}".repeat(5_000), "{% endif %}".repeat(5_000));
    let brackets = format!("{{{{ {}1{} }}}}", "(".repeat(30_000), ")".repeat(30_000));
    let lists = format!("{{{{ {}1{} }}}}", "[".repeat(30_000), "]".repeat(30_000));
    let hostile = [
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% for a in range(99999999999) %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ 'x' * 99999999999 }}",
        "{% set x = 'x' * 90000000 %}{{ x }}",
        "{% set n = namespace(x='x') %}{% for a in range(60) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}\
         {% endfor %}{{ n.x | length }}",
        "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{% set n = namespace(x='x') %}\
         {% for a in range(60) %}{% set n.x = twice(n.x) %}{% endfor %}{{ n.x | length }}",
        "{% include 'chat_template' %}",
        "{% include '/etc/passwd' %}",
        "{{ ''.__class__.__mro__ }}",
        "{% for",
        "{{ messages | tojson(indent=999999999) }}",
        &deep,
        &brackets,
        &lists,
    ];
    for source in hostile {
        let start = Instant::now();
        let result = render(source);
        assert!(result.is_err(), "{:?} gave {} bytes", &source[..source.len().min(60)], result.map_or(0, |t| t.len()));
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", &source[..source.len().min(60)]);
    }
}

#[test]
fn a_template_that_refuses_is_told_from_a_template_that_fails() {
    let error = render("{{ raise_exception('no users here') }}").expect_err("raised");
    assert!(matches!(&error, TemplateError::Raised { message } if message == "no users here"), "{error:?}");
    let error = render("{% for i in range(100000) %}{% for i in range(100000) %}{% endfor %}{% endfor %}");
    assert!(matches!(error, Err(TemplateError::Limit { .. })), "{error:?}");
    assert!(matches!(render("{{ messages.x.y }}"), Err(TemplateError::Render { .. })));
    assert!(matches!(render("{% if %}"), Err(TemplateError::Syntax { .. })));
}

#[test]
fn a_final_message_can_be_continued() {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>\n{% endfor %}";
    let template = ChatTemplate::new(source, SpecialTokens::default()).expect("valid");
    let messages = [Message::new("user", "Count"), Message::new("assistant", "One, two, ")];
    let options = RenderOptions { continue_final_message: true, ..RenderOptions::default() };
    assert_eq!(template.render(&messages, &options).expect("renders"), "<user>Count</>\n<assistant>One, two,");
    let both = RenderOptions { add_generation_prompt: true, ..options };
    assert!(matches!(template.render(&messages, &both), Err(TemplateError::Options { .. })));
}

#[test]
fn templates_that_want_parts_get_parts() {
    let source = "{% for m in messages %}{% for p in m.content %}{{ p.text }};{% endfor %}{% endfor %}";
    let text = ChatTemplate::new(source, SpecialTokens::default())
        .and_then(|template| template.render(&[Message::new("user", "Hi")], &RenderOptions::default()));
    assert_eq!(text.expect("renders"), "Hi;");
}

/// One megabyte of what makes naive tokenizers slow.
fn enormous_texts() -> [(&'static str, String); 6] {
    const SIZE: usize = 1_000_000;
    [
        ("letters", "a".repeat(SIZE)),
        ("spaces", " ".repeat(SIZE)),
        ("spaces and a word", " ".repeat(SIZE) + "a"),
        ("line ends", "\n".repeat(SIZE)),
        ("combining marks", "e".to_owned() + &"\u{301}".repeat(SIZE / 2)),
        ("digits", "7".repeat(SIZE)),
    ]
}

fn encodes_enormous_texts(name: &str, tokenizer: &Tokenizer) {
    for (kind, text) in enormous_texts() {
        let start = Instant::now();
        let num_tokens = tokenizer.try_encode(&text, false).expect("encodes").len();
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{name}, {kind}: {num_tokens} tokens in {seconds:.2} s");
        assert!(seconds < 20.0, "{name}, {kind}: {seconds} s");
    }
}

#[test]
fn enormous_texts_encode_in_bounded_time() {
    for name in ["llama2", "llama3_1", "qwen3", "gemma3", "gptoss", "deepseek_v3"] {
        let Some(path) = fetched(&format!("tokenizer-{name}/tokenizer.json")) else { continue };
        encodes_enormous_texts(name, &Tokenizer::from_file(&path).expect("a real tokenizer"));
    }
    let Some(path) = fetched("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let tokenizer = Tokenizer::from_gguf(GgufHeader::read(&path).vocabulary()).expect("a supported vocabulary");
    encodes_enormous_texts("smollm2", &tokenizer);
}
