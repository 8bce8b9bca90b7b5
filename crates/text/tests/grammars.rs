//! Grammars: random draws from the allowed tokens always give texts that match, and hostile sources are refused.

use std::time::{Duration, Instant};

use firebrick_text::{
    COMPILE_STACK_BYTES, Grammar, GrammarCompiler, GrammarError, GrammarSource, JsonOrCalls, StructuralTag, Structure,
    TokenId, Tokenizer, Whitespace,
};
use serde_json::{Value, json};

/// Byte-level tokens, some common pieces of several bytes, and an end.
const PIECES: [&str; 12] = ["true", "null", "\"a", "\":", "{\"", "12", "name", ", ", "}}", "\\\"", "é", "<tool"];
const END: TokenId = 256 + PIECES.len() as TokenId;

fn tokenizer() -> Tokenizer {
    let byte_char = |byte: u8| {
        let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let shift = (0..byte).filter(|byte| !printable(*byte)).count() as u32;
        if printable(byte) { char::from(byte) } else { char::from_u32(256 + shift).expect("a letter") }
    };
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255_u8 {
        vocab.insert(byte_char(byte).to_string(), json!(byte));
    }
    for (number, piece) in PIECES.iter().enumerate() {
        vocab.insert(piece.bytes().map(byte_char).collect(), json!(256 + number));
    }
    let end = json!({"id": END, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
                     "normalized": false, "special": true});
    let document = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [end],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": []},
    });
    Tokenizer::from_bytes(document.to_string().as_bytes()).expect("the test tokenizer is valid")
}

struct Setup {
    tokenizer: Tokenizer,
    compiler: GrammarCompiler,
}

impl Setup {
    fn new() -> Self {
        let tokenizer = tokenizer();
        // Logits are often wider than the vocabulary.
        let compiler = GrammarCompiler::new(&tokenizer, END + 10, &[END]).expect("a usable vocabulary");
        Self { tokenizer, compiler }
    }

    fn grammar(&self, source: GrammarSource) -> Grammar {
        self.compiler.compile(&source).unwrap_or_else(|error| panic!("{source:?}: {error}"))
    }

    fn json(&self, schema: Value) -> Grammar {
        self.grammar(GrammarSource::Json { schema, whitespace: None })
    }

    fn refused(&self, source: GrammarSource) -> GrammarError {
        self.compiler.compile(&source).expect_err("must be refused")
    }

    /// A text of random allowed tokens, and whether it is complete within the length.
    fn text(&self, grammar: &Grammar, seed: u64, tokens_max: usize) -> (String, bool) {
        let (mut matcher, mut state) = (grammar.matcher(), seed);
        let mut tokens = Vec::new();
        while tokens.len() < tokens_max {
            let words = matcher.allowed().expect("a text can go on or end");
            let allowed: Vec<TokenId> = (0..words.len() as TokenId * 32)
                .filter(|token| words[*token as usize / 32] >> (token % 32) & 1 == 1)
                .collect();
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let token = allowed[(state >> 33) as usize % allowed.len()];
            if token == END {
                assert!(matcher.may_end());
                return (self.tokenizer.decode(&tokens, true), true);
            }
            matcher.accept(token).expect("an allowed token is accepted");
            tokens.push(token);
            if matcher.is_complete() {
                return (self.tokenizer.decode(&tokens, true), true);
            }
        }
        (self.tokenizer.decode(&tokens, true), false)
    }

    /// Whether a text, token by token, is allowed and complete.
    fn matches(&self, grammar: &Grammar, text: &str) -> bool {
        let mut matcher = grammar.matcher();
        for token in self.tokenizer.encode(text, false) {
            if matcher.is_complete() || matcher.accept(token).is_err() {
                return false;
            }
        }
        matcher.may_end()
    }
}

