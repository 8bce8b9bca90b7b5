//! Real models that `scripts/fetch-models.sh` has fetched, and folders that somebody has converted from them: both must say the
//! same.

use firebrick_checkpoint::{Architecture, Checkpoint, Dtype, LayerKind, ModelConfig, TokenizerSource};
use std::path::Path;
use std::time::Instant;

#[path = "../../../tests/support/fetched.rs"]
mod fetched;

fn fetched(name: &str) -> Option<Checkpoint> {
    fetched::fetched(name).map(|path| opened(&path))
}

/// What somebody may have converted.
fn open(name: &str) -> Option<Checkpoint> {
    fetched::path_of(name).map(|path| opened(&path))
}

fn opened(path: &Path) -> Checkpoint {
    Checkpoint::open(path).expect("a real model opens")
}

/// Every tensor of both, read as bfloat16, is equal byte for byte.
fn assert_same_tensors(gguf: &Checkpoint, folder: &Checkpoint) {
    assert_eq!(Vec::from_iter(gguf.tensor_names()), Vec::from_iter(folder.tensor_names()));
    for name in gguf.tensor_names() {
        let (left, right) = (gguf.read(name, Dtype::BF16).unwrap(), folder.read(name, Dtype::BF16).unwrap());
        assert_eq!(left.shape, right.shape, "{name}");
        assert!(left.bytes == right.bytes, "{name} differs");
    }
}

/// The folder states bfloat16, which a quantised file cannot; all else is equal.
fn assert_same_config(gguf: &Checkpoint, folder: &Checkpoint) {
    let folder = ModelConfig { dtype: gguf.config().dtype, ..folder.config().clone() };
    assert_eq!(gguf.config(), &folder);
}

#[test]
fn smollm2_is_what_its_file_says() {
    let Some(gguf) = fetched("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let config = gguf.config();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!((config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads), (30, 576, 9, 3));
    assert_eq!((config.bos_token_id, &config.eos_token_ids[..]), (Some(1), &[2][..]));
    assert_eq!(gguf.special_tokens().eos.as_deref(), Some("<|im_end|>"));
    assert!(gguf.chat_template().unwrap().contains("<|im_start|>"));
    assert_eq!((gguf.num_parameters(), config.num_parameters()), (134_515_008, 134_515_008));
    // 28,311,552 numbers in 36 bytes for 32, 106,168,320 in 20 bytes for 32, 35,136 of norms in 2 bytes each.
    assert_eq!(gguf.packed_bytes(Dtype::F16), Some(98_275_968));
    let TokenizerSource::Gguf(tokenizer) = gguf.tokenizer_source() else { panic!("a GGUF file carries its tokenizer") };
    assert_eq!((tokenizer.model.as_str(), tokenizer.pre.as_deref()), ("gpt2", Some("smollm")));
    assert_eq!((tokenizer.tokens.len(), tokenizer.merges.len()), (49_152, 48_900));
}

#[test]
#[ignore = "needs a folder that was converted from the file"]
fn smollm2_is_the_same_model_in_both_formats() {
    let gguf = open("SmolLM2-135M-Instruct.Q4_1.gguf").expect("fetched");
    let folder = open("SmolLM2-135M-Instruct-hf").expect("converted");
    assert_same_config(&gguf, &folder);
    assert_same_tensors(&gguf, &folder);
    assert_eq!(gguf.chat_template(), folder.chat_template());
    assert_eq!(folder.generation_config().eos_token_ids, [2]);
}

#[test]
fn gemma3_is_what_its_file_says() {
    let Some(gguf) = fetched("gemma-3-270m-Q4_K_M.gguf") else { return };
    let config = gguf.config();
    assert_eq!(config.architecture, Architecture::Gemma3);
    assert_eq!(
        (config.sliding_window, config.layer_kinds[4], config.layer_kinds[5]),
        (Some(512), LayerKind::Sliding, LayerKind::Full)
    );
    assert_eq!(config.num_parameters(), gguf.num_parameters());
}

#[test]
#[ignore = "needs a folder that was converted from the file"]
fn gemma3_is_the_same_model_in_both_formats() {
    let gguf = open("gemma-3-270m-Q4_K_M.gguf").expect("fetched");
    let folder = open("gemma-3-270m-hf").expect("converted");
    assert_same_config(&gguf, &folder);
    assert_same_tensors(&gguf, &folder);
}

#[test]
#[ignore = "prints speeds and asserts nothing"]
fn reading_is_fast() {
    let gguf = open("SmolLM2-135M-Instruct.Q4_1.gguf").expect("fetched");
    report_speed("SmolLM2 GGUF Q4_1 + Q8_0", &gguf);
    if let Some(gemma) = open("gemma-3-270m-Q4_K_M.gguf") {
        report_speed("Gemma 3 GGUF Q8_0 + Q5_0 + K", &gemma);
    }
    if let Some(folder) = open("SmolLM2-135M-Instruct-hf") {
        report_speed("SmolLM2 safetensors bf16", &folder);
    }
}

/// Prints GB of values produced per second; no bound is asserted, as machines differ.
fn report_speed(label: &str, checkpoint: &Checkpoint) {
    // Once unmeasured, so that the file is in memory.
    for name in checkpoint.tensor_names() {
        checkpoint.read(name, Dtype::F16).unwrap();
    }
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let start = Instant::now();
        let mut bytes = 0;
        for name in checkpoint.tensor_names() {
            bytes += checkpoint.read(name, dtype).unwrap().bytes.len();
        }
        let seconds = start.elapsed().as_secs_f64();
        let stored = checkpoint.total_bytes() as f64;
        let (out_rate, in_rate) = (bytes as f64 / seconds / 1e9, stored / seconds / 1e9);
        eprintln!("{label} -> {dtype}: {out_rate:.2} GB/s written, {in_rate:.2} GB/s read");
    }
}
