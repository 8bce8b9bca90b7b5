//! Weights in several parts: every format's fixture opens, and parts that do not fit each other are refused by name. What
//! the fixtures compute is compared with the reference where models run.

mod support;

use firebrick_checkpoint::{Checkpoint, Codes, Dtype, Fp8Values, PackedValues};
use safetensors::Dtype as Stored;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::path::Path;
use support::llama_config;

#[test]
fn every_format_opens_as_the_weights_that_it_stands_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/quantised");
    let mut formats = 0;
    for entry in std::fs::read_dir(root).expect("the fixtures are in the repository") {
        let folder = entry.expect("readable").path();
        let checkpoint = Checkpoint::open(&folder).unwrap_or_else(|error| panic!("{error}"));
        let weight = "model.layers.1.mlp.down_proj.weight";
        assert!(checkpoint.contains(weight) && checkpoint.stored_dtype(weight).is_none(), "{folder:?}");
        assert_eq!(checkpoint.shape(weight), Some(&[32, 64][..]));
        // 2 layers of 4,096 numbers of attention and 6,144 of the MLP, with norms; embedding, last norm and output.
        assert_eq!(checkpoint.num_parameters(), 2 * (6_144 + 6_144 + 64) + 2 * 128 * 32 + 32, "{folder:?}");
        let stored = std::fs::metadata(folder.join("model.safetensors")).expect("there").len();
        assert!(checkpoint.total_bytes() < stored && checkpoint.total_bytes() > stored * 3 / 5, "{folder:?}");
        let wide = checkpoint.read_shaped(weight, &[32, 64], Dtype::F32).expect("read");
        let half = checkpoint.read(weight, Dtype::F16).expect("read");
        assert_eq!((wide.bytes.len(), half.bytes.len()), (4 * 32 * 64, 2 * 32 * 64));
        assert!(checkpoint.read_shaped(weight, &[64, 32], Dtype::F32).is_err());
        assert!(checkpoint.config().quantisation.is_some());
        // Groups of 32 or more inputs in order, and integers: what devices can keep as it is.
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let packs = ["gptq-8", "awq", "w4a16-zero-points", "w8a8"].contains(&&*name);
        let packed = checkpoint.read_packed(weight, &[32, 64]).expect("read");
        assert_eq!((packed.is_some(), checkpoint.packed_bytes(Dtype::F16).is_some()), (packs, packs), "{name}");
        if let Some(packed) = packed {
            assert_eq!(numbers(&packed), wide.bytes, "{name}");
        }
        // FP8 with a scale for each row or for all stays as it is, code by code.
        let fp8 = checkpoint.read_fp8(weight, &[32, 64]).expect("read");
        let stays = ["fp8-rows", "fp8-tensor"].contains(&&*name);
        assert_eq!((fp8.is_some(), checkpoint.stored_fp8_bytes(Dtype::F16).is_some()), (stays, stays), "{name}");
        if let Some(fp8) = fp8 {
            assert_eq!((fp8.codes.len(), fp8.scales.len()), (32 * 64, 32), "{name}");
            assert_eq!(products(&fp8), wide.bytes, "{name}");
            // 7 matrices in each of 2 layers: 12,288 numbers in 160 rows of attention's and 160 of the MLP's.
            let others = checkpoint.num_parameters() - 2 * 12_288;
            let bytes = 2 * (12_288 + 4 * (160 + 160)) + 2 * others;
            assert_eq!(checkpoint.stored_fp8_bytes(Dtype::F16), Some(bytes), "{name}");
        }
        formats += 1;
    }
    assert_eq!(formats, 9);
}

/// The numbers of codes, each times the scale of its row, as bytes of 32-bit floats.
fn products(fp8: &Fp8Values) -> Vec<u8> {
    let number = |code: u8| {
        let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
        let magnitude = if exponent == 0 { fraction / 64.0 } else { (1.0 + fraction) * 2f32.powi(exponent - 7) };
        if code >= 0x80 { -magnitude } else { magnitude }
    };
    let rows = fp8.codes.chunks(fp8.codes.len() / fp8.scales.len()).zip(&fp8.scales);
    rows.flat_map(|(row, scale)| row.iter().flat_map(move |code| (number(*code) * scale).to_le_bytes())).collect()
}

/// What a device makes of packed words with two scales, as bytes of 32-bit floats.
fn numbers(packed: &PackedValues) -> Vec<u8> {
    let words: Vec<u32> = packed.bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let code = |codes: &[u32], i: usize| match packed.form.codes {
        Codes::FourBits => (codes[i / 8] >> (i % 8 * 4) & 15) as f32,
        Codes::Bytes => f32::from((codes[i / 4] >> (i % 4 * 8)) as i8),
    };
    let group = |group: &[u32]| -> Vec<f32> {
        let [scale, added] = [group[0], group[1]].map(f32::from_bits);
        (0..32).map(|i| scale * code(&group[2..], i) + added + 0.0).collect()
    };
    words.chunks(packed.form.words()).flat_map(group).flat_map(f32::to_le_bytes).collect()
}

/// A stored tensor: what follows the layer's name, its format and shape, and its bytes, all alike.
type Part = (&'static str, Stored, &'static [usize], u8);

const LAYER: &str = "model.layers.0.mlp.up_proj";

