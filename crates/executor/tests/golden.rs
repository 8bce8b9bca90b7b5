//! Every architecture against the stored logits, layer outputs and greedy tokens of PyTorch transformers, on every
//! device of this machine.

mod common;

use std::path::Path;

use burn::tensor::{Device, Tensor};
use common::{BLOCK_SIZE, Reference, Setup, engine, fixture_models, greedy, quantised_models, run_requests};
use firebrick_checkpoint::{Checkpoint, Dtype};
use firebrick_engine::{Batch, TokenId};
use firebrick_executor::forward_input;
use firebrick_model::{Fp8, KvCache, LoadOptions, load};
use firebrick_ops::e4m3::{decode, quantise_row};
use firebrick_ops::testing::{assert_close, for_each_device};
use firebrick_ops::{Backend, backend_of, float_tensor, int_tensor, tensor_bytes_max};
use safetensors::tensor::TensorView;

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
    firebrick_model::ForwardInput { output_rows: None, ..forward_input(&batch, device) }
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
            let options = LoadOptions {
                dtype: Dtype::F32,
                packed: true,
                fp8: Fp8::Never,
                max_model_len: config.max_position_embeddings,
            };
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
fn wanted_rows_are_those_of_a_pass_that_computes_all() {
    for_each_device(|device| {
        for folder in fixture_models() {
            let tokens = Reference::open(&folder.join("reference.safetensors")).words("prompt.0");
            let checkpoint = Checkpoint::open(&folder).expect("the fixture opens");
            let config = checkpoint.config();
            let max_model_len = config.max_position_embeddings;
            let options = LoadOptions { dtype: Dtype::F32, packed: true, fp8: Fp8::Never, max_model_len };
            let model = load(&checkpoint, options, device, &mut |_| ()).expect("the fixture loads");
            let pass = |rows: Option<Vec<i32>>| {
                let mut cache =
                    KvCache::new(config, Dtype::F32.into(), (8, BLOCK_SIZE as usize), device).expect("few blocks");
                let output_rows = rows.map(|rows| {
                    let count = rows.len();
                    int_tensor(rows, [count], device)
                });
                let input = firebrick_model::ForwardInput { output_rows, ..prefill(&tokens, device) };
                let logits = model.forward(&input, &mut cache, None);
                (logits, cache.layer(config.num_layers - 1).keys())
            };
            let rows = vec![tokens.len() as i32 - 1, 0];
            let (all, all_keys) = pass(None);
            let expected: Vec<Tensor<2>> = rows.iter().map(|&row| all.clone().narrow(0, row as usize, 1)).collect();
            let expected: Vec<f32> = Tensor::cat(expected, 0).into_data().try_to_vec().expect("32-bit floats");
            let (wanted, keys) = pass(Some(rows));
            assert_equal(&format!("{folder:?}"), wanted, &expected);
            assert_close(keys, all_keys, 0.0);
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

/// By kernels for FP8 where there are some, else by the reference.
#[test]
fn weights_that_stay_in_fp8_give_the_tokens_of_the_widened_ones() {
    for_each_device(|device| {
        if backend_of(device) == Backend::Wgpu {
            return; // which has no tensors of bytes
        }
        for folder in quantised_models()
            .into_iter()
            .filter(|folder| ["fp8-rows", "fp8-tensor"].iter().any(|name| folder.ends_with(name)))
        {
            let reference = Reference::open(&folder.join("reference.safetensors"));
            let mut engine = engine(&folder, &Setup { fp8: Fp8::Stored, ..Setup::default() }, device);
            for prompt in 0..reference.num_prompts() {
                let (tokens, expected) =
                    (reference.words(&format!("prompt.{prompt}")), reference.words(&format!("greedy.{prompt}")));
                let got = run_requests(&mut engine, vec![greedy(&tokens, expected.len() as u32)]);
                assert_eq!(got[0], expected, "{folder:?}");
            }
        }
    });
}

#[test]
fn linear_layers_rounded_to_fp8_are_those_of_a_file_of_the_rounded_numbers() {
    for_each_device(|device| {
        if backend_of(device) == Backend::Wgpu {
            return; // which has no tensors of bytes
        }
        for name in ["llama", "gpt2"] {
            let folder = fixture_models().into_iter().find(|folder| folder.ends_with(name)).expect("a fixture");
            let tokens = Reference::open(&folder.join("reference.safetensors")).words("prompt.0");
            let logits = |folder: &Path, fp8: Fp8| -> Vec<f32> {
                let checkpoint = Checkpoint::open(folder).expect("the model opens");
                let config = checkpoint.config();
                let max_model_len = config.max_position_embeddings;
                let options = LoadOptions { dtype: Dtype::F32, packed: false, fp8, max_model_len };
                let model = load(&checkpoint, options, device, &mut |_| ()).expect("the model loads");
                let mut cache =
                    KvCache::new(config, Dtype::F32.into(), (8, BLOCK_SIZE as usize), device).expect("few blocks");
                let logits = model.forward(&prefill(&tokens, device), &mut cache, None);
                logits.into_data().try_to_vec().expect("32-bit floats")
            };
            let rounded = rounded_copy(&folder);
            let expected = logits(rounded.path(), Fp8::Never);
            assert_equal(name, float_tensor(logits(&folder, Fp8::All), [1, expected.len()], device), &expected);
            assert_ne!(expected, logits(&folder, Fp8::Never), "{name}: nothing was rounded");
        }
    });
}

/// A copy of a model whose linear layers' weights are the numbers that FP8 with a scale for each output makes of them.
fn rounded_copy(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a temporary folder");
    std::fs::copy(folder.join("config.json"), copy.path().join("config.json")).expect("copied");
    let checkpoint = Checkpoint::open(folder).expect("the model opens");
    let names = ["_proj.weight", ".c_attn.weight", ".c_proj.weight", ".c_fc.weight"];
    let tensor = |name: &str| {
        let stored = checkpoint.read(name, Dtype::F32).expect("its own tensor");
        let mut values: Vec<f32> = stored.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        if names.iter().any(|end| name.ends_with(end)) {
            // GPT-2's are `[in, out]`.
            let [rows, columns] = stored.shape[..] else { panic!("{name} is no matrix") };
            let (outputs, of_output, of_input) =
                if name.contains(".c_") { (columns, 1, columns) } else { (rows, columns, 1) };
            let inputs = values.len() / outputs;
            for output in 0..outputs {
                let at = |input: usize| output * of_output + input * of_input;
                let row: Vec<f32> = (0..inputs).map(|input| values[at(input)]).collect();
                let mut codes = vec![0; inputs];
                let scale = quantise_row(&row, &mut codes);
                (0..inputs).for_each(|input| values[at(input)] = decode(codes[input]) * scale);
            }
        }
        (name.to_owned(), stored.shape, values.into_iter().flat_map(f32::to_le_bytes).collect())
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = checkpoint.tensor_names().map(tensor).collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).expect("a whole tensor"))
    });
    let file = safetensors::serialize(views, None).expect("serialised");
    std::fs::write(copy.path().join("model.safetensors"), file).expect("written");
    copy
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
