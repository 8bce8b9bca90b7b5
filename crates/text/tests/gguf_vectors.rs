//! GGUF vocabularies give the tokens that their published test vectors list.

mod support;

use std::path::Path;

use firebrick_text::Tokenizer;
use support::GgufHeader;
use support::fetched::fetched;

/// The texts of a vector file and their tokens.
fn vectors(gguf: &Path) -> Vec<(String, Vec<u32>)> {
    let read =
        |end: &str| std::fs::read_to_string(format!("{}.{end}", gguf.display())).expect("stands beside the file");
    let (inputs, outputs) = (read("inp"), read("out"));
    let texts = inputs.split("\n__ggml_vocab_test__\n").map(str::to_owned);
    let tokens = outputs.lines().map(|line| line.split_whitespace().map(|id| id.parse().expect("a number")).collect());
    texts.zip(tokens).collect()
}

fn check(name: &str) {
    let Some(path) = fetched(&format!("vocabularies/ggml-vocab-{name}.gguf")) else { return };
    let tokenizer = Tokenizer::from_gguf(GgufHeader::read(&path).vocabulary()).expect("a supported vocabulary");
    let vectors = vectors(&path);
    assert!(vectors.len() > 40, "{name}: {} vectors", vectors.len());
    let mut wrong = Vec::new();
    for (text, expected) in &vectors {
        let tokens = tokenizer.encode(text, false);
        if &tokens != expected {
            wrong.push(format!("{text:?}:\n  {tokens:?}\n  {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{name}: {} of {} differ:\n{}", wrong.len(), vectors.len(), wrong.join("\n"));
}

macro_rules! vocabularies {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { check($name); })*
    };
}

vocabularies! {
    command_r: "command-r",
    deepseek_coder: "deepseek-coder",
    deepseek_llm: "deepseek-llm",
    falcon: "falcon",
    gpt_2: "gpt-2",
    llama_bpe: "llama-bpe",
    llama_spm: "llama-spm",
    mpt: "mpt",
    phi_3: "phi-3",
    qwen2: "qwen2",
    qwen35: "qwen35",
    refact: "refact",
    starcoder: "starcoder",
}

#[test]
fn smollm2_chat_prompt() {
    let Some(path) = fetched("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let tokenizer = Tokenizer::from_gguf(GgufHeader::read(&path).vocabulary()).expect("a supported vocabulary");
    let prompt = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
                  <|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";
    let expected = [
        1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2,
        198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
    ];
    assert_eq!(tokenizer.encode(prompt, true), expected);
    assert_eq!(tokenizer.decode(&[504, 3575, 282, 4649, 314, 7042, 30, 2], true), "The capital of France is Paris.");
}

#[test]
fn gemma3_continuation() {
    let Some(path) = fetched("gemma-3-270m-Q4_K_M.gguf") else { return };
    let tokenizer = Tokenizer::from_gguf(GgufHeader::read(&path).vocabulary()).expect("a supported vocabulary");
    let ids = [506, 5279, 529, 506, 2891, 529, 7001, 236761, 1030, 563, 506, 7488, 3207, 528, 7001, 532];
    let text = " the capital of the country of France. It is the largest city in France and";
    assert_eq!(tokenizer.decode(&ids, true), text);
    assert_eq!(tokenizer.encode(text, false), ids);
}
