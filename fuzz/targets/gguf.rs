//! GGUF files: whatever the bytes, a checkpoint that can be read or an error of one line.
#![no_main]

mod caught;

use firebrick_checkpoint::{Checkpoint, Dtype};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: caught::only_what_is_not_caught_counts(), |data: &[u8]| {
    match Checkpoint::from_gguf_bytes("model.gguf", data.to_vec()) {
        Ok(checkpoint) => {
            for name in checkpoint.tensor_names() {
                let _ = checkpoint.read(name, Dtype::F32);
            }
            checkpoint.tokenizer_source();
            checkpoint.chat_template();
            checkpoint.special_tokens();
            checkpoint.generation_config();
            checkpoint.end_tokens();
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.starts_with("model.gguf: ") && !text.contains('\n') && text.len() < 1500, "{text}");
        }
    }
});
