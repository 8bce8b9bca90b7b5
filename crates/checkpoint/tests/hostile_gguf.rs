//! GGUF files that lie: every answer is a value or a one-line error, whatever the bytes.

mod support;

use firebrick_checkpoint::{Checkpoint, Dtype};
use support::{GgufBuilder, Lcg};

const FIXTURE: &[u8] = include_bytes!("../fixtures/every_type.gguf");

/// Opens, and if that works reads everything. Returns the error's text.
fn open(bytes: Vec<u8>) -> Result<Checkpoint, String> {
    let checkpoint = Checkpoint::from_gguf_bytes("model.gguf", bytes).map_err(|error| {
        let text = error.to_string();
        assert!(text.starts_with("model.gguf: ") && !text.contains('\n') && text.len() < 1000, "{text}");
        text
    })?;
    for name in checkpoint.tensor_names() {
        checkpoint.read(name, Dtype::BF16).expect("a tensor that was listed can be read");
    }
    checkpoint.tokenizer_source();
    Ok(checkpoint)
}

/// The smallest model that opens.
fn llama() -> GgufBuilder {
    GgufBuilder::new("llama").tensor("token_embd.weight", &[4, 32])
}

fn refusal(builder: GgufBuilder) -> String {
    open(builder.build()).expect_err("must be refused")
}

#[test]
fn every_truncation_is_an_error() {
    assert!(open(FIXTURE.to_vec()).is_ok());
    for length in 0..FIXTURE.len() {
        // The last tensor is padded to the alignment; only there may bytes be missing.
        let padding = length + 32 > FIXTURE.len();
        assert!(open(FIXTURE[..length].to_vec()).is_err() || padding, "{length}");
    }
}