#[test]
fn classes_of_digits_and_words_are_ascii() {
    let setup = Setup::new();
    let of_pattern = |pattern: &str| setup.grammar(GrammarSource::Regex(pattern.to_owned()));
    let of_schema = |pattern: &str| setup.json(json!({"type": "string", "pattern": pattern}));
    // An Arabic-Indic digit and a letter with an accent.
    for (pattern, text, expected) in [
        (r"^\d+$", "12", true),
        (r"^\d+$", "1\u{662}", false),
        (r"^[\d.]+$", "1.2", true),
        (r"^[\d.]+$", "1.\u{662}", false),
        (r"^\D$", "\u{662}", true),
        (r"^\D$", "1", false),
        (r"^\w+$", "a_1", true),
        (r"^\w+$", "é", false),
        (r"^[^\w]$", "é", true),
        (r"^\W$", "é", true),
        (r"^[\W]$", "a", false),
        (r"^a\sb$", "a b", true),
    ] {
        assert_eq!(setup.matches(&of_pattern(pattern), text), expected, "{pattern} {text}");
        assert_eq!(setup.matches(&of_schema(pattern), &format!("\"{text}\"")), expected, "{pattern} {text} in JSON");
    }
    let named = setup.json(json!({"type": "object", "patternProperties": {"^\\w$": {"type": "null"}},
                                  "additionalProperties": false}));
    assert!(setup.matches(&named, "{\"e\": null}") && !setup.matches(&named, "{\"é\": null}"));
    let structure = Structure {
        begin: "<a>".to_owned(),
        schema: json!({"pattern": "^\\w$", "type": "string"}),
        end: String::new(),
    };
    let tag =
        GrammarSource::StructuralTag(StructuralTag { structures: vec![structure], triggers: vec!["<a".to_owned()] });
    let tag = setup.grammar(tag);
    assert!(setup.matches(&tag, "<a>\"e\"") && !setup.matches(&tag, "<a>\"é\""));
}

#[test]
fn random_texts_of_a_schema_parse_and_have_its_shape() {
    let setup = Setup::new();
    let grammar = setup.json(json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b\"c", "é\n"]}, "minItems": 1, "maxItems": 3},
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/point"}]},
        },
        "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number", "minimum": -1, "maximum": 1}},
                            "required": ["x"], "additionalProperties": false}},
        "required": ["name", "age", "tags", "next"], "additionalProperties": false,
    }));
    for seed in 0..200 {
        let (text, complete) = setup.text(&grammar, seed, 2000);
        assert!(complete, "{text}");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(value["name"].as_str().is_some_and(|name| (1..=12).contains(&name.chars().count())), "{text}");
        assert!(value["age"].as_u64().is_some_and(|age| age <= 150), "{text}");
        let tags = value["tags"].as_array().expect("a list");
        assert!(tags.iter().all(|tag| ["a", "b\"c", "é\n"].contains(&tag.as_str().expect("a text"))), "{text}");
        let next = &value["next"];
        assert!(next.is_null() || next["x"].as_f64().is_some_and(|x| (-1.0..=1.0).contains(&x)), "{text}");
        assert_eq!(value.as_object().map(serde_json::Map::len), Some(4), "{text}");
    }
}

#[test]
fn white_space_is_bounded_and_can_be_changed() {
    let setup = Setup::new();
    let schema = json!({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2});
    let usual = setup.json(schema.clone());
    assert!(setup.matches(&usual, "[true, false]") && setup.matches(&usual, "[true,false]"));
    assert!(setup.matches(&usual, "[\n  true,\n  false\n]"));
    assert!(!setup.matches(&usual, "[true,  false]") && !setup.matches(&usual, "[\n\n\ntrue, false]"));
    let none = setup.grammar(GrammarSource::Json { schema: schema.clone(), whitespace: Some(Whitespace::None) });
    assert!(setup.matches(&none, "[true,false]") && !setup.matches(&none, "[true, false]"));
    let wide = Some(Whitespace::Pattern(" {0,3}".to_owned()));
    let wide = setup.grammar(GrammarSource::Json { schema, whitespace: wide });
    assert!(setup.matches(&wide, "[true,   false]") && !setup.matches(&wide, "[true,\nfalse]"));
}

#[test]
fn a_regular_expression_matches_the_whole_text() {
    let setup = Setup::new();
    for pattern in [r"\d{3}-[a-f]+", r"^\d{3}-[a-f]+$"] {
        let grammar = setup.grammar(GrammarSource::Regex(pattern.to_owned()));
        assert!(setup.matches(&grammar, "123-fade") && setup.matches(&grammar, "000-a"));
        assert!(
            !setup.matches(&grammar, "123-") && !setup.matches(&grammar, "x123-a") && !setup.matches(&grammar, "123-g")
        );
    }
    let dollar = setup.grammar(GrammarSource::Regex(r"a\$".to_owned()));
    assert!(setup.matches(&dollar, "a$") && !setup.matches(&dollar, "a"));
    let slash = setup.grammar(GrammarSource::Regex("a/b\n\"c".to_owned()));
    assert!(setup.matches(&slash, "a/b\n\"c"));
}