/// What opening a folder of one layer and then reading it says.
fn opened(method: &Value, parts: &[Part]) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = llama_config();
    config["quantization_config"] = method.clone();
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    let bytes: Vec<Vec<u8>> = parts
        .iter()
        .map(|(_, dtype, shape, byte)| vec![*byte; shape.iter().product::<usize>() * dtype.bitsize() / 8])
        .collect();
    let tensors = parts.iter().zip(&bytes).map(|((suffix, dtype, shape, _), bytes)| {
        (format!("{LAYER}.{suffix}"), TensorView::new(*dtype, shape.to_vec(), bytes).expect("a whole tensor"))
    });
    let file = safetensors::serialize(tensors, None).expect("serialised");
    std::fs::write(folder.path().join("model.safetensors"), file).expect("written");
    let checkpoint = Checkpoint::open(folder.path()).map_err(|error| error.to_string())?;
    checkpoint.read(&format!("{LAYER}.weight"), Dtype::F32).map(drop).map_err(|error| error.to_string())
}

#[test]
fn parts_that_do_not_fit_are_refused_by_name() {
    let gptq = json!({"quant_method": "gptq", "bits": 4});
    let fp8 = json!({"quant_method": "fp8"});
    let blocks = json!({"quant_method": "fp8", "weight_block_size": [8, 8]});
    let words: Part = ("qweight", Stored::I32, &[4, 16], 0x21);
    let scales: Part = ("scales", Stored::F16, &[2, 16], 0x11);
    let zeros: Part = ("qzeros", Stored::I32, &[2, 2], 0x21);
    let bytes: Part = ("weight", Stored::F8_E4M3, &[16, 32], 0x38);
    let cases: [(&Value, Vec<Part>, Option<&str>); 14] = [
        (&gptq, vec![words, scales, zeros], None),
        (&gptq, vec![words, scales, zeros, ("g_idx", Stored::I32, &[32], 0)], None),
        (&gptq, vec![words, zeros], Some("scales: is missing")),
        (&gptq, vec![words, scales], Some("qzeros: is missing")),
        (
            &gptq,
            vec![words, ("scales", Stored::F16, &[2, 15], 0), zeros],
            Some("scales: has shape [2, 15], expected [2, 16]"),
        ),
        (
            &gptq,
            vec![words, ("scales", Stored::F16, &[3, 16], 0), ("qzeros", Stored::I32, &[3, 2], 0)],
            Some("3 groups, which do not divide 32 inputs"),
        ),
        (
            &gptq,
            vec![words, ("scales", Stored::F16, &[0, 16], 0), zeros],
            Some("scales: has shape [0, 16], expected a matrix"),
        ),
        (&gptq, vec![("qweight", Stored::I64, &[4, 16], 0), scales, zeros], Some("qweight: is stored as I64")),
        (&gptq, vec![words, scales, zeros, ("g_idx", Stored::I32, &[32], 2)], Some("g_idx: names group 33686018 of 2")),
        (&fp8, vec![bytes, ("weight_scale", Stored::F32, &[16, 1], 0)], None),
        (&fp8, vec![bytes], Some("weight_scale: is missing")),
        (
            &fp8,
            vec![bytes, ("weight_scale", Stored::F32, &[2, 5], 0)],
            Some("weight_scale: has shape [2, 5], which does not divide"),
        ),
        (&blocks, vec![bytes, ("weight_scale_inv", Stored::F32, &[2, 4], 0)], None),
        (
            &fp8,
            vec![("weight", Stored::F8_E5M2, &[16, 32], 0), ("weight_scale", Stored::F32, &[1], 0)],
            Some("weight: is stored as F8_E5M2"),
        ),
    ]; // fmt: skip
    for (method, parts, expected) in cases {
        let outcome = opened(method, &parts);
        match expected {
            None => assert_eq!(outcome, Ok(()), "{method} {parts:?}"),
            Some(problem) => {
                let text = outcome.expect_err(problem);
                assert!(text.contains(&format!("model.safetensors: {LAYER}.")) && text.contains(problem), "{text}");
            }
        }
    }
}

#[test]
fn codes_that_are_not_numbers_keep_a_weight_from_staying_in_fp8() {
    let stays = |code: u8| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = llama_config();
        config["quantization_config"] = json!({"quant_method": "fp8"});
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
        let mut codes = vec![0x38; 16 * 32];
        codes[100] = code;
        let tensors = [
            (format!("{LAYER}.weight"), TensorView::new(Stored::F8_E4M3, vec![16, 32], &codes).expect("whole")),
            (format!("{LAYER}.weight_scale"), TensorView::new(Stored::F32, vec![1], &[0, 0, 0, 64]).expect("whole")),
        ];
        let file = safetensors::serialize(tensors, None).expect("serialised");
        std::fs::write(folder.path().join("model.safetensors"), file).expect("written");
        let checkpoint = Checkpoint::open(folder.path()).expect("opens");
        let fp8 = checkpoint.read_fp8(&format!("{LAYER}.weight"), &[16, 32]).expect("the shape is right");
        assert!(fp8.iter().all(|fp8| fp8.scales == [2.0; 16]));
        fp8.is_some()
    };
    assert!(stays(0x7e) && stays(0xfe) && stays(0));
    assert!(!stays(0x7f) && !stays(0xff));
}

#[test]
fn asymmetric_bytes_are_not_supported() {
    let parts: [Part; 3] = [
        ("weight", Stored::I8, &[16, 32], 1),
        ("weight_scale", Stored::F32, &[16, 1], 0),
        ("weight_zero_point", Stored::I8, &[16, 1], 0),
    ];
    let text = opened(&json!({"quant_method": "fp8"}), &parts).expect_err("refused");
    assert!(text.contains("weight_zero_point: asymmetric integers of 8 bits are not supported"), "{text}");
}
