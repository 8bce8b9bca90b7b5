//! A folder of a checkpoint: its weights, or with another first byte its `config.json`, are anything at all.
#![no_main]

mod caught;

use std::collections::BTreeMap;

use firebrick_checkpoint::{Checkpoint, Dtype};
use libfuzzer_sys::fuzz_target;

const CONFIG: &[u8] = include_bytes!("../../tests/fixtures/models/llama/config.json");
const WEIGHTS: &[u8] = include_bytes!("../../crates/checkpoint/fixtures/every_type.safetensors");

fuzz_target!(init: caught::only_what_is_not_caught_counts(), |data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    let (config, weights) = if *kind == b'c' { (rest, WEIGHTS) } else { (CONFIG, rest) };
    let files = [("config.json", config), ("model.safetensors", weights)];
    let files: BTreeMap<_, _> = files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect();
    match Checkpoint::from_folder_bytes("model", files) {
        Ok(checkpoint) => {
            for name in checkpoint.tensor_names() {
                let _ = checkpoint.read(name, Dtype::F32);
            }
            checkpoint.end_tokens();
            checkpoint.num_parameters();
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n') && text.len() < 1500, "{text}");
        }
    }
});