#[test]
fn a_choice_is_one_of_its_texts_whatever_they_contain() {
    let setup = Setup::new();
    let choices = ["yes", "no", "no way", "a\"b", "x\\n", "line\nend", "é/ü", "(a|b)", "%json", "\u{1f600}", "\u{7f}"];
    let source = GrammarSource::Choice(choices.map(str::to_owned).to_vec());
    let grammar = setup.grammar(source.clone());
    for choice in choices {
        assert!(setup.matches(&grammar, choice), "{choice}");
    }
    for other in ["maybe", "", "yesno", "a", "x\n"] {
        assert!(!setup.matches(&grammar, other), "{other}");
    }
    for seed in 0..100 {
        let (text, complete) = setup.text(&grammar, seed, 100);
        assert!(complete && choices.contains(&text.as_str()), "{text}");
    }
    setup.grammar(source);
    assert_eq!(setup.compiler.num_cached(), 1);
}

#[test]
fn a_grammar_in_lark_notation_is_followed() {
    let setup = Setup::new();
    let text = "start: sum\nsum: NUMBER (\"+\" NUMBER)*\nNUMBER: /[0-9]{1,3}/\n";
    let grammar = setup.grammar(GrammarSource::Grammar(text.to_owned()));
    assert!(setup.matches(&grammar, "1+22+333") && setup.matches(&grammar, "7"));
    assert!(!setup.matches(&grammar, "1+") && !setup.matches(&grammar, "+1") && !setup.matches(&grammar, "4444"));
}

