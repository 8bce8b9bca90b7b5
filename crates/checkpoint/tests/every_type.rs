//! Every stored format against the reference decoders' values, bit for bit (`fixtures/make_every_type.py`).

use firebrick_checkpoint::{Checkpoint, Dtype, StoredDtype};
use half::{bf16, f16};
use safetensors::SafeTensors;
use std::collections::BTreeSet;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

fn fixture() -> Checkpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join("every_type.gguf");
    Checkpoint::open(&path).expect("the fixture is sound")
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn every_stored_type_reads_as_the_reference_decodes_it() {
    let checkpoint = fixture();
    let expected = SafeTensors::deserialize(include_bytes!("../fixtures/every_type.safetensors")).unwrap();
    assert_eq!(checkpoint.tensor_names().count(), expected.len());
    let mut seen = BTreeSet::new();
    for (name, view) in expected.iter() {
        let values = checkpoint.read(name, Dtype::F32).unwrap();
        let stored = checkpoint.stored_dtype(name).unwrap().to_string();
        assert_eq!(values.shape, view.shape());
        assert!(values.bytes == view.data(), "{name} in {stored}");
        seen.insert(stored);
    }
    assert_eq!(seen, BTreeSet::from_iter(StoredDtype::ALL.map(|stored| stored.to_string())));
}

#[test]
fn narrow_targets_are_the_rounded_wide_values() {
    let checkpoint = fixture();
    for name in checkpoint.tensor_names() {
        let wide = f32s(&checkpoint.read(name, Dtype::F32).unwrap().bytes);
        let halves: Vec<u8> = wide.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        let brains: Vec<u8> = wide.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
        assert!(checkpoint.read(name, Dtype::F16).unwrap().bytes == halves, "{name}");
        assert!(checkpoint.read(name, Dtype::BF16).unwrap().bytes == brains, "{name}");
    }
}

#[test]
fn wrong_names_and_shapes_are_told() {
    let checkpoint = fixture();
    let missing = checkpoint.read("model.norm.weight", Dtype::F32).unwrap_err();
    assert_eq!(missing.to_string(), "the model's files hold no tensor model.norm.weight");
    let wrong = checkpoint.read_shaped("model.embed_tokens.weight", &[4, 128], Dtype::F32).unwrap_err();
    let text = "tensor model.embed_tokens.weight has shape [4, 256], the configuration asks for [4, 128]";
    assert_eq!(wrong.to_string(), text);
}

/// Prints decoding speed per format, best of many rounds over a tensor that stays in cache.
#[test]
fn decoding_speed_is_printed() {
    let checkpoint = fixture();
    for name in checkpoint.tensor_names().filter(|name| name.contains("up_proj")) {
        let best = |dtype: Dtype| {
            let time = |_| {
                let start = Instant::now();
                for _ in 0..20 {
                    black_box(checkpoint.read(black_box(name), dtype).unwrap());
                }
                start.elapsed()
            };
            let best = (0..50).map(time).min().unwrap_or(Duration::MAX);
            let numbers = 20.0 * 2.0 * 256.0;
            numbers / best.as_secs_f64() / 1e9
        };
        let stored = checkpoint.stored_dtype(name).unwrap();
        let (to_f16, to_bf16, to_f32) = (best(Dtype::F16), best(Dtype::BF16), best(Dtype::F32));
        eprintln!("{stored}: {to_f16:.2} / {to_bf16:.2} / {to_f32:.2} billion numbers a second to f16 / bf16 / f32");
    }
}
