//! Safetensors files, indexes and configurations that lie: every answer is a value or a one-line error.
//!
//! `FIREBRICK_FUZZ_ROUNDS=100` runs a hundred times as many mutations.

mod support;

use std::path::Path;

use firebrick_checkpoint::{Checkpoint, Dtype};
use serde_json::{Value, json};
use support::{Lcg, llama_config, sound_safetensors};

fn rounds(usual: usize) -> usize {
    let factor = std::env::var("FIREBRICK_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok());
    usual * factor.unwrap_or(1_usize)
}

/// Opens, and if that works reads everything. Returns whether it opened.
fn open(folder: &Path) -> bool {
    match Checkpoint::open(folder) {
        Ok(checkpoint) => {
            for name in checkpoint.tensor_names() {
                // What is stored in a type that is not supported is refused only here.
                if let Err(error) = checkpoint.read(name, Dtype::F32) {
                    assert!(!error.to_string().contains('\n'), "{error}");
                }
            }
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n') && text.len() < 1500, "{text}");
            false
        }
    }
}

fn weights() -> Vec<u8> {
    sound_safetensors(&[("model.embed_tokens.weight", &[4, 8]), ("model.norm.weight", &[8])])
}

/// A folder whose one file is replaced again and again. Memory-backed where the system has that.
fn try_each(file: &str, variants: impl Iterator<Item = Vec<u8>>) -> (usize, usize) {
    let shared_memory = Path::new("/dev/shm");
    let folder = if shared_memory.is_dir() { tempfile::tempdir_in(shared_memory) } else { tempfile::tempdir() };
    let folder = folder.expect("a temporary folder");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("a writable folder");
    write("config.json", llama_config().to_string().as_bytes());
    write("model.safetensors", &weights());
    let (mut opened, mut refused) = (0, 0);
    for bytes in variants {
        write(file, &bytes);
        *(if open(folder.path()) { &mut opened } else { &mut refused }) += 1;
    }
    (opened, refused)
}

fn damaged(random: &mut Lcg, sound: &[u8], damaged_part: usize) -> Vec<u8> {
    const PIECES: [&[u8]; 12] = [
        b"null",
        b"-1",
        b"0",
        b"18446744073709551616",
        b"1e99",
        b"[]",
        b"{}",
        b"\"F16\"",
        b"9223372036854775807",
        b"\"",
        b"[0,0]",
        b",",
    ];
    let mut bytes = sound.to_vec();
    for _ in 0..1 + random.next(3) {
        let at = random.next(damaged_part.min(bytes.len()));
        let end = (at + random.next(6)).min(bytes.len());
        match random.next(4) {
            0 => bytes[at] = random.next(256) as u8,
            1 => bytes[at] ^= 1 << random.next(8),
            2 => drop(bytes.splice(at..end, PIECES[random.next(PIECES.len())].iter().copied())),
            _ => drop(bytes.drain(at..end)),
        }
    }
    bytes
}

#[test]
fn every_truncation_of_the_weights_is_an_error() {
    let sound = weights();
    let (opened, refused) = try_each("model.safetensors", (0..sound.len()).map(|length| sound[..length].to_vec()));
    assert_eq!((opened, refused), (0, sound.len()));
}

#[test]
fn damaged_weights_never_panic() {
    let (sound, mut random) = (weights(), Lcg(11));
    let header = 8 + u64::from_le_bytes(sound[..8].try_into().expect("eight bytes")) as usize;
    let variants = (0..rounds(3000)).map(|_| damaged(&mut random, &sound, header));
    let (opened, refused) = try_each("model.safetensors", variants);
    assert!(opened > 10 && refused > 1000, "{opened} opened, {refused} refused");
}

#[test]
fn damaged_configurations_never_panic() {
    let (sound, mut random) = (llama_config().to_string().into_bytes(), Lcg(12));
    let variants = (0..rounds(2000)).map(|_| damaged(&mut random, &sound, sound.len()));
    let (opened, refused) = try_each("config.json", variants);
    assert!(opened > 10 && refused > 500, "{opened} opened, {refused} refused");
}

#[test]
fn every_field_of_a_configuration_may_lie() {
    let lies = [
        json!(null),
        json!(true),
        json!("x"),
        json!(""),
        json!([]),
        json!({}),
        json!(-1),
        json!(0),
        json!(1),
        json!(7),
        json!(0.5),
        json!(-1e300),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1_u64 << 40),
        json!([0]),
        json!({"a": 1}),
    ];
    let fields = [
        "architectures",
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "hidden_act",
        "tie_word_embeddings",
        "attention_bias",
        "sliding_window",
        "use_sliding_window",
        "layer_types",
        "eos_token_id",
        "bos_token_id",
        "torch_dtype",
        "dtype",
        "quantization_config",
    ];
    let sound = llama_config();
    let variants = fields.iter().flat_map(|field| lies.iter().map(move |lie| (*field, lie.clone())));
    let variants = variants.map(|(field, lie)| {
        let mut config: Value = sound.clone();
        config[field] = lie;
        config.to_string().into_bytes()
    });
    let (opened, refused) = try_each("config.json", variants);
    assert_eq!(opened + refused, fields.len() * lies.len());
    assert!(refused > 150, "{refused} refused");
}

#[test]
fn indexes_that_lie_are_refused() {
    let map = |value: Value| json!({"metadata": {}, "weight_map": value}).to_string().into_bytes();
    let variants = [
        b"".to_vec(),
        b"{}".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        map(json!(null)),
        map(json!([])),
        map(json!({})),
        map(json!({"model.norm.weight": "../../etc/passwd"})),
        map(json!({"model.norm.weight": "/etc/passwd"})),
        map(json!({"model.norm.weight": ""})),
        map(json!({"model.norm.weight": 1})),
        map(json!({"model.norm.weight": "missing.safetensors"})),
        map(json!({"missing": "model.safetensors"})),
        map(json!({"model.norm.weight": "a\u{0}b"})),
        map(json!({"model.norm.weight": "model.safetensors.index.json"})),
    ];
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("config.json"), llama_config().to_string()).expect("a writable folder");
    for bytes in variants {
        std::fs::write(folder.path().join("model.safetensors.index.json"), &bytes).expect("a writable folder");
        assert!(!open(folder.path()), "{}", String::from_utf8_lossy(&bytes));
    }
}