#[test]
fn a_grammar_in_ebnf_is_followed() {
    let setup = Setup::new();
    let text = "root ::= answer (\", \" answer){0,2}\nanswer ::= \"yes\" | \"no\" | num-ber\nnum-ber ::= [1-9] [0-9]*";
    let grammar = setup.grammar(GrammarSource::Grammar(text.to_owned()));
    for text in ["yes", "no, 10", "7, yes, 42"] {
        assert!(setup.matches(&grammar, text), "{text}");
    }
    for text in ["", "maybe", "01", "yes,no", "1, 2, 3, 4"] {
        assert!(!setup.matches(&grammar, text), "{text}");
    }
    let class = setup.grammar(GrammarSource::Grammar(r#"root ::= [^a\n/]{2} "/\"" "#.to_owned()));
    assert!(setup.matches(&class, "bé/\"") && !setup.matches(&class, "ba/\"") && !setup.matches(&class, "b//\""));
}

#[test]
fn a_structural_tag_leaves_text_free_and_binds_what_follows_its_triggers() {
    let setup = Setup::new();
    let city = json!({"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
                      "additionalProperties": false});
    let time = json!({"type": "integer", "minimum": 0, "maximum": 23});
    let structure = |begin: &str, schema: &Value| Structure {
        begin: begin.to_owned(),
        schema: schema.clone(),
        end: "</tool>".to_owned(),
    };
    let tag = StructuralTag {
        structures: vec![structure("<tool=weather>", &city), structure("<tool=time>", &time)],
        triggers: vec!["<tool=".to_owned()],
    };
    let grammar = setup.grammar(GrammarSource::StructuralTag(tag.clone()));
    for text in [
        "",
        "Just text with < and <tool and }.\n",
        "Let me see: <tool=weather>{\"city\":\"Rome\"}</tool>",
        "a<tool=time>7</tool>b<tool=weather>{\"city\": \"Oslo\"}</tool> done",
    ] {
        assert!(setup.matches(&grammar, text), "{text}");
    }
    for text in ["<tool=other>", "<tool=time>99</tool>", "<tool=weather>{\"city\":\"Bonn\"}</tool>", "x<tool=time>7"] {
        assert!(!setup.matches(&grammar, text), "{text}");
    }
    let stray = StructuralTag { triggers: vec!["<fn".to_owned()], ..tag.clone() };
    assert!(setup.refused(GrammarSource::StructuralTag(stray)).to_string().contains("none of the triggers"));
}

#[test]
fn calls_may_stand_in_place_of_json() {
    let setup = Setup::new();
    let object = |name: &str, of: Value| json!({"type": "object", "properties": {name: of}, "required": [name], "additionalProperties": false});
    let source = |[begin, end]: [&str; 2], several| {
        let (answer, call) = (object("a", json!({"type": "integer"})), object("name", json!({"enum": ["f", "g"]})));
        let [begin, end] = [begin, end].map(str::to_owned);
        GrammarSource::JsonOrCalls(JsonOrCalls { answer, whitespace: None, call, begin, end, several })
    };
    let marked = setup.grammar(source(["<call>", "</call>"], true));
    let call = r#"<call>{"name":"f"}</call>"#;
    for text in [r#"{"a": 12}"#, call, &format!("{call}\n<call>\n{{\"name\": \"g\"}}\n</call>{call}")] {
        assert!(setup.matches(&marked, text), "{text}");
    }
    for text in ["", "text", r#"{"name":"f"}"#, r#"<call>{"a":1}</call>"#, &format!("{{\"a\":1}}{call}"), &call[..20]] {
        assert!(!setup.matches(&marked, text), "{text}");
    }
    let single = setup.grammar(source(["<call>", "</call>"], false));
    assert!(setup.matches(&single, call) && !setup.matches(&single, &format!("{call}{call}")));
    let bare = setup.grammar(source(["", ""], false));
    assert!(setup.matches(&bare, r#"{"name":"g"}"#) && setup.matches(&bare, r#"{"a":1}"#));
    // A mark that is a special token is that token.
    let special = setup.grammar(source(["<|end|>", "!"], true));
    let first = special.matcher().allowed().expect("a text can begin");
    let is_allowed = |token: TokenId| first[token as usize / 32] >> (token % 32) & 1 == 1;
    assert!(is_allowed(END) && is_allowed(u32::from(b'{')) && !is_allowed(u32::from(b'<')));
}

#[test]
fn a_token_that_is_not_allowed_is_an_error_and_the_prototype_stays_whole() {
    let setup = Setup::new();
    let grammar = setup.grammar(GrammarSource::Regex("[0-9]+".to_owned()));
    let mut matcher = grammar.matcher();
    let message = matcher.accept(u32::from(b'x')).expect_err("a letter").to_string();
    assert!(message.contains("could not be followed") && message.len() < 500, "{message}");
    assert!(matcher.allowed().is_err(), "a matcher that failed stays failed");
    assert!(setup.matches(&grammar, "42"));
}

#[test]
fn what_is_not_supported_is_named() {
    let setup = Setup::new();
    let json = |schema| setup.refused(GrammarSource::Json { schema, whitespace: None }).to_string();
    assert!(json(json!({"type": "array", "uniqueItems": true})).contains("uniqueItems"));
    assert!(json(json!({"type": "string", "pattern": "(?=a)b"})).contains("cannot be used"));
    assert!(json(json!({"$ref": "https://example.org/schema"})).contains("$ref"));
    assert!(json(json!({"type": "nothing"})).contains("nothing"));
    assert!(json(json!({"x-guidance": {"lenient": true}})).contains("x-guidance"));
    let lark = |text: &str| setup.refused(GrammarSource::Grammar(text.to_owned())).to_string();
    assert!(lark("start: missing").contains("missing"));
    assert!(lark("").contains("cannot be used"));
    assert!(setup.refused(GrammarSource::Regex("(".to_owned())).to_string().contains("cannot be used"));
    assert!(setup.refused(GrammarSource::Regex("[a&&b]".to_owned())).to_string().contains("cannot be used"));
}

/// Sources that have brought other servers down: they are refused or compiled, and neither takes long.
#[test]
fn hostile_sources_neither_hang_nor_crash() {
    let nested = |open: &str, close: &str, count: usize| open.repeat(count) + "a" + &close.repeat(count);
    let references: serde_json::Map<String, Value> =
        (0..3000).map(|number| (format!("d{number}"), json!({"$ref": format!("#/$defs/d{}", number + 1)}))).collect();
    let any: Vec<Value> =
        (0..16).map(|number| json!({"properties": {format!("p{number}"): {"const": number}}})).collect();
    let mut deep = json!({"type": "string"});
    for _ in 0..30 {
        deep = json!({"type": "array", "items": deep});
    }
    let properties: serde_json::Map<String, Value> =
        (0..4000).map(|number| (format!("property{number}"), json!({"type": "string"}))).collect();
    let json = |schema| GrammarSource::Json { schema, whitespace: None };
    let values: Vec<String> = (0..10_000).map(|number| format!("value{number}")).collect();
    let rules: String = (0..1900).map(|number| format!("r{number}: r{} | \"a\"\n", number + 1)).collect();
    let sources = vec![
        json(json!({"$defs": references, "$ref": "#/$defs/d0"})),
        json(json!({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})),
        json(json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"})),
        json(json!({"allOf": [{"anyOf": any}, {"anyOf": any}, {"anyOf": any}]})),
        json(json!({"oneOf": any})),
        json(deep),
        json(json!({"type": "object", "properties": properties})),
        json(json!({"enum": values})),
        json(json!({"type": "string", "minLength": 1_000_000, "maxLength": 2_000_000})),
        json(json!({"type": "array", "minItems": 1_000_000})),
        json(json!({"type": "array", "items": {"type": "array", "maxItems": 100_000}, "maxItems": 100_000})),
        json(json!({"type": "string", "pattern": "(a{1,1000}){1,1000}"})),
        json(json!({"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"})),
        json(json!({"type": "number", "multipleOf": 0.000_000_1})),
        json(json!({"type": "integer", "minimum": -1e300, "maximum": 1e300})),
        GrammarSource::Regex(nested("(", ")", 8000)),
        GrammarSource::Regex("(((a{0,500}){0,500}){0,500}){0,500}".to_owned()),
        GrammarSource::Regex("(a*)*".repeat(1000)),
        GrammarSource::Regex(".{1000000}".to_owned()),
        GrammarSource::Regex("(.*a.{20}){5}".to_owned()),
        GrammarSource::Regex(r"\p{L}{1,500}\p{N}{1,500}".repeat(20)),
        GrammarSource::Choice(values),
        GrammarSource::Grammar(rules + "r1900: \"b\"\nstart: r0\n"),
        GrammarSource::Grammar("start: start start | \"a\" | \"\"".to_owned()),
        GrammarSource::Grammar("start: a\na: b\nb: a".to_owned()),
        GrammarSource::Grammar(format!("start: \"a\"{}", "~1000".repeat(3))),
        GrammarSource::Grammar("start: (\"a\"{1000}){1000}".to_owned()),
        GrammarSource::Grammar(format!("start: /{}/", "(a|b)*".repeat(500))),
        GrammarSource::Grammar("start: %json {\"type\": \"array\", \"minItems\": 100000}".to_owned()),
        GrammarSource::Grammar("\u{0}start\u{ff}: \"".to_owned()),
        GrammarSource::Grammar("%import common.INT\nstart: INT".to_owned()),
    ];
    let run = move || {
        let setup = Setup::new();
        let mut slowest = Duration::ZERO;
        for source in sources {
            let shown: String = format!("{source:?}").chars().take(120).collect();
            let begun = Instant::now();
            let compiled = setup.compiler.compile(&source);
            let compile = begun.elapsed();
            let begun = Instant::now();
            if let Ok(grammar) = &compiled {
                let mut matcher = grammar.matcher();
                for _ in 0..30 {
                    let Ok(words) = matcher.allowed() else { break };
                    let Some(word) = words.iter().position(|word| *word != 0) else { break };
                    let token = word as TokenId * 32 + words[word].trailing_zeros();
                    if token == END || matcher.accept(token).is_err() || matcher.is_complete() {
                        break;
                    }
                }
            }
            println!(
                "{:>6} ms {:>6} ms {:?} {shown}",
                compile.as_millis(),
                begun.elapsed().as_millis(),
                compiled.map(|_| ())
            );
            slowest = slowest.max(compile);
        }
        slowest
    };
    let thread = std::thread::Builder::new().stack_size(COMPILE_STACK_BYTES).spawn(run).expect("a thread");
    let slowest = thread.join().expect("no panic");
    assert!(slowest < Duration::from_secs(20), "{slowest:?}: compiling is bounded, also on a slow and busy machine");
}

/// A vocabulary without most letters says so: at once for choices, elsewhere where the text cannot go on.
#[test]
fn what_a_vocabulary_cannot_spell_is_refused_or_ends_dead() {
    let end = json!({"id": 3, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
                     "normalized": false, "special": true});
    let document = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [end],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    });
    let tokenizer = Tokenizer::from_bytes(document.to_string().as_bytes()).expect("valid");
    let compiler = GrammarCompiler::new(&tokenizer, 4, &[3]).expect("usable");
    let choice = |choices: &[&str]| {
        compiler.compile(&GrammarSource::Choice(choices.iter().map(|choice| (*choice).to_owned()).collect()))
    };
    choice(&["ab", "abba"]).expect("spelled with these letters");
    let refused = choice(&["ab", "cab"]).expect_err("there is no c").to_string();
    assert!(refused.contains("cannot spell the choice \"cab\""), "{refused}");
    let late = compiler.compile(&GrammarSource::Regex("abc+".to_owned())).expect("it begins well");
    let mut matcher = late.matcher();
    let dead = matcher.accept(2).and_then(|()| matcher.allowed().map(drop));
    assert_eq!(dead, Err(GrammarError::DeadEnd));
}
