//! Every architecture against the stored logits, layer outputs and greedy tokens of PyTorch transformers, on every
//! device of this machine.

mod common;

use burn::tensor::{Device, Tensor};
use common::{BLOCK_SIZE, Reference, Setup, engine, fixture_models, greedy, quantised_models, run_requests};
use firebrick_checkpoint::{Checkpoint, Dtype};
use firebrick_engine::{Batch, TokenId};
use firebrick_executor::forward_input;
use firebrick_model::{KvCache, LoadOptions, load};
use firebrick_ops::tensor_bytes_max;
use firebrick_ops::testing::for_each_device;

/// 32-bit arithmetic in another order: a few units in the last place per layer, of values up to the largest.
const TOLERANCE: f32 = 2e-5;

/// One prefill of a whole prompt into consecutive blocks, with logits for every token.
fn prefill(tokens: &[TokenId], device: &Device) -> firebrick_model::ForwardInput {
    let length = tokens.len() as u32;
    let blocks = length.div_ceil(BLOCK_SIZE);
    let batch = Batch {
        step: 1,
        tokens: tokens.to_vec(),
        positions: (0..length).collect(),
        slot_mapping: (0..length).collect(),
        query_starts: vec![0, length],
        context_lens: vec![length],
        block_tables: (0..blocks).collect(),
        blocks_per_row: blocks as usize,
        ..Batch::default()
    };
    let logit_rows = firebrick_ops::int_tensor((0..length as i32).collect(), [length as usize], device);
    firebrick_model::ForwardInput { logit_rows, ..forward_input(&batch, device) }
}

fn assert_equal(what: &str, got: Tensor<2>, expected: &[f32]) {
    let got: Vec<f32> = got.into_data().convert::<f32>().try_to_vec().expect("just converted");
    assert_eq!(got.len(), expected.len(), "{what}: size");
    let scale = expected.iter().fold(1.0f32, |largest, value| largest.max(value.abs()));
    let error = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f32::max);
    assert!(error <= TOLERANCE * scale, "{what}: largest error {error}, largest value {scale}");
}

#[test]
fn logits_and_layer_outputs_equal_the_reference() {
    for_each_device(|device| {
        for folder in fixture_models().into_iter().chain(quantised_models()) {
            let name = folder.file_name().expect("a folder").to_string_lossy().into_owned();
            let reference = Reference::open(&folder.join("reference.safetensors"));
            let checkpoint = Checkpoint::open(&folder).expect("the fixture opens");
            let config = checkpoint.config();
            let options =
                LoadOptions { dtype: Dtype::F32, packed: true, max_model_len: config.max_position_embeddings };
            let model = load(&checkpoint, options, device, &mut |_| ()).expect("the fixture loads");
            for prompt in 0..reference.num_prompts() {
                let tokens = reference.words(&format!("prompt.{prompt}"));
                let mut cache =
                    KvCache::new(config, Dtype::F32.into(), (8, BLOCK_SIZE as usize), device).expect("few blocks");
                let mut outputs = Vec::new();
                let logits = model.forward(&prefill(&tokens, device), &mut cache, Some(&mut outputs));
                if prompt == 0 {
                    for (layer, output) in outputs.into_iter().enumerate() {
                        let expected = reference.floats(&format!("hidden.0.{layer}"));
                        assert_equal(&format!("{name}, layer {layer}"), output, &expected);
                    }
                }
                let expected = reference.floats(&format!("logits.{prompt}"));
                assert_equal(&format!("{name}, prompt {prompt}, logits"), logits, &expected);
            }
        }
    });
}

#[test]
fn greedy_tokens_equal_the_reference_alone_and_together() {
    for_each_device(|device| {
        for folder in fixture_models().into_iter().chain(quantised_models()) {
            let reference = Reference::open(&folder.join("reference.safetensors"));
            let prompts: Vec<_> =
                (0..reference.num_prompts()).map(|i| reference.words(&format!("prompt.{i}"))).collect();
            let expected: Vec<_> = (0..prompts.len()).map(|i| reference.words(&format!("greedy.{i}"))).collect();
            let steps = expected[0].len() as u32;
            let setup = Setup { packed: true, ..Setup::default() };
            let mut engine = engine(&folder, &setup, device);
            for (prompt, expected) in prompts.iter().zip(&expected) {
                assert_eq!(&run_requests(&mut engine, vec![greedy(prompt, steps)])[0], expected, "{folder:?} alone");
            }
            let together = prompts.iter().map(|prompt| greedy(prompt, steps)).collect();
            assert_eq!(run_requests(&mut engine, together), expected, "{folder:?} together");
        }
    });
}

#[test]
fn a_cache_beyond_the_largest_buffer_is_refused_with_what_fits() {
    for_each_device(|device| {
        let checkpoint = Checkpoint::open(&fixture_models()[0]).expect("the model opens");
        let config = checkpoint.config();
        let num_blocks_max = KvCache::num_blocks_max(config, (Dtype::F32.into(), 16), device);
        let Some(num_blocks) = num_blocks_max.checked_add(1).filter(|_| tensor_bytes_max(device) < usize::MAX) else {
            return;
        };
        let error = KvCache::new(config, Dtype::F32.into(), (num_blocks, 16), device).expect_err("a block too many");
        assert!(error.to_string().ends_with(&format!("at most {num_blocks_max} fit")), "{error}");
    });
}