#[test]
fn random_damage_never_panics() {
    let mut random = Lcg(1);
    let header = 3000;
    let (mut opened, mut refused) = (0, 0);
    for round in 0..6000 {
        let mut bytes = FIXTURE.to_vec();
        for _ in 0..1 + random.next(4) {
            // Most damage goes where it hurts.
            let place = random.next(if round % 4 == 0 { bytes.len() } else { header });
            bytes[place] = match random.next(4) {
                0 => 0xff,
                1 => 0,
                2 => bytes[place] ^ (1 << random.next(8)),
                _ => random.next(256) as u8,
            };
        }
        match open(bytes) {
            Ok(_) => opened += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(opened > 100 && refused > 1000, "{opened} opened, {refused} refused");
}

#[test]
fn lengths_and_counts_beyond_the_file_allocate_nothing() {
    for huge in [1 << 20, 1 << 32, 1 << 61, u64::MAX / 8, u64::MAX] {
        assert!(refusal(GgufBuilder { num_tensors: Some(huge), ..llama() }).contains("tensor"));
        assert!(refusal(GgufBuilder { num_values: Some(huge), ..llama() }).contains("metadata count"));
        for kind in [0, 4, 7, 8, 12] {
            assert!(refusal(llama().array("tokenizer.ggml.tokens", kind, huge, &[])).contains("tokenizer.ggml.tokens"));
        }
        let entry = GgufBuilder::new("llama").entry("token_embd.weight", &[huge, huge, huge, huge], 0, 0);
        assert!(refusal(entry).contains("token_embd.weight: "));
        let offset = GgufBuilder::new("llama").entry("token_embd.weight", &[32, 4], 0, huge & !31);
        assert!(refusal(offset).contains("token_embd.weight: "));
    }
}

#[test]
fn faults_are_told_by_file_and_field() {
    let second = || llama().tensor("output_norm.weight", &[32]);
    let cases = [
        (GgufBuilder { version: 1, ..llama() }, "version: 1 is not supported; supported: 2, 3"),
        (GgufBuilder { version: 3u32.swap_bytes(), ..llama() }, "version: big-endian files are not supported"),
        (GgufBuilder::new("llama"), "token_embd.weight: is missing or not a matrix"),
        (GgufBuilder::new("mamba"), "general.architecture: Model mamba is not supported; supported: LlamaForCausalLM"),
        (llama().u32("llama.block_count", 2), "llama.block_count: occurs twice"),
        (llama().u32("general.alignment", 48), "general.alignment: is 48, expected a power of two up to 65536"),
        (llama().u32("general.alignment", 0), "general.alignment: is 0"),
        (llama().u32("general.alignment", 1 << 17), "general.alignment: is 131072"),
        (llama().u32("tokenizer.ggml.bos_token_id", 7), "tokenizer.ggml.bos_token_id: is 7, the vocabulary has 0"),
        (llama().f32("llama.rope.freq_base", f32::NAN), "llama.rope.freq_base: is not a finite number"),
        (llama().text("llama.rope.scaling.type", "yarn"), "llama.rope.scaling.type: yarn is not supported"),
        (llama().u32("llama.expert_count", 8), "llama.expert_count: mixtures of experts (8 here)"),
        (llama().u32("split.count", 3), "split.count: files split into 3 parts are not supported"),
        (llama().array("x", 9, 1, &[0; 32]), "x: arrays of arrays are not supported"),
        (llama().array("x", 77, 1, &[0; 32]), "x: has unknown value type 77"),
        (llama().entry("a", &[], 0, 0), "a: has 0 dimensions, expected 1 to 4"),
        (llama().entry("a", &[1; 5], 0, 0), "a: has 5 dimensions, expected 1 to 4"),
        (llama().entry("a", &[0, 4], 0, 0), "a: has a dimension of 0"),
        (llama().entry("a", &[16, 2], 2, 512), "a: rows of 16 do not fill Q4_0 blocks of 32"),
        (llama().entry("a", &[32], 20, 512), "a: tensor type IQ4_NL is not supported; supported: F32, F16, Q4_0"),
        (llama().entry("a", &[32], 4, 512), "a: tensor type number 4 is not supported"),
        (llama().entry("a", &[32], 0, 16), "a: offset 16 is not a multiple of 32"),
        (llama().entry("output_norm.weight", &[32], 0, 512), "output_norm.weight: needs bytes up to 640"),
        (llama().entry("output_norm.weight", &[32], 0, 480), "output_norm.weight: needs bytes up to 608"),
        (second().entry("output.weight", &[32], 0, 384), "output.weight: overlaps tensor token_embd.weight"),
        (llama().tensor("token_embd.weight", &[4, 32]), "token_embd.weight: occurs twice"),
        (llama().tensor("blk.0.ssm_a.weight", &[4]), "blk.0.ssm_a.weight: tensor is unknown to LlamaForCausalLM"),
        (llama().tensor("blk.00.attn_q.weight", &[32, 32]), "blk.00.attn_q.weight: tensor is unknown"),
        (llama().tensor("blk.0.attn_q.weight", &[6, 32]), "blk.0.attn_q.weight: shape [6, 32] does not split"),
        (llama().tensor("rope_freqs.weight", &[8]), "rope_freqs.weight: these rotary factors are not Llama 3's"),
    ];
    for (builder, expected) in cases {
        let text = refusal(builder);
        assert!(text.starts_with(&format!("model.gguf: {expected}")), "{text}\nexpected {expected}");
    }
    assert_eq!(open(vec![]).unwrap_err(), "model.gguf: magic: needs 4 bytes at offset 0, the file has 0 left");
    assert_eq!(open(b"PK\x03\x04xxxx".to_vec()).unwrap_err(), "model.gguf: magic: is not GGUF");
}

#[test]
fn strings_that_are_not_utf8_are_refused() {
    let mut bytes = Vec::new();
    bytes.extend(2u64.to_le_bytes());
    bytes.extend([0xff, 0xfe]);
    let text = refusal(llama().array("tokenizer.ggml.tokens", 8, 1, &bytes));
    assert!(text.starts_with("model.gguf: tokenizer.ggml.tokens: invalid utf-8"), "{text}");
}
